from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from manyhead.registry import get
from manyhead_core.errors import DataError
from manyhead_core.evaluate.compare import compare_results
from manyhead_core.evaluate.intervals import bootstrap
from manyhead_core.evaluate.page import report
from manyhead_core.evaluate.predictions import read_results, write_results
from manyhead_core.evaluate.survival import (
    TimeStatistics,
    evaluate_survival,
    kaplan_meier,
    log_rank,
    time_rows,
)


def patients(rows: int = 120, noise: float = 0.5) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    risk = generator.normal(size=rows)
    death = np.round(generator.exponential(np.exp(-risk)), 1)
    end = np.round(generator.exponential(1.5, rows), 1)
    score = np.round(risk + noise * np.random.default_rng(1).normal(size=rows), 1)
    columns = {"id": np.arange(rows), "group": [f"p{k // 2}" for k in range(rows)]}
    columns |= {"label": np.minimum(death, end), "event": death <= end, "status": "ok"}
    return pd.DataFrame(columns | {"score": score})


def harrell(frame: pd.DataFrame) -> float:
    time, event, risk = (frame[name].to_numpy() for name in ("label", "event", "score"))
    wins = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                wins += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    return wins / pairs


def test_concordance_equals_a_loop_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = patients(80)
    assert frame["label"].duplicated().any()
    assert frame["score"].duplicated().any()
    found = evaluate_survival(frame, draws=300).metrics["concordance"]
    assert found.value == pytest.approx(harrell(frame), abs=1e-12)
    assert found.low < found.value < found.high
    monkeypatch.setattr("manyhead_core.evaluate.survival.BLOCK_PAIRS", 200)
    again = evaluate_survival(frame, draws=5).metrics["concordance"].value
    assert again == pytest.approx(found.value)


def test_concordance_is_one_in_the_right_order_and_zero_in_the_other() -> None:
    frame = pd.DataFrame({"label": [1.0, 2, 3], "event": [1, 1, 0], "score": [3.0, 2, 1]})
    assert evaluate_survival(frame, draws=5).metrics["concordance"].value == 1
    turned = evaluate_survival(frame.assign(score=-frame["score"]), draws=5)
    assert turned.metrics["concordance"].value == 0


def test_a_draw_equals_the_repeated_table() -> None:
    frame = patients(40)
    rows = time_rows(frame)
    draws: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        draws.append(weights)
        return TimeStatistics(rows)(weights)

    found = bootstrap(statistic, rows.units, 4, seed=1)
    for draw, row in zip(np.concatenate(draws), found, strict=True):
        repeated = frame.loc[np.repeat(frame.index, draw.astype(int))].reset_index(drop=True)
        assert row[0] == pytest.approx(harrell(repeated), abs=1e-12)


def test_the_curve_equals_that_of_scipy() -> None:
    frame = patients()
    time, event = frame["label"].to_numpy(), frame["event"].to_numpy()
    curve = kaplan_meier(time, event)
    expected = stats.ecdf(stats.CensoredData.right_censored(time, ~event)).sf
    np.testing.assert_allclose(curve.survival[1:], expected.probabilities)
    np.testing.assert_allclose(curve.time[1:], expected.quantiles)
    limits = expected.confidence_interval(method="log-log")
    for ours, theirs in ((curve.low, limits.low), (curve.high, limits.high)):
        known = np.isfinite(theirs.probabilities)
        np.testing.assert_allclose(np.array(ours[1:])[known], theirs.probabilities[known])
    below = expected.quantiles[expected.probabilities <= 0.5]
    assert curve.median == below[0]
    assert (curve.n, curve.events, curve.at_risk[0]) == (120, event.sum(), 120)


def test_without_an_event_the_curve_stays_at_one() -> None:
    curve = kaplan_meier(np.array([1.0, 2.0]), np.array([False, False]))
    assert curve.survival == [1, 1, 1]
    assert curve.median is None


def test_log_rank_equals_scipy() -> None:
    frame = patients()
    time, event = frame["label"].to_numpy(), frame["event"].to_numpy()
    chosen = np.random.default_rng(3).random(len(time)) < 0.4
    sides = [
        stats.CensoredData.right_censored(time[part], ~event[part]) for part in (chosen, ~chosen)
    ]
    p, ratio = log_rank(time, event, chosen)
    assert p == pytest.approx(stats.logrank(*sides).pvalue)
    assert ratio == pytest.approx(1 / log_rank(time, event, ~chosen)[1])


def test_risk_groups_split_at_the_median() -> None:
    found = evaluate_survival(patients(noise=0.1), draws=5)
    low, high = found.details["curves"]
    assert (low["name"], high["name"]) == ("low risk", "high risk")
    assert low["n"] + high["n"] == 120
    assert high["survival"][-1] < low["survival"][-1]
    assert found.details["log_rank_p"] < 1e-4
    assert found.details["hazard_ratio"] > 1.5
    assert found.details["num_events"] == low["events"] + high["events"]
    assert any("several rows" in note for note in found.notes)


def test_no_event_and_equal_risks_leave_things_undefined() -> None:
    none = evaluate_survival(patients().assign(event=0), draws=5)
    assert none.metrics["concordance"].value is None
    assert none.details["log_rank_p"] is None
    flat = evaluate_survival(patients().assign(score=1.0), draws=5)
    assert flat.metrics["concordance"].value == 0.5
    assert flat.details["curves"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event": 2}, "event is neither 0 nor 1"),
        ({"event": "yes"}, "event is missing or not a number"),
        ({"label": -1.0}, "label is no time of 0 or more"),
        ({"score": np.inf}, "score is not finite"),
    ],
)
def test_values_that_cannot_be_used_are_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_survival(patients().assign(**change))


def test_report_and_compare_read_what_was_written(tmp_path: Path) -> None:
    runs = []
    for name, noise in (("good", 0.1), ("bad", 3.0)):
        frame = patients(noise=noise)
        write_results(tmp_path / name, frame, evaluate_survival(frame, draws=5), {"app": "autoint"})
        runs.append(tmp_path / name)
    report(get("autoint"), runs[0])
    text = (runs[0] / "report.html").read_text()
    assert "Kaplan-Meier curves" in text
    assert "p below 0.0001" in text
    rows = compare_results([read_results(run) for run in runs], draws=200)
    assert rows[1].metric == "concordance"
    assert rows[1].low < rows[1].difference < rows[1].high < 0
    flat = patients().assign(score=0.0)
    write_results(tmp_path / "flat", flat, evaluate_survival(flat, draws=5), {"app": "autoint"})
    report(get("autoint"), tmp_path / "flat")
    assert "All predicted risks are equal" in (tmp_path / "flat" / "report.html").read_text()
