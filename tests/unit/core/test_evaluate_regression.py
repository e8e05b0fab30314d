from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from manyhead.registry import get
from manyhead_core.errors import DataError
from manyhead_core.evaluate.calibrate import calibrate
from manyhead_core.evaluate.compare import compare_results
from manyhead_core.evaluate.intervals import bootstrap
from manyhead_core.evaluate.page import report
from manyhead_core.evaluate.predictions import read_results, write_results
from manyhead_core.evaluate.regression import (
    NumberStatistics,
    evaluate_regression,
    number_rows,
)


def numbers(rows: int = 120, noise: float = 0.7, decimals: int = 1, far: float = 0) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    score = far + generator.normal(size=rows)
    label = np.round(0.2 + 0.8 * score + noise * generator.normal(size=rows), decimals)
    columns = {"id": np.arange(rows), "group": [f"p{k // 2}" for k in range(rows)]}
    columns |= {"label": label, "status": "ok", "score": np.round(score, decimals)}
    return pd.DataFrame(columns)


@pytest.mark.parametrize(("decimals", "far"), [(0, 0.0), (1, 0.0), (9, 0.0), (9, 1e6)])
def test_metrics_equal_those_of_scikit_learn_and_scipy(decimals: int, far: float) -> None:
    frame = numbers(decimals=decimals, far=far)
    label, score = frame["label"], frame["score"]
    metrics = evaluate_regression(frame, draws=5).metrics
    found = {name: entry.value for name, entry in metrics.items()}
    assert found == pytest.approx(
        {
            "mae": sk.mean_absolute_error(label, score),
            "rmse": sk.root_mean_squared_error(label, score),
            "r2": sk.r2_score(label, score),
            "pearson": stats.pearsonr(label, score).statistic,
            "spearman": stats.spearmanr(label, score).statistic,
            "bias": (score - label).mean(),
        },
        rel=1e-8,
    )


def test_a_draw_equals_the_repeated_table() -> None:
    frame = numbers(rows=40)
    rows = number_rows(frame)
    draws: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        draws.append(weights)
        return NumberStatistics(rows)(weights)

    found = bootstrap(statistic, rows.units, 5, seed=1)
    for draw, row in zip(np.concatenate(draws), found, strict=True):
        repeated = number_rows(frame.loc[np.repeat(frame.index, draw.astype(int))])
        expected = NumberStatistics(repeated)(np.ones((1, len(repeated.labels))))[0]
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_intervals_hold_the_estimate_and_the_baseline_is_the_mean() -> None:
    frame = numbers()
    found = evaluate_regression(frame, draws=300)
    for entry in found.metrics.values():
        assert entry.low < entry.value < entry.high
    mean = frame["label"].mean()
    assert found.baseline["rmse"] == pytest.approx(frame["label"].std(ddof=0))
    assert found.baseline["mae"] == pytest.approx((frame["label"] - mean).abs().mean())
    assert found.kind == "regression"


def test_constant_labels_or_scores_leave_correlations_undefined() -> None:
    same = evaluate_regression(numbers().assign(label=2.5), draws=20)
    assert same.metrics["r2"].value is None
    assert same.metrics["pearson"].value is None
    assert any("all labels are equal" in note for note in same.notes)
    flat = evaluate_regression(numbers().assign(score=0.3), draws=20).metrics
    assert (flat["pearson"].value, flat["spearman"].value) == (None, None)
    assert flat["r2"].value < 0


def test_infinite_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="score is not finite in 120 of 120 rows"):
        evaluate_regression(numbers().assign(score=np.inf))


def test_report_and_compare_and_no_calibration(tmp_path: Path) -> None:
    runs = []
    for name, noise in (("good", 0.2), ("bad", 2.0)):
        frame = numbers()
        frame["score"] += noise * np.random.default_rng(5).normal(size=len(frame))
        for folder in (tmp_path / name, tmp_path / name / "validation"):
            write_results(folder, frame, evaluate_regression(frame, draws=5), {"app": "autoint"})
        runs.append(tmp_path / name)
    report(get("autoint"), runs[0])
    text = (runs[0] / "report.html").read_text()
    assert "Predicted against true values" in text
    assert "constant mean" in text
    rows = compare_results([read_results(run) for run in runs], draws=200)
    worse = next(row for row in rows if row.metric == "mae" and row.difference is not None)
    assert 0 < worse.low < worse.difference < worse.high
    with pytest.raises(DataError, match="only probabilities can be calibrated"):
        calibrate(get("autoint"), runs[0])
