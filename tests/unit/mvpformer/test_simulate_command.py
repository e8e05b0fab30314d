"""The simulate command: files that others can read, resuming, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pandas as pd
import pytest
from mne_bids import BIDSPath, read_raw_bids

from manyhead.mvpformer.patients import canonical_patient
from manyhead.mvpformer.simulate.command import MANIFEST, check, simulate
from manyhead.mvpformer.simulate.patients import profile
from manyhead.mvpformer.simulate.signals import draw
from manyhead.mvpformer.simulate.swec import FOLDERS
from manyhead.mvpformer.simulate.timeline import timeline
from manyhead_core.errors import ConfigError, DataError

SMALL: dict[str, Any] = {"minutes": 3.0, "channels": 3, "rate": 128, "seizures": 1}


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, one recording each."""
    out = tmp_path_factory.mktemp("simulated") / "bids"
    assert simulate(out, patients=2, **SMALL) == 0
    return out


def planned(number: int = 0, recording: int = 0) -> Any:
    return timeline(profile(number, 3, 0), recording, 180, 1, 0)


def edf_of(out: Path, subject: str = "01") -> Path:
    return next((out / f"sub-{subject}").rglob("*_ieeg.edf"))


def test_mne_reads_the_signal_without_loss(bids: Path) -> None:
    raw = mne.io.read_raw_edf(edf_of(bids), verbose="error")
    assert raw.info["sfreq"] == 128
    assert raw.ch_names == list(profile(0, 3, 0).channels)
    np.testing.assert_allclose(raw.get_data() * 1e6, draw(planned(), 128), atol=1e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mne_bids_reads_types_status_and_mains(bids: Path) -> None:
    person = profile(1, 3, 0)
    path = BIDSPath(
        subject="02", session="01", task="szMonitoring", run="01", datatype="ieeg", root=bids
    )
    raw = read_raw_bids(path, verbose="error")
    assert set(raw.get_channel_types()) == {person.kind.lower()}
    assert raw.info["line_freq"] == person.line
    assert raw.info["bads"] == ([person.channels[person.dead]] if person.dead >= 0 else [])


def test_the_tables_hold_the_known_times(bids: Path) -> None:
    folder = edf_of(bids).parent
    events = pd.read_csv(next(folder.glob("*_events.tsv")), sep="\t")
    seizure = planned().seizures[0]
    assert events["onset"].tolist() == [seizure.onset]
    assert events["duration"].tolist() == [seizure.offset - seizure.onset]
    assert events["eventType"].tolist() == ["sz"]
    assert events["recordingDuration"].tolist() == [180]
    channels = pd.read_csv(next(folder.glob("*_channels.tsv")), sep="\t")
    assert list(channels)[:5] == ["name", "type", "units", "low_cutoff", "high_cutoff"]
    focus = channels["name"][channels["status_description"] == "seizure onset zone"]
    assert focus.tolist() == events["channels"][0].split(",")
    people = pd.read_csv(bids / "participants.tsv", sep="\t")
    assert people["participant_id"].tolist() == ["sub-01", "sub-02"]
    truth = json.loads((bids / MANIFEST).read_text())
    assert truth["recordings"][0]["seizures"][0]["onset"] == seizure.onset
    assert truth["recordings"][0]["name"] in next(folder.glob("*.edf")).name


def test_it_goes_on_where_it_was_and_adds_patients(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(bids, out)
    whole = edf_of(out, "02").read_bytes()
    edf_of(out, "02").unlink()
    stamp = edf_of(out).stat().st_mtime_ns
    simulate(out, patients=3, **SMALL)
    assert edf_of(out).stat().st_mtime_ns == stamp
    assert edf_of(out, "02").read_bytes() == whole
    assert edf_of(out, "03").is_file()
    assert len((out / "participants.tsv").read_text().splitlines()) == 4


def test_what_it_did_not_write_stays(bids: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        simulate(tmp_path, **SMALL)
    with pytest.raises(DataError, match="seed 0 and --seed is 1"):
        simulate(bids, patients=2, seed=1, **SMALL)
    with pytest.raises(DataError, match="2 patients and --patients is 1"):
        simulate(bids, patients=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_swec_file_holds_the_same_signal(tmp_path: Path) -> None:
    simulate(tmp_path / "set", format="swec", patients=1, **SMALL)
    with h5py.File(tmp_path / "set" / "ID01" / "ID01_total.h5") as file:
        assert file.attrs["sampling_rate"] == 128.0
        data = file["data/ieeg"]
        assert (data.dtype, data.compression, data.is_virtual) == (np.float32, "gzip", False)
        np.testing.assert_array_equal(data[:], draw(planned(), 128))
        table = file["data/seizures"]
        assert table.dtype.names == ("onsets", "offsets")
        assert table[:].tolist() == [tuple(planned().seizures[0])]


def test_several_recordings_are_parts_of_a_virtual_file(tmp_path: Path) -> None:
    simulate(tmp_path / "set", format="swec", patients=1, recordings=2, **SMALL)
    # It must not matter where the folder lies.
    (tmp_path / "set").rename(tmp_path / "moved")
    with h5py.File(tmp_path / "moved" / "ID01" / "ID01_total.h5") as file:
        data, table = file["data/ieeg"], file["data/seizures"][:]
        assert data.is_virtual
        for part in range(2):
            signal = data[:, part * 180 * 128 : (part + 1) * 180 * 128]
            np.testing.assert_array_equal(signal, draw(planned(recording=part), 128))
            seizure = planned(recording=part).seizures[0]
            assert table["onsets"][part] == 180 * part + seizure.onset
            assert table["offsets"][part] == 180 * part + seizure.offset


def test_no_two_swec_folders_count_as_one_patient() -> None:
    folders = [canonical_patient(f"ID{number:02d}") for number in FOLDERS]
    assert len(set(folders)) == len(folders)


def test_a_recording_without_seizures_says_so(tmp_path: Path) -> None:
    options = SMALL | {"seizures": 0, "minutes": 1.5}
    for layout in ("bids", "swec"):
        simulate(tmp_path / layout, format=layout, patients=1, **options)
    events = next((tmp_path / "bids").rglob("*_events.tsv"))
    assert pd.read_csv(events, sep="\t")["eventType"].tolist() == ["bckg"]
    with h5py.File(tmp_path / "swec" / "ID01" / "ID01_total.h5") as file:
        assert len(file["data/seizures"]) == 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("patients", {"patients": 0}),
        ("patients", {"patients": 82, "format": "swec"}),
        ("recordings", {"recordings": 0}),
        ("channels", {"channels": 0}),
        ("rate", {"rate": 64}),
        ("seizures", {"seizures": -1}),
        ("minutes", {"seconds": 200, "seizures": 2}),
        ("minutes", {"seconds": 10**6}),
    ],
)
def test_numbers_that_make_no_recordings_are_refused(name: str, change: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "format": "bids", "patients": 8, "recordings": 1, "seconds": 1200, "channels": 16,
        "rate": 512, "seizures": 2,
    }  # fmt: skip
    check(**options)
    with pytest.raises(ConfigError, match=f"^--{name}: is"):
        check(**(options | change))
