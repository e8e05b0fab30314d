"""Windows of the real recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the extra ieeg")

from manyhead.mvpformer.data import RecordingData
from manyhead.mvpformer.readers import find_recordings, open_recording
from manyhead.mvpformer.windows import WindowOptions, index_windows
from manyhead_core.errors import DataError


@pytest.fixture
def folder(data_dir: Path) -> Path:
    return data_dir / "ieeg"


@pytest.mark.parametrize(
    ("mode", "padding", "expected"),
    [
        ("reference", "none", (68, 41)),
        ("default", "none", (93, 66)),
        ("default", "repeat", (117, 66)),
    ],
)
def test_windows_of_the_hdf5_session(
    folder: Path, mode: Any, padding: Any, expected: tuple[int, int]
) -> None:
    (source,) = find_recordings(folder / "swec_layout" / "ID01")
    info = open_recording(source).info
    assert info.seizures is not None
    options = WindowOptions(mode=mode, padding=padding)
    windows = index_windows(info.duration, info.seizures, info.gaps, options)
    assert len(windows) == expected[0]
    for number, event in enumerate(info.seizures[: 2 if mode == "default" else 1]):
        inside = (windows.step_stop > event.onset) & (windows.step_start < event.offset)
        assert windows.label[inside].all(), number
        assert windows.event_start[inside].min() == pytest.approx(event.onset)
        assert windows.event_stop[inside].max() == pytest.approx(event.offset)


def test_two_sessions_train_and_test(folder: Path) -> None:
    data = RecordingData(folder / "swec_layout", batch_windows=4)
    data.prepare()
    assert sorted(data.frame["patient"]) == ["ID20", "ID36"]
    assert data.windows is not None
    assert len(data.windows) == 117 + 66
    batch = next(iter(data.train_dataloader()))
    count = data.windows.tracks[data.parts["train"][0]].channels
    assert batch.signal.shape == (4, 25, count, 2560)
    assert 5 < float(batch.signal.abs().mean()) < 500


def test_bonn_segments_come_with_their_parts(folder: Path) -> None:
    sizes: dict[str, Any] = {"num_segments": 9, "segment_seconds": 2.5, "stride_seconds": 2.5}
    data = RecordingData(
        folder / "bonn_dev.npz",
        split="official",
        rate=173.6,
        patients_per_batch=8,
        sampling="balanced",
        **sizes,
    )
    data.prepare()
    assert [len(rows) for rows in data.parts.values()] == [200, 50, 100]
    assert data.windows is not None
    assert len(data.windows) == 350 * 9
    assert data.windows.label.sum() == 70 * 9
    batches = [batch for _, batch in zip(range(20), data.train_dataloader(), strict=False)]
    assert all(batch.signal.shape[1:] == (9, 1, 434) for batch in batches)
    assert 0.3 < np.concatenate([batch.label for batch in batches]).mean() < 0.7


def test_a_recording_shorter_than_a_segment_is_left_out(folder: Path) -> None:
    options: dict[str, Any] = {"num_segments": 5, "fractions": (1.0, 0.0, 0.0)}
    data = RecordingData(folder / "bids_ieeg", **options)
    data.prepare()
    assert len(data.frame) == 1
    assert list(data.left_out.values()) == ["3.0 s without a stretch of 5 s"]
    short = RecordingData(
        folder / "bids_ieeg",
        segment_seconds=1.0,
        stride_seconds=1.0,
        num_segments=3,
        padding="none",
    )
    short.prepare()
    assert len(short.frame) == 2


def test_the_published_division_of_two_sessions_leaves_none_to_test(folder: Path) -> None:
    data = RecordingData(folder / "swec_layout", split="official")
    with pytest.raises(DataError, match="no recording of 2 is in the test part"):
        data.setup("test")
