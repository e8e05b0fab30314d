import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.mvpformer.evaluate import KIND, evaluate, headline
from manyhead.mvpformer.events.table import event_rows, true_seizures
from manyhead.registry import get
from manyhead_core.app import App
from manyhead_core.errors import DataError
from manyhead_core.evaluate.compare import compare, compare_results
from manyhead_core.evaluate.page import report
from manyhead_core.evaluate.predictions import read_results, write_results

SEIZURES = ((600.0, 660.5), (2000.0, 2031.0))


def app() -> App:
    return dataclasses.replace(get("mvpformer"), kind="manyhead.mvpformer.evaluate:KIND")


def recording(patient: int, run: int = 0, *, seizures: bool = True, noise: float = 1) -> dict:
    generator = np.random.default_rng([patient, run])
    start = np.arange(720) * 5.0
    stop = start + 5
    part = np.full((2, 720), np.nan)
    for onset, offset in SEIZURES if seizures else ():
        inside = (stop > onset) & (start < offset)
        part[:, inside] = np.maximum(start, onset)[inside], np.minimum(stop, offset)[inside]
    label = np.isfinite(part[0]).astype(int)
    logit = 6.0 * label - 4 + noise * generator.normal(size=720)
    probability = 1 / (1 + np.exp(-logit))
    name = f"p{patient}-{run}"
    return {
        "id": [f"{name}:{k}" for k in range(720)], "group": f"g{patient:02d}", "site": "",
        "label": label, "status": "ok", "score": probability, "recording": name,
        "start": start, "stop": stop, "event_start": part[0], "event_stop": part[1],
        "detected": (probability > 0.5).astype(int), "threshold": 0.5,
    }  # fmt: skip


def table(patients: int = 12, noise: float = 1.0) -> pd.DataFrame:
    parts = [recording(k, seizures=k % 4 > 0, noise=noise) for k in range(patients)]
    parts += [recording(1, 1, noise=noise)]
    return pd.concat(map(pd.DataFrame, parts), ignore_index=True)


def test_seizures_of_the_table_are_counted_whole() -> None:
    found = evaluate(table(), draws=100)
    assert found.details["seizures"] == 2 * 10
    assert found.details["hours"] == pytest.approx(13)
    assert (found.num_samples, found.num_groups) == (13 * 720, 12)
    assert (found.kind, next(iter(found.metrics))) == ("events", "event_f1")
    sensitivity = found.metrics["event_sensitivity"]
    assert 0.8 < sensitivity.value <= 1
    assert sensitivity.low <= sensitivity.value <= sensitivity.high
    assert "30 s before to 60 s after" in found.notes[0]
    assert any(note.startswith("3 of 12 patients have no seizure") for note in found.notes)


def test_the_order_of_rows_does_not_matter() -> None:
    frame = table(3)
    one, two = (evaluate(f, draws=5) for f in (frame, frame.sample(frac=1, random_state=0)))
    assert one.metrics == two.metrics
    assert one.details == two.details


def test_a_perfect_detector_is_perfect() -> None:
    frame = table(4).assign(score=lambda t: t["label"], detected=lambda t: t["label"])
    values = {name: entry.value for name, entry in evaluate(frame).metrics.items()}
    for name in ("event_f1", "event_sensitivity", "step_f1", "step_kappa", "step_auroc"):
        assert values[name] == values[f"{name}_pooled"] == 1
    assert values["false_alarms_per_day"] == 0
    assert (values["delay_median"], values["within_10_s"]) == (5, 1)


def test_recordings_without_a_patient_are_units() -> None:
    found = evaluate(table(12).assign(group=""), draws=20)
    assert found.num_groups == 13
    assert found.interval["draws"] == 20


def test_undefined_metrics_are_none() -> None:
    frame = pd.DataFrame(recording(0, seizures=False)).assign(detected=0)
    found = evaluate(frame).metrics
    for name in ("event_f1", "event_sensitivity", "event_precision", "step_kappa", "step_auroc"):
        assert found[name].value is None
        assert found[f"{name}_pooled"].value is None
    assert found["delay_median"].value is None
    assert found["false_alarms_per_day"].value == 0


def test_few_patients_have_no_interval_but_are_shown() -> None:
    found = evaluate(table(5))
    assert all(entry.low is None for entry in found.metrics.values())
    assert [entry["value"] for entry in found.groups] == [f"g{k:02d}" for k in range(5)]
    assert found.groups[1]["recordings"] == 2
    assert found.groups[0]["event_sensitivity"] is None
    assert found.groups == found.details["patients"]


def test_failed_steps_are_left_out_and_counted() -> None:
    frame = table(3)
    frame.loc[[0, 1], ["status", "score"]] = ["failed", np.nan]
    found = evaluate(frame)
    assert (found.num_excluded, found.num_samples) == (2, 4 * 720 - 2)


def test_a_known_duration_is_what_alarms_are_divided_by() -> None:
    frame = table(2)
    longer = evaluate(frame.assign(duration=7200.0))
    once = evaluate(frame)
    assert longer.details["hours"] == 2 * once.details["hours"]


def test_the_table_survives_its_file(tmp_path: Path) -> None:
    frame = table(3).assign(detected=lambda t: t["detected"].astype(bool))
    found = evaluate(frame, draws=5)
    write_results(tmp_path, frame, found, {"app": "mvpformer"})
    again = read_results(tmp_path)
    assert evaluate(again.frame, draws=5).metrics == found.metrics
    assert json.loads((tmp_path / "metrics.json").read_text())["kind"] == "events"
    assert "event F1" in headline(again.metrics)


def test_sites_are_segments() -> None:
    frame = table(12)
    frame["site"] = np.where(frame["group"] < "g06", "north", "south")
    found = evaluate(frame, draws=20).segments["site"]
    assert [(entry["value"], entry["groups"]) for entry in found] == [("north", 6), ("south", 6)]
    assert found[0]["n"] + found[1]["n"] == len(frame)


def test_runs_are_compared_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [tmp_path / "good", tmp_path / "bad"]
    for folder, noise in zip(runs, (0.5, 3.0), strict=True):
        frame = table(12, noise)
        meta = {"app": "mvpformer", "config": "small", "seed": 0}
        write_results(folder, frame, evaluate(frame, draws=50), meta)
    rows = compare_results([read_results(run) for run in runs], draws=100, app=app())
    found = {(Path(row.run).name, row.metric): row for row in rows}
    worse = found["bad", "step_kappa"]
    assert worse.low <= worse.difference <= worse.high < 0
    assert found["bad", "false_alarms_per_day"].low > 0
    assert found["bad", "step_auroc"].p is None
    compare({"mvpformer": app()}, runs, draws=50)
    assert "event_f1" in capsys.readouterr().out
    report(app(), runs[0])
    page = (runs[0] / "report.html").read_text()
    for text in ("Tolerance of the event metrics: 30 s before", "false alarms/day", "Delay"):
        assert text in page
    assert "Research use only" in page


def test_a_page_of_few_patients_shows_each_once(tmp_path: Path) -> None:
    frame = table(3)
    meta = {"app": "mvpformer", "config": "small", "seed": 0}
    write_results(tmp_path, frame, evaluate(frame), meta)
    report(app(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("g01</th>") == 1
    assert "Too few patients for an interval" in page


def test_an_app_without_a_kind_cannot_read_the_results(tmp_path: Path) -> None:
    frame = table(2)
    write_results(tmp_path, frame, evaluate(frame), {"app": "mvpformer"})
    with pytest.raises(DataError, match="holds events results"):
        compare_results([read_results(tmp_path)] * 2)


def test_seizures_are_put_together_from_their_parts() -> None:
    start = np.r_[np.arange(6) * 5.0, 100 + np.arange(4) * 5.0]
    stop = start + 5
    onset, offset = np.full((2, 10), np.nan)
    onset[[1, 2, 5, 6, 8]] = [7, 10, 25, 100, 111]
    offset[[1, 2, 5, 6, 8]] = [10, 12, 30, 103, 113]
    assert true_seizures(start, stop, onset, offset) == [(7, 12), (25, 30), (100, 103), (111, 113)]


def test_parts_of_overlapping_and_of_distant_steps() -> None:
    for stride in (1.0, 5.0, 20.0):
        start = np.arange(100) * stride
        stop = start + 5
        inside = (stop > 41) & (start < 83)
        onset = np.where(inside, np.maximum(start, 41), np.nan)
        offset = np.where(inside, np.minimum(stop, 83), np.nan)
        assert true_seizures(start, stop, onset, offset) == [(41, 83)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detected": None}, "column detected is missing"),
        ({"label": 2}, "label is neither 0 nor 1"),
        ({"score": 1.5}, r"score is no probability"),
        ({"stop": 0.0}, "stop is not after start"),
        ({"start": 0.0}, "two steps that start at 0 s"),
        ({"detected": 0.5}, "detected is neither 0 nor 1"),
        ({"status": "failed"}, "none of the 2160 rows has the status ok"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(change: dict, message: str) -> None:
    frame = table(2)
    frame = (
        frame.drop(columns="detected") if change == {"detected": None} else frame.assign(**change)
    )
    with pytest.raises(DataError, match=message):
        evaluate(frame)


def test_the_kind_gives_what_the_evaluation_has() -> None:
    rows = event_rows(table(2))
    assert set(KIND.shown) <= set(KIND.statistics(rows).names)
    assert set(KIND.statistics(rows).names) == set(evaluate(table(2)).metrics)
