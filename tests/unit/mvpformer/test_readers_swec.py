"""HDF5 recordings: virtual files whose parts are missing or another's, zeros, and MATLAB forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mne", reason="needs the extra ieeg")
pytest.importorskip("h5py", reason="needs the extra ieeg")

import h5py
from scipy.io import savemat

from manyhead.mvpformer.readers import ReadOptions, find_recordings, open_recording
from manyhead.mvpformer.recording import Interval, Recording
from manyhead_core.errors import DataError

RATE, CHANNELS = 32.0, 3
TABLE = np.dtype([("onsets", "f8"), ("offsets", "f8")])


def signal(seconds: float, seed: int) -> np.ndarray:
    shape = (CHANNELS, int(seconds * RATE))
    return np.random.default_rng(seed).normal(0, 40, shape).astype(np.float32)


def write(
    path: Path, values: np.ndarray, seizures: list[tuple[float, float]] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sampling_rate"] = RATE
        file.create_dataset("data/ieeg", data=values, chunks=(CHANNELS, 320), compression="gzip")
        if seizures is not None:
            file["data/seizures"] = np.array(seizures, TABLE)
    return path


def write_virtual(folder: Path, own: str, named: str, parts: list[np.ndarray]) -> Path:
    """A total over parts; the index names the parts of `named`."""
    layout = h5py.VirtualLayout((CHANNELS, sum(part.shape[1] for part in parts)), np.float32)
    end = 0
    for number, part in enumerate(parts, start=1):
        write(folder / f"{own}_part_{number}.h5", part)
        name = f"{named}_part_{number}.h5"
        layout[:, end : end + part.shape[1]] = h5py.VirtualSource(name, "data/ieeg", part.shape)
        end += part.shape[1]
    path = folder / f"{own}_total.h5"
    with h5py.File(path, "w") as file:
        file.attrs["sampling_rate"] = RATE
        file.create_virtual_dataset("data/ieeg", layout)
        file["data/seizures"] = np.array([(20.0, 30.0)], TABLE)
    return path


def opened(root: Path, **options: object) -> Recording:
    (source,) = find_recordings(root)
    return open_recording(source, ReadOptions(**options))


def test_a_plain_file(tmp_path: Path) -> None:
    values = signal(100, 0)
    write(tmp_path / "ID07" / "ID07_total.h5", values, [(50, 60), (10, 20.5)])
    recording = opened(tmp_path)
    info = recording.info
    assert (info.id, info.patient, info.rate, info.samples) == ("ID07", "ID07", RATE, 3200)
    assert info.channels == ("1", "2", "3")
    assert not info.named
    assert info.seizures == (Interval(10, 20.5), Interval(50, 60))
    np.testing.assert_array_equal(recording.read(300, 400), values[:, 300:400])


def test_an_index_of_its_own_parts_is_read_as_it_is(tmp_path: Path) -> None:
    parts = [signal(40, 1), signal(30, 2)]
    write_virtual(tmp_path / "ID01", "ID01", "ID01", parts)
    recording = opened(tmp_path)
    assert recording.info.notes == ()
    np.testing.assert_array_equal(recording.read(0, 2240), np.concatenate(parts, axis=1))


def test_an_index_of_another_recording_falls_back_to_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [signal(10, seed) for seed in range(11)]
    write_virtual(tmp_path / "ID20", "ID20", "ID02", parts)
    # HDF5 would take a file of that name from the working directory: another patient's.
    elsewhere = tmp_path / "elsewhere"
    for number in range(1, 12):
        write(elsewhere / f"ID02_part_{number}.h5", signal(10, 99))
    monkeypatch.chdir(elsewhere)
    (source,) = find_recordings(tmp_path / "ID20")
    recording = open_recording(source)
    # In number order: part 10 comes after part 9, not after part 1.
    np.testing.assert_array_equal(recording.read(0, 3520), np.concatenate(parts, axis=1))
    assert recording.info.seizures == (Interval(20, 30),)
    assert "read from the 11 parts" in recording.info.notes[0]


def test_missing_parts_are_refused(tmp_path: Path) -> None:
    path = write_virtual(tmp_path / "ID20", "ID20", "ID20", [signal(10, n) for n in range(3)])
    (tmp_path / "ID20" / "ID20_part_2.h5").unlink()
    with pytest.raises(DataError, match="ID20: the parts hold 640 samples and the index names 960"):
        opened(tmp_path)
    for part in path.parent.glob("*_part_*"):
        part.unlink()
    with pytest.raises(DataError, match=r"ID20: .*3 of them are missing, first ID20_part_1\.h5"):
        opened(tmp_path)


def test_parts_without_a_total(tmp_path: Path) -> None:
    parts = [signal(10, n) for n in range(2)]
    write_virtual(tmp_path / "ID03", "ID03", "ID03", parts).unlink()
    recording = opened(tmp_path)
    np.testing.assert_array_equal(recording.read(0, 640), np.concatenate(parts, axis=1))
    assert recording.info.seizures is None


@pytest.mark.parametrize(("start", "stop"), [(130, 195), (0, 61), (239, 300), (100.5, 161.5)])
@pytest.mark.parametrize("compressed", [True, False])
def test_long_zeros_are_refused_or_gaps(
    tmp_path: Path, start: float, stop: float, compressed: bool
) -> None:
    values = signal(300, 0)
    values[:, int(start * RATE) : int(stop * RATE)] = 0
    path = write(tmp_path / "ID01" / "ID01_total.h5", values, [])
    if not compressed:
        with h5py.File(path, "a") as file:
            del file["data/ieeg"]
            file["data/ieeg"] = values
    with pytest.raises(DataError, match=r"ID01: all channels are zero for .* zeros=keep"):
        opened(tmp_path)
    info = opened(tmp_path, zeros="keep").info
    assert info.gaps == (Interval(start, stop),)
    assert info.notes == ("1 stretches of zeros are gaps",)


def test_short_zeros_and_single_dead_channels_are_signal(tmp_path: Path) -> None:
    values = signal(300, 0)
    values[:, int(100 * RATE) : int(159 * RATE)] = 0
    values[1] = 0
    write(tmp_path / "ID01" / "ID01_total.h5", values, [])
    info = opened(tmp_path).info
    assert info.gaps == ()
    assert info.notes == ("flat where looked at: 2",)


def test_files_without_what_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "ID01" / "ID01_total.h5", signal(10, 0), [(20, 30)])
    with pytest.raises(DataError, match="ID01: the seizure from 20 s to 30 s lies outside"):
        opened(tmp_path)
    with h5py.File(path, "a") as file:
        del file.attrs["sampling_rate"]
    with pytest.raises(DataError, match=r"ID01: .* no attribute sampling_rate"):
        opened(tmp_path)
    with h5py.File(path, "a") as file:
        del file["data/ieeg"]
    with pytest.raises(DataError, match="ID01: the file has no data/ieeg"):
        opened(tmp_path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n cut")
    with pytest.raises(DataError, match="ID01: cannot be read") as caught:
        opened(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_volts_are_found_out(tmp_path: Path) -> None:
    values = signal(20, 0) * np.float32(1e-6)
    write(tmp_path / "ID01" / "ID01_total.h5", values, [])
    with pytest.raises(DataError, match=r"too small .* probably V; pass units=V"):
        opened(tmp_path)
    np.testing.assert_allclose(
        opened(tmp_path, units="V").read(0, 64), values[:, :64] * 1e6, rtol=1e-5
    )
    write(tmp_path / "ID01" / "ID01_total.h5", values * np.float32(1e3), [])
    with pytest.raises(DataError, match="probably mV; pass units=mV"):
        opened(tmp_path)


def test_hours_of_matlab_files(tmp_path: Path) -> None:
    folder, rate = tmp_path / "ID1", 1.0
    folder.mkdir()
    hours = {1: 3600, 2: 3600, 4: 100}
    values = {hour: np.random.default_rng(hour).normal(0, 40, (2, n)) for hour, n in hours.items()}
    for hour, held in values.items():
        savemat(folder / f"ID1_{hour}h.mat", {"EEG": held})
    about = {"fs": rate, "seizure_begin": [[3700.0]], "seizure_end": [[3800.0]]}
    savemat(folder / "ID1_info.mat", about)
    recording = opened(tmp_path)
    assert recording.info.samples == 3 * 3600 + 100
    assert recording.info.gaps == (Interval(7200, 10800),)
    assert recording.info.seizures == (Interval(3700, 3800),)
    across = recording.read(3590, 3610)
    expected = np.concatenate([values[1][:, -10:], values[2][:, :10]], axis=1)
    np.testing.assert_allclose(across, expected, rtol=1e-5)
    np.testing.assert_allclose(recording.read(10800, 10900), values[4], rtol=1e-5)


def test_single_seizures_of_matlab_files(tmp_path: Path) -> None:
    folder = tmp_path / "ID2"
    folder.mkdir()
    values = np.random.default_rng(0).normal(0, 40, (400 * 8, 2))
    savemat(folder / "Sz1.mat", {"EEG": values, "fs": 8.0})
    recording = opened(tmp_path)
    assert (recording.info.id, recording.info.patient) == ("ID2_Sz1", "ID2")
    assert recording.info.seizures == (Interval(180, 220),)
    np.testing.assert_allclose(recording.read(0, 80), values[:80].T, rtol=1e-5)


def test_segments_with_a_table(tmp_path: Path) -> None:
    (tmp_path / "segments.csv").write_text(
        "index,segment_id,category_id,category_name,institution,patient_id,channel,electrode_type\n"
        "0,s1,2,Pathological,mayo,7,e1,depth\n1,s2,1,Physiological,mayo,7,e2,\n"
        "2,s3,0,Noise,mayo,8,e3,depth\n3,s4,2,pathological,mayo,8,e4,grid\n"
    )
    values = np.random.default_rng(0).normal(0, 40, (1, 15000))
    for name in ("s1", "s2"):
        savemat(tmp_path / f"{name}.mat", {"data": values})
    found = find_recordings(tmp_path)
    assert [(source.id, source.patient) for source in found] == [
        ("s1", "mayo-7"),
        ("s2", "mayo-7"),
        ("s4", "mayo-8"),
    ]
    first, second = (open_recording(source).info for source in found[:2])
    assert first.seizures == (Interval(0, 3),)
    assert (first.kinds, first.site, first.channels) == (("SEEG",), "mayo", ("e1",))
    assert second.seizures == ()
    with pytest.raises(DataError, match=r"s4: no file s4\.mat"):
        open_recording(found[2])
