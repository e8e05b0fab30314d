import json
from pathlib import Path

import pytest

from manyhead.mvpformer.events.score import patient_name, recording_name, score
from manyhead.mvpformer.events.tsv import write_events
from manyhead.mvpformer.recording import Interval
from manyhead_core.cli.function import run_function
from manyhead_core.errors import DataError, UserError

SEIZURE = Interval(600.0, 660.0)


def name(subject: int, run: int = 0) -> str:
    return f"sub-{subject:02d}_ses-01_task-szMonitoring_run-{run:02d}"


def folders(tmp_path: Path, patients: int = 12) -> tuple[Path, Path]:
    true, found = tmp_path / "true", tmp_path / "found"
    for k in range(patients):
        place = true / f"sub-{k:02d}" / "ses-01" / "ieeg"
        write_events(place / f"{name(k)}_events.tsv", [SEIZURE], 3600.0)
        (place / f"{name(k)}_channels.tsv").write_text("name\ttype\nA1\tSEEG\n")
        alarm = [Interval(2000.0, 2010.0)] if k % 3 == 0 else []
        hit = [Interval(605.0, 640.0)] if k % 2 == 0 else []
        write_events(found / f"{name(k)}_events.tsv", hit + alarm, 3600.0)
    return true, found


def test_folders_are_matched_by_recording(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    true, found = folders(tmp_path)
    assert score(true, found, out=tmp_path / "scores.json", draws=100) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["num_groups"] == 12
    metrics = result["metrics"]
    assert metrics["event_sensitivity"]["value"] == 0.5
    assert metrics["event_sensitivity"]["low"] < 0.5 < metrics["event_sensitivity"]["high"]
    assert metrics["event_f1_pooled"]["value"] == pytest.approx(12 / (12 + 4 + 6))
    assert metrics["false_alarms_per_day"]["value"] == pytest.approx(8)
    assert metrics["delay_median"]["value"] == 5
    assert result["files"][0]["hits"] == 1
    assert result["parameters"]["before"] == 30
    shown = capsys.readouterr().out
    assert "8.00 false alarms a day (tolerance: 30 s before to 60 s after a seizure" in shown
    assert "research use only" in shown


def test_patients_are_hashed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    true, found = folders(tmp_path, 3)
    score(true, found, out=tmp_path / "scores.json")
    result = json.loads((tmp_path / "scores.json").read_text())
    assert not [p for p in result["details"]["patients"] if "sub-" in p["value"]]
    assert "sub-" not in capsys.readouterr().out


def test_few_patients_are_shown_without_intervals(tmp_path: Path) -> None:
    true, found = folders(tmp_path, 3)
    score(true, found, out=tmp_path / "scores.json")
    result = json.loads((tmp_path / "scores.json").read_text())
    assert all(entry["low"] is None for entry in result["metrics"].values())
    assert len(result["groups"]) == 3
    assert [entry["event_f1"] for entry in result["groups"]].count(1.0) == 1


def test_two_files_and_the_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reference = write_events(tmp_path / "a_events.tsv", [SEIZURE], 3600.0)
    detected = tmp_path / "b.csv"
    detected.write_text("onset,offset\n575,580\n")
    score(reference, detected)
    assert "event F1 1.000, 0.00 false" in capsys.readouterr().out
    score(reference, detected, before=10)
    assert "event F1 0.000, 24.00 false" in capsys.readouterr().out


def test_what_cannot_be_scored_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    true, found = folders(tmp_path, 3)
    (found / f"{name(0)}_events.tsv").unlink()
    write_events(found / f"{name(7)}_events.tsv", [], 10.0)
    assert score(true, found) == 0
    notices = capsys.readouterr().err
    assert f"not scored: {name(0)}: no file of detections" in notices
    assert "1 files of detections have no reference" in notices
    assert score(true, found, strict=True) == 2
    assert score(true, found, strict=True, missing=True, out=tmp_path / "s.json") == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["num_samples"], result["files"][0]["hits"]) == (3, 0)


def test_the_length_of_a_recording_is_needed(tmp_path: Path) -> None:
    for part in ("true", "found"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.csv").write_text("onset,offset\n5,10\n")
    with pytest.raises(DataError, match="none of the 1 recordings could be scored"):
        score(tmp_path / "true", tmp_path / "found")
    assert score(tmp_path / "true", tmp_path / "found", duration=100.0) == 0


def test_mistakes_are_told(tmp_path: Path) -> None:
    true, found = folders(tmp_path, 1)
    with pytest.raises(DataError, match=r"hypothesis: .* does not exist"):
        score(true, tmp_path / "none")
    with pytest.raises(DataError, match="two files or two folders"):
        score(true, found / f"{name(0)}_events.tsv")
    with pytest.raises(UserError, match=r"--out: .* exists"):
        score(true, found, out=found)
    with pytest.raises(UserError, match="--duration: 0"):
        score(true, found, duration=0.0)
    (found / f"{name(0)}_events.tsv").rename(found / "other_events.tsv")
    with pytest.raises(DataError, match=r"other and sub-00.* should have the same name"):
        score(true, found)
    write_events(true / f"{name(0)}.tsv", [], 10.0)
    with pytest.raises(DataError, match="has two files of events"):
        score(true, found)


def test_names_of_files() -> None:
    assert recording_name(Path("sub-01_run-00_events.tsv")) == "sub-01_run-00"
    assert recording_name(Path("sub-01_run-00_desc-model_ieeg.tsv")) == "sub-01_run-00"
    assert recording_name(Path("ID01.csv")) == "ID01"
    assert (patient_name("sub-01_run-00"), patient_name("ID01")) == ("sub-01", "ID01")


def test_the_signature_is_a_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    true, found = folders(tmp_path, 2)
    arguments = [str(true), str(found), "--after", "0", "--strict", "true"]
    assert run_function(score, "manyhead mvpformer score", arguments) == 0
    assert "30 s before to 0 s after" in capsys.readouterr().out
