"""Real intracranial files through every reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mne", reason="needs the extra ieeg")
pytest.importorskip("h5py", reason="needs the extra ieeg")

import h5py
import mne

from manyhead.mvpformer.readers import find_recordings, open_recording


@pytest.fixture
def ieeg(data_dir: Path) -> Path:
    return data_dir / "ieeg"


@pytest.mark.parametrize(
    ("name", "channels", "rate", "samples", "onsets"),
    [("ID01", 6, 512, 302075, (165.2, 401.2)), ("ID14", 4, 1024, 338310, (188.8,))],
)
def test_hdf5_sessions(
    ieeg: Path, name: str, channels: int, rate: float, samples: int, onsets: tuple[float, ...]
) -> None:
    found = {source.id: source for source in find_recordings(ieeg / "swec_layout")}
    assert sorted(found) == ["ID01", "ID14"]
    recording = open_recording(found[name])
    info = recording.info
    assert (len(info.channels), info.rate, info.samples) == (channels, rate, samples)
    assert [seizure.onset for seizure in info.seizures or ()] == pytest.approx(onsets, abs=0.05)
    assert (info.gaps, info.notes, info.dropped) == ((), (), {})
    with h5py.File(found[name].path) as file:
        stored = file["data/ieeg"][:, 20_000:30_000]
    np.testing.assert_array_equal(recording.read(20_000, 30_000), stored)


def test_bids_sessions_equal_what_mne_reads(ieeg: Path) -> None:
    mixed, ecog = find_recordings(ieeg / "bids_ieeg")
    assert [mixed.patient, ecog.patient] == ["sub-bonnmix", "sub-pt01"]
    for source, shape in ((mixed, (5, 156_928)), (ecog, (84, 3000))):
        recording = open_recording(source)
        assert (len(recording.info.channels), recording.info.samples) == shape
        raw = mne.io.read_raw_edf(source.path, verbose="ERROR")
        assert recording.info.channels == tuple(raw.ch_names)
        np.testing.assert_allclose(
            recording.read(500, 2500), raw[:, 500:2500][0] * 1e6, rtol=1e-5, atol=1e-3
        )
        assert recording.info.notes == ()
    seizures = open_recording(mixed).info.seizures
    np.testing.assert_allclose(seizures, [(141.59, 165.19), (377.56, 448.35)])
    info = open_recording(ecog).info
    assert info.seizures == ((1.0, 3.0),)
    assert set(info.kinds) == {"ECOG"}


def test_bonn_text_equals_the_arrays(ieeg: Path) -> None:
    arrays = {source.id: source for source in find_recordings(ieeg / "bonn_dev.npz")}
    text = find_recordings(ieeg / "bonn_txt")
    assert (len(arrays), len(text)) == (350, 15)
    for source in text:
        one, other = open_recording(source), open_recording(arrays[source.id])
        assert one.info.seizures == other.info.seizures
        assert one.info.rate == other.info.rate == 173.61
        np.testing.assert_array_equal(one.read(0, 4097), other.read(0, 4097))


def test_all_bonn_segments_pass_the_checks(ieeg: Path) -> None:
    infos = [open_recording(source).info for source in find_recordings(ieeg / "bonn_dev.npz")]
    assert sum(bool(info.seizures) for info in infos) == 70
    parts = [info.part for info in infos]
    assert [parts.count(part) for part in ("train", "validation", "test")] == [200, 50, 100]
    assert all(info.notes[1:] == () for info in infos)
