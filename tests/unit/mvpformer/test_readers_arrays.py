"""Arrays, MATLAB variables and Bonn segments, and how recordings are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mne", reason="needs the extra ieeg")
pytest.importorskip("h5py", reason="needs the extra ieeg")

import h5py
from edf_bytes import Signal, noise, write_edf
from scipy.io import savemat

from manyhead.mvpformer.readers import ReadOptions, find_recordings, open_recording
from manyhead.mvpformer.recording import Interval, Recording
from manyhead_core.errors import ConfigError, DataError

VALUES = np.random.default_rng(0).normal(0, 40, (2, 500)).astype(np.float32)


def opened(root: Path, **options: object) -> Recording:
    (source,) = find_recordings(root)
    return open_recording(source, ReadOptions(**options))


def test_npz(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[:, 100:150] = np.nan
    values[0, 200:300] = np.nan
    np.savez(
        tmp_path / "p_1.npz", signal=values, sfreq=100, channels=["A", "B"], seizures=[[1, 2.5]]
    )
    recording = opened(tmp_path)
    info = recording.info
    assert (info.channels, info.rate, info.named) == (("A", "B"), 100, True)
    assert info.seizures == (Interval(1, 2.5),)
    assert info.gaps == (Interval(1, 1.5),)
    read = recording.read(0, 500)
    assert np.isfinite(read).all()
    np.testing.assert_array_equal(read[1, 150:], VALUES[1, 150:])


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_matlab(tmp_path: Path, version: str) -> None:
    path = tmp_path / "m.mat"
    if version == "5":
        names = np.array(["A", "B"], dtype=object)
        savemat(path, {"EEG": VALUES.T, "fs": 100.0, "labels": names, "units": "mV"})
    else:
        with h5py.File(path, "w") as file:
            file["EEG"], file["fs"] = VALUES, [[100.0]]
            file["units"] = np.array([[ord(letter)] for letter in "mV"], np.uint16)
            file["units"].attrs["MATLAB_class"] = np.bytes_("char")
    recording = opened(tmp_path)
    assert recording.info.channels == (("A", "B") if version == "5" else ("1", "2"))
    assert recording.info.notes == ("eeg is stored as (samples, channels) and was turned",)
    np.testing.assert_allclose(recording.read(0, 500), VALUES * 1e3, rtol=1e-5)
    assert recording.info.seizures is None


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"signal": VALUES}, "does not say the rate; store `sfreq`"),
        ({"sfreq": 100}, "the file holds sfreq, no signal"),
        ({"signal": VALUES, "sfreq": -1}, "not a rate in Hz"),
        ({"signal": VALUES, "sfreq": 100, "channels": ["A"]}, "1 names for 2 channels"),
        ({"signal": VALUES[None], "sfreq": 100}, r"the shape \(1, 2, 500\)"),
        ({"signal": VALUES, "sfreq": 100, "seizures": [1, 2, 3]}, r"not \(seizures, 2\)"),
        ({"signal": VALUES, "sfreq": 100, "seizures": [[7, 9]]}, "lies outside the recording"),
        ({"signal": VALUES, "sfreq": 100, "units": "T"}, "units 'T' is no voltage"),
        ({"signal": np.array(["a", "b"]), "sfreq": 100}, "no array of numbers"),
    ],
)
def test_wrong_arrays(tmp_path: Path, held: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "x.npz", **held)
    with pytest.raises(DataError, match=f"^x: .*{message}"):
        opened(tmp_path)


def test_damaged_arrays(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"x: x\.npz is no readable npz file"):
        opened(tmp_path)
    (tmp_path / "x.npz").rename(tmp_path / "x.mat")
    with pytest.raises(DataError, match=r"x: x\.mat is no readable MATLAB file"):
        opened(tmp_path)


def test_bonn_text_and_arrays_are_the_same(tmp_path: Path) -> None:
    values = np.stack([noise(400, n) for n in range(3)])
    ids = ["S001", "N041", "Z070"]
    np.savez(tmp_path / "bonn.npz", signal=values, segment_id=ids, sfreq=173.61)
    for folder, name, row in (("S", "S001.txt", 0), ("N", "N041.TXT", 1), ("Z", "Z070.txt", 2)):
        target = tmp_path / "text" / folder / name
        target.parent.mkdir(parents=True)
        target.write_text("\r\n".join(str(value) for value in values[row]) + "\r\n")
    text = [open_recording(source) for source in find_recordings(tmp_path / "text")]
    arrays = [open_recording(source) for source in find_recordings(tmp_path / "bonn.npz")]
    assert [r.info.id for r in text] == [r.info.id for r in arrays] == ["N041", "S001", "Z070"]
    for one, other in zip(text, arrays, strict=True):
        np.testing.assert_array_equal(one.read(0, 400), other.read(0, 400))
        assert one.info.seizures == other.info.seizures
    assert [r.info.part for r in text] == ["validation", "train", "test"]
    assert [r.info.kinds for r in text] == [("SEEG",), ("SEEG",), ("EEG",)]
    assert text[1].info.seizures == (Interval(0, 400 / 173.61),)
    assert text[0].info.seizures == text[2].info.seizures == ()
    for text_of in ("1\ntwo\n", ""):
        (tmp_path / "text" / "S" / "S001.txt").write_text(text_of)
        with pytest.raises(DataError, match=r"S001: S001\.txt is not one number per line"):
            open_recording(find_recordings(tmp_path / "text" / "S")[0])


def test_a_folder_of_files_of_several_patients(tmp_path: Path) -> None:
    for place in ("ann/day1.edf", "ann/day2.edf", "bob/day1.edf", "cy_01.edf", ".old/x.edf"):
        write_edf(tmp_path / place, [Signal("A1", noise(300), 100)])
    write_edf(tmp_path / "derivatives" / "y.edf", [Signal("A1", noise(300), 100)])
    found = find_recordings(tmp_path)
    assert [(source.id, source.patient) for source in found] == [
        ("ann__day1", "ann"),
        ("bob__day1", "bob"),
        ("cy_01", "cy"),
        ("day2", "ann"),
    ]
    named = find_recordings(tmp_path, patient=r"(day\d|cy)")
    assert {source.patient for source in named} == {"day1", "day2", "cy"}
    with pytest.raises(ConfigError, match=r"patient: 'day' finds nothing in cy_01\.edf"):
        find_recordings(tmp_path, patient="day")


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    with pytest.raises(DataError, match=r"holds no recordings; looked for a BIDS data set .*\.edf"):
        find_recordings(tmp_path)
    with pytest.raises(DataError, match="recordings of the format swec"):
        find_recordings(tmp_path, "swec")
    with pytest.raises(ConfigError, match="format: 'edv' is none of auto, bids"):
        find_recordings(tmp_path, "edv")
    with pytest.raises(DataError, match="gone does not exist"):
        find_recordings(tmp_path / "gone")


def test_a_bids_set_inside_is_pointed_at(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    write_edf(inner / "sub-01" / "ieeg" / "sub-01_ieeg.edf", [Signal("A1", noise(300), 100)])
    (inner / "dataset_description.json").write_text("{}")
    with pytest.raises(DataError, match="a BIDS data set in inner"):
        find_recordings(tmp_path)
    single = find_recordings(inner / "sub-01" / "ieeg" / "sub-01_ieeg.edf")
    assert [(source.id, source.format) for source in single] == [("sub-01", "bids")]
