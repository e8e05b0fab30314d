import json
from pathlib import Path

from manyhead.mvpformer.events.score import score
from manyhead.mvpformer.events.tsv import write_events
from manyhead.mvpformer.recording import Interval

SESSION = "sub-bonnmix_ses-01_task-szMonitoring_run-00"


def test_annotations_of_a_bids_folder_agree_with_themselves(data_dir: Path, tmp_path: Path) -> None:
    folder, out = data_dir / "ieeg" / "bids_ieeg", tmp_path / "scores.json"
    assert score(folder, folder, out=out, strict=True) == 0
    result = json.loads(out.read_text())
    assert result["num_samples"] == 2
    assert result["details"]["seizures"] == 3
    assert result["metrics"]["event_f1"]["value"] == result["metrics"]["sample_f1"]["value"] == 1
    assert result["metrics"]["delay_median"]["value"] == 0


def test_a_missed_seizure_and_a_missing_file(data_dir: Path, tmp_path: Path) -> None:
    # The second seizure begins at 377.56 s: the alarm ends before its tolerance begins.
    events = [Interval(150.0, 170.0), Interval(340.0, 347.0)]
    write_events(tmp_path / "found" / f"{SESSION}_events.tsv", events, 613.0)
    out = tmp_path / "scores.json"
    score(data_dir / "ieeg" / "bids_ieeg", tmp_path / "found", out=out)
    result = json.loads(out.read_text())
    assert [entry["status"] for entry in result["files"]] == ["ok", "failed"]
    assert result["files"][0] | {"patient": ""} == {
        "recording": SESSION, "patient": "", "status": "ok", "true": 2, "hits": 1,
        "false_alarms": 1, "duration": 613.0, "delays": [150.0 - 141.59, None],
    }  # fmt: skip
