"""Preparing real recordings: the published reading, and the default beside it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.recording import Recording, RecordingInfo, Signal


class Session(Recording):
    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path)
        self._signal = self._file["data/ieeg"]
        channels, samples = self._signal.shape
        self.info = RecordingInfo(
            id=path.stem,
            patient=path.parent.name,
            path=path,
            channels=tuple(map(str, range(channels))),
            rate=float(self._file.attrs["sampling_rate"]),
            samples=samples,
            named=False,
        )

    def read(self, start: int, stop: int) -> Signal:
        return np.asarray(self._signal[:, start:stop])

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("name", ["ID01", "ID14"])
def test_reference_windows(name: str, data_dir: Path, parity_dir: Path) -> None:
    wanted = load_file(parity_dir / "mvpformer" / f"windows_{name}.safetensors")
    path = data_dir / "ieeg" / "swec_layout" / name / f"{name}_total.h5"
    session = Session(path)
    prepared = Prepared(session, PrepareOptions(mode="reference"))
    head, level = wanted["output/first_window_head"], wanted["output/first_window_abs_mean"]
    segments, channels, _ = head.shape
    window = prepared.read(0, segments * 2560).reshape(channels, segments, 2560).swapaxes(0, 1)
    session.close()
    np.testing.assert_allclose(window[..., :64], head, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.abs(window).mean(axis=-1), level, rtol=1e-5)


def test_band_limited_and_linear_agree_where_the_signal_is(data_dir: Path) -> None:
    """Nothing real lies above 85 Hz in these sessions, so both readings must be close."""
    session = Session(data_dir / "ieeg" / "swec_layout" / "ID14" / "ID14_total.h5")
    fine = Prepared(session).read(5000, 30_000)
    linear = Prepared(session, PrepareOptions(resample="linear")).read(5000, 30_000)
    session.close()
    for a, b in zip(fine, linear, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.999
