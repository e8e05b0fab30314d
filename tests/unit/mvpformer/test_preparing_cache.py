from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from manyhead.mvpformer.preparing import PrepareOptions, cache, open_prepared
from manyhead.mvpformer.preparing.cache import Kept, key
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import DataError

sys.path.insert(0, str(Path(__file__).parent))
from array_recording import ArrayRecording, noise

OPTIONS = PrepareOptions(band=(1.0, 100.0), channels="variance", max_channels=2)


@pytest.fixture
def recording(tmp_path: Path) -> ArrayRecording:
    file = tmp_path / "smith_john.edf"
    file.write_bytes(b"x")
    signal = noise(3, 8000)
    return ArrayRecording(signal, 1000.0, path=file, gaps=(Interval(3.0, 3.5),))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_kept_signals_read_as_prepared_ones(recording, where, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cache, "PIECE_SECONDS", 0.7)
    fresh = open_prepared(recording, OPTIONS)
    kept = open_prepared(recording, OPTIONS, "memory" if where == "memory" else tmp_path / "c")
    np.testing.assert_allclose(kept.read(100, 4000), fresh.read(100, 4000), atol=1e-4)
    assert (kept.channels, kept.samples, kept.duration) == (
        fresh.channels,
        fresh.samples,
        fresh.duration,
    )
    assert kept.manifest() == fresh.manifest()
    assert dict(kept.dropped) == dict(fresh.dropped)
    with pytest.raises(ValueError, match="of 4096 samples"):
        kept.read(0, 4097)


def test_a_kept_file_spares_the_recording(recording, tmp_path) -> None:
    first = open_prepared(recording, OPTIONS, tmp_path / "c")
    recording.asked.clear()
    again = open_prepared(recording, OPTIONS, tmp_path / "c")
    np.testing.assert_array_equal(again.read(0, 4096), first.read(0, 4096))
    assert sum(stop - start for start, stop in recording.asked) <= 512
    assert len(pickle.dumps(again)) < 200_000
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {f"{key(recording, OPTIONS)}{end}" for end in (".npy", ".json")}
    with pytest.raises(ValueError, match="read-only"):
        again.read(0, 10)[:] = 0
    again.close()
    np.testing.assert_array_equal(again.read(0, 10), first.read(0, 10))


def test_a_changed_file_or_option_is_another_key(recording) -> None:
    first = key(recording, OPTIONS)
    assert first != key(recording, PrepareOptions())
    os.utime(recording.info.path, ns=(1, 1))
    touched = key(recording, OPTIONS)
    # The same file read in millivolts.
    recording.signal = recording.signal * 1000
    assert len({first, touched, key(recording, OPTIONS)}) == 3


def test_half_a_file_is_never_read(recording, tmp_path, monkeypatch) -> None:
    """A job that is killed leaves no file under the final name, and the next starts anew."""
    folder = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(recording, "signal", np.where(np.arange(8000) > 7000, np.nan, noise(3, 8000)))
        with pytest.raises(DataError, match="holds no number"):
            open_prepared(recording, OPTIONS, folder)
    assert list(folder.iterdir()) == []
    assert isinstance(open_prepared(recording, OPTIONS, folder), Kept)
    about = folder / f"{key(recording, OPTIONS)}.json"
    about.unlink()
    assert isinstance(open_prepared(recording, OPTIONS, folder), Kept)
    assert about.is_file()


def test_a_folder_that_cannot_be_written(recording, tmp_path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(DataError, match="is a file; the cache of prepared signals"):
        open_prepared(recording, OPTIONS, tmp_path / "c")
