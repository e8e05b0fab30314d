"""BIDS-iEEG and BIDS-EEG: tables of channels and events, and what they leave open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mne", reason="needs the extra ieeg")

import mne
from edf_bytes import Signal, noise, write_edf

from manyhead.mvpformer.readers import ReadOptions, find_recordings, open_recording
from manyhead.mvpformer.recording import Interval, RecordingInfo
from manyhead_core.errors import DataError

NAMES = ("A1", "A2", "B1", "EKG", "TRG")


def recording(root: Path, subject: str = "01", run: int = 1, kind: str = "ieeg") -> Path:
    stem = f"sub-{subject}_task-mon_run-{run}_{kind}"
    signals = [Signal(name, noise(1000, n), 100) for n, name in enumerate(NAMES)]
    return write_edf(root / f"sub-{subject}" / kind / f"{stem}.edf", signals)


def table(path: Path, kind: str, *rows: str) -> Path:
    stem = path.stem.rsplit("_", 1)[0]
    target = path.with_name(f"{stem}_{kind}.tsv")
    target.write_text("\n".join("\t".join(row.split()) for row in rows) + "\n")
    return target


def info_of(root: Path, **options: object) -> RecordingInfo:
    (source,) = find_recordings(root)
    return open_recording(source, ReadOptions(**options)).info


def test_recordings_of_a_patient_share_it(tmp_path: Path) -> None:
    for subject, run in (("01", 1), ("01", 2), ("02", 1)):
        recording(tmp_path, subject, run)
    recording(tmp_path / "derivatives" / "cleaned", "01")
    recording(tmp_path / "sub-02" / "derivatives", "02", 9)
    recording(tmp_path, "03", kind="eeg")
    (tmp_path / "participants.tsv").write_text("participant_id\tsite\nsub-01\tBern\nsub-02\tn/a\n")
    found = find_recordings(tmp_path)
    assert [(source.id, source.patient) for source in found] == [
        ("sub-01_task-mon_run-1", "sub-01"),
        ("sub-01_task-mon_run-2", "sub-01"),
        ("sub-02_task-mon_run-1", "sub-02"),
        ("sub-03_task-mon_run-1", "sub-03"),
    ]
    assert [open_recording(source).info.site for source in found] == ["Bern", "Bern", "", ""]


def test_a_session_or_file_keeps_its_tables(tmp_path: Path) -> None:
    path = recording(tmp_path)
    recording(tmp_path, run=2)
    table(path, "events", "onset duration eventType", "1 2 sz")
    assert info_of(path).seizures == (Interval(1, 3),)
    both = find_recordings(path.parent)
    assert [(source.id[-1], source.patient, source.format) for source in both] == [
        ("1", "sub-01", "bids"),
        ("2", "sub-01", "bids"),
    ]


def test_channels_are_kept_by_type_and_status(tmp_path: Path) -> None:
    path = recording(tmp_path)
    table(
        path,
        "channels",
        "name type units status status_description",
        "A1 SEEG uV good n/a",
        "A2 ECOG uV bad noisy",
        "EKG ECG uV good n/a",
        "TRG TRIG n/a good n/a",
    )
    info = info_of(tmp_path)
    assert info.channels == ("A1",)
    assert info.kinds == ("SEEG",)
    assert info.dropped == {
        "A2": "status bad: noisy",
        "B1": "not in channels.tsv",
        "EKG": "type ECG, no brain signal",
        "TRG": "type TRIG, no brain signal",
    }
    assert info_of(tmp_path, keep_bad=True).channels == ("A1", "A2")


def test_tables_are_inherited_from_the_session(tmp_path: Path) -> None:
    recording(tmp_path)
    folder = tmp_path / "sub-01"
    (folder / "sub-01_channels.tsv").write_text("name\ttype\nA1\tDBS\n")
    # Of another run: not for this recording.
    (folder / "ieeg" / "sub-01_task-mon_run-2_channels.tsv").write_text("name\ttype\nB1\tEEG\n")
    (tmp_path / "task-mon_events.tsv").write_text("onset\tduration\teventType\n1\t2\tsz\n")
    info = info_of(tmp_path)
    assert info.kinds == ("DBS",)
    assert info.seizures == (Interval(1, 3),)


@pytest.mark.parametrize(
    ("rows", "seizures", "notes"),
    [
        (("onset duration eventType", "0 10 bckg"), (), 0),
        (("onset duration eventType", "2 3 sz_foc_ia", "1 2 SZ"), (Interval(1, 5),), 0),
        (("onset duration eventType", "4 n/a sz"), (Interval(4, 10),), 1),
        (("onset duration eventType", "8 5 sz"), (Interval(8, 10),), 1),
        (("onset duration eventType", "8 2.01 sz"), (Interval(8, 10),), 0),
        (("onset duration eventType", "-2 5 sz"), (Interval(0, 3),), 1),
        (("onset duration trial_type", "2 3 seizure", "6 1 postictal"), (Interval(2, 5),), 0),
        (("onset duration trial_type", "2 0 sz_on", "6 0 sz_end"), (Interval(2, 6),), 0),
        (("onset duration trial_type", "2 0 picture"), (), 0),
        (("onset duration eventType trial_type", "2 3 bckg seizure"), (), 0),
        (("onset duration value", "2 3 1"), None, 1),
        (("onset duration eventType",), (), 0),
    ],
)
def test_events(
    tmp_path: Path, rows: tuple[str, ...], seizures: tuple[Interval, ...] | None, notes: int
) -> None:
    table(recording(tmp_path), "events", *rows)
    info = info_of(tmp_path)
    assert info.seizures == seizures
    assert len(info.notes) == notes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("20 3 sz", "the seizure from 20 s to 23 s lies outside the recording of 10.00 s"),
        ("-9 3 sz", "lies outside the recording"),
        ("n/a 3 sz", "correct the times"),
        ("5 -2 sz", "correct the times"),
        ("soon 3 sz", "onset 'soon'; times are numbers in s"),
        ("1 3 sz more", "more cells than columns"),
    ],
)
def test_wrong_events_are_one_line(tmp_path: Path, row: str, message: str) -> None:
    table(recording(tmp_path), "events", "onset duration eventType", row)
    with pytest.raises(DataError, match=f"^sub-01_task-mon_run-1: .*{message}"):
        info_of(tmp_path)


def test_without_events_nobody_knows_the_seizures(tmp_path: Path) -> None:
    recording(tmp_path)
    info = info_of(tmp_path)
    assert info.seizures is None
    assert info.notes == ("no events.tsv: no seizures known",)
    assert info.channels == ("A1", "A2", "B1", "TRG")


def test_seizures_may_lie_elsewhere(tmp_path: Path) -> None:
    path = recording(tmp_path / "bids")
    table(path, "events", "onset duration eventType", "1 1 sz")
    times = tmp_path / "times.csv"
    times.write_text(
        "recording,onset,offset\nsub-01_task-mon_run-1,2,4\nsub-01_task-mon_run-1.edf,6,7\n"
        "sub-02_task-mon_run-1,1,9\n"
    )
    assert info_of(tmp_path / "bids", seizures=times).seizures == (Interval(2, 4), Interval(6, 7))
    own = tmp_path / "own"
    own.mkdir()
    (own / "sub-01_task-mon_run-1.csv").write_text("onset;duration\n3;2\n")
    assert info_of(tmp_path / "bids", seizures=own).seizures == (Interval(3, 5),)
    times.write_text("when\n3\n")
    with pytest.raises(DataError, match="needed are onset and duration or offset"):
        info_of(tmp_path / "bids", seizures=times)
    with pytest.raises(DataError, match=r"no table gone\.csv"):
        info_of(tmp_path / "bids", seizures=tmp_path / "gone.csv")


def test_one_bad_file_does_not_hide_the_others(tmp_path: Path) -> None:
    recording(tmp_path, "01")
    recording(tmp_path, "02").write_bytes(b"")
    (tmp_path / "sub-03" / "ieeg").mkdir(parents=True)
    (tmp_path / "sub-03" / "ieeg" / "sub-03_task-mon_ieeg.nwb").write_bytes(b"")
    first, second, third = find_recordings(tmp_path)
    assert open_recording(first).info.samples == 1000
    with pytest.raises(DataError, match="sub-02_task-mon_run-1: "):
        open_recording(second)
    with pytest.raises(DataError, match=r"sub-03_task-mon: files of type .nwb are not read"):
        open_recording(third)


def test_fif(tmp_path: Path) -> None:
    info = mne.create_info(["A1", "A2", "E"], 100.0, ["seeg", "seeg", "ecg"])
    values = np.stack([noise(1000, n) for n in range(3)]) * 1e-6
    raw = mne.io.RawArray(values, info, first_samp=500, verbose="ERROR")
    raw.set_annotations(
        mne.Annotations([2.0, 4.0, 6.0], [1.0, 0.5, 0.0], ["seizure", "BAD_ACQ_SKIP", "boundary"])
    )
    raw.info["bads"] = ["A2"]
    raw.save(tmp_path / "x_raw.fif", verbose="ERROR")
    (source,) = find_recordings(tmp_path)
    found = open_recording(source)
    assert found.info.channels == ("A1",)
    assert found.info.dropped == {
        "A2": "marked bad in the file",
        "E": "type ECG, no brain signal",
    }
    assert found.info.seizures == (Interval(2, 3),)
    assert found.info.gaps == (Interval(4, 4.5), Interval(6, 6))
    np.testing.assert_allclose(found.read(50, 90)[0], values[0, 50:90] * 1e6, atol=1e-3)
    assert open_recording(source, ReadOptions(keep_bad=True)).info.channels == ("A1", "A2")


def test_brainvision(tmp_path: Path) -> None:
    values = noise(600).reshape(300, 2)
    (tmp_path / "b.eeg").write_bytes(values.astype("<i2").tobytes())
    (tmp_path / "b.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nDataFile=b.eeg\n"
        "[Marker Infos]\nMk1=New Segment,,1,1,0\nMk2=New Segment,,101,1,0\n"
        "Mk3=Comment,seizure,151,1,0\nMk4=Comment,seizure end,201,1,0\n"
    )
    (tmp_path / "b.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile=b.eeg\n"
        "MarkerFile=b.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\n"
        "SamplingInterval=10000\n[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\n"
        "Ch1=A1,,0.5,µV\nCh2=A2,,0.5,µV\n",
        encoding="utf-8",
    )
    (source,) = find_recordings(tmp_path)
    recording = open_recording(source)
    assert recording.info.seizures == (Interval(1.5, 2.0),)
    assert recording.info.gaps == (Interval(1.0, 1.0),)
    np.testing.assert_allclose(recording.read(0, 300), values.T * 0.5, atol=1e-4)
    # The unit overrides the header's: the stored numbers are 0.5 mV per step.
    louder = open_recording(source, ReadOptions(units="mV"))
    np.testing.assert_allclose(louder.read(0, 300), values.T * 500.0, rtol=1e-5, atol=1e-2)
