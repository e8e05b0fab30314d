import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from manyhead_core.errors import DataError
from manyhead_core.evaluate.binary import BinaryStatistics, binary_rows, evaluate_binary, roc_auc
from manyhead_core.evaluate.intervals import bootstrap


def clicks(rows: int = 600, groups: int = 40, seed: int = 0, decimals: int = 2) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    group = generator.integers(0, groups, rows)
    logit = -0.8 + generator.normal(size=groups)[group] + generator.normal(size=rows)
    label = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
    score = 1 / (1 + np.exp(-logit - generator.normal(size=rows)))
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "group": [f"g{number}" for number in group],
            "label": label,
            "status": "ok",
            "score": np.round(score, decimals),
            "segment_side": np.where(group % 2, "left", "right"),
        }
    )


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_metrics_equal_those_of_scikit_learn(decimals: int) -> None:
    frame = clicks(decimals=decimals)
    found = {name: entry.value for name, entry in evaluate_binary(frame, draws=5).metrics.items()}
    label, score = frame["label"], frame["score"]
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert roc_auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    precision = average_precision_score(label, score)
    assert found["average_precision"] == pytest.approx(precision, abs=1e-12)
    assert found["logloss"] == pytest.approx(log_loss(label, clipped), abs=1e-12)
    assert found["brier"] == pytest.approx(brier_score_loss(label, score), abs=1e-12)
    assert found["calibration"] == pytest.approx(score.mean() / label.mean())


def test_gauc_weights_users_by_their_positives_and_skips_users_of_one_class() -> None:
    frame = clicks(rows=200, groups=60)
    total = weight = 0.0
    for _, rows in frame.groupby("group"):
        if rows["label"].nunique() == 2:
            total += rows["label"].sum() * roc_auc_score(rows["label"], rows["score"])
            weight += rows["label"].sum()
    assert frame.groupby("group")["label"].nunique().min() == 1
    assert evaluate_binary(frame, draws=5).metrics["gauc"].value == pytest.approx(total / weight)


def test_calibration_error_and_information_gain_by_hand() -> None:
    frame = pd.DataFrame({"label": [0, 1, 1, 0], "score": [0.1, 0.1, 0.9, 0.9]})
    found = evaluate_binary(frame, draws=5).metrics
    assert found["expected_calibration_error"].value == pytest.approx(0.4)
    loss = -(np.log(0.9) + np.log(0.1)) / 2
    assert found["relative_information_gain"].value == pytest.approx(1 - loss / np.log(2))


def test_the_constant_predictor_gains_no_information() -> None:
    frame = clicks()
    frame["score"] = frame["label"].mean()
    evaluation = evaluate_binary(frame, draws=5)
    loss = evaluation.metrics["logloss"].value
    assert evaluation.baseline["logloss"] == pytest.approx(loss)
    assert evaluation.metrics["relative_information_gain"].value == pytest.approx(0, abs=1e-12)
    assert evaluation.metrics["auroc"].value == pytest.approx(0.5)


def test_multiplicities_equal_repeated_rows() -> None:
    frame = clicks(rows=80, groups=7, decimals=1)
    rows = binary_rows(frame)
    counts = np.random.default_rng(1).integers(0, 4, rows.num_groups)[rows.groups]
    repeated = frame.loc[frame.index.repeat(counts)]
    statistics = BinaryStatistics(rows)
    weighted = dict(zip(statistics.names, statistics(counts[None].astype(float))[0], strict=True))
    # gauc: a group drawn twice counts twice, as two groups of the same rows would.
    direct = evaluate_binary(repeated, draws=5).metrics
    for name, value in weighted.items():
        if name != "gauc":
            assert value == pytest.approx(direct[name].value, abs=1e-12), name


def test_bootstrap_of_the_area_equals_a_loop_over_resampled_groups() -> None:
    frame = clicks(rows=120, groups=15)
    rows = binary_rows(frame)
    statistics = BinaryStatistics(rows)
    found = bootstrap(statistics, rows.groups, draws=20, seed=3)
    generator = np.random.default_rng(3)
    for draw in found:
        chosen = generator.integers(0, 15, 15)
        picked = np.concatenate([np.flatnonzero(rows.groups == group) for group in chosen])
        expected = roc_auc_score(rows.labels[picked], rows.scores[picked])
        assert draw[0] == pytest.approx(expected, abs=1e-12)


def test_intervals_contain_the_estimate_and_repeat_with_the_seed() -> None:
    first = evaluate_binary(clicks(), draws=200)
    again = evaluate_binary(clicks(), draws=200)
    assert first == again
    for name in ("auroc", "average_precision", "logloss", "brier", "gauc"):
        entry = first.metrics[name]
        assert entry.low < entry.value < entry.high
    assert first.interval["unit"] == "group"
    assert first.interval["draws"] == 200


def test_rows_without_groups_have_a_delong_interval_and_no_gauc() -> None:
    frame = clicks()
    frame["group"] = ""
    evaluation = evaluate_binary(frame, draws=50)
    assert "gauc" not in evaluation.metrics
    assert evaluation.num_groups == 0
    assert evaluation.interval["auroc"] == "DeLong, logit scale"
    assert evaluation.interval["unit"] == "row"


def test_dependent_rows_widen_the_interval() -> None:
    frame = clicks(rows=2000, groups=30)
    by_group = evaluate_binary(frame, draws=400).metrics["logloss"]
    by_row = evaluate_binary(frame.drop(columns="group"), draws=400).metrics["logloss"]
    assert by_group.high - by_group.low > 1.5 * (by_row.high - by_row.low)


def test_below_ten_groups_each_group_is_shown_and_no_interval() -> None:
    evaluation = evaluate_binary(clicks(groups=9), draws=50)
    assert all(entry.low is None and entry.high is None for entry in evaluation.metrics.values())
    assert [entry["value"] for entry in evaluation.groups] == [f"g{k}" for k in range(9)]
    assert sum(entry["n"] for entry in evaluation.groups) == 600


def test_labels_of_one_class_leave_ranking_undefined_and_the_rest_defined() -> None:
    frame = clicks()
    frame["label"] = 0
    evaluation = evaluate_binary(frame, draws=20)
    assert evaluation.metrics["auroc"].value is None
    assert evaluation.metrics["logloss"].value > 0
    assert any("one class" in note for note in evaluation.notes)
    json.dumps(evaluation.to_json(), allow_nan=False)


def test_rows_that_failed_are_left_out_and_counted() -> None:
    frame = clicks()
    failed = frame.copy()
    failed.loc[:9, "status"] = "failed"
    failed.loc[:9, "score"] = np.nan
    evaluation = evaluate_binary(failed, draws=20)
    assert evaluation.num_excluded == 10
    assert evaluation.num_samples == 590
    assert evaluation.metrics["auroc"] == evaluate_binary(frame[10:], draws=20).metrics["auroc"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.nan, "score is missing or not a number in 1 of 600 rows .* first in id 7"),
        ("score", 1.5, "score is no probability"),
        ("label", np.nan, "label is missing"),
        ("label", 2.0, "label is neither 0 nor 1"),
    ],
)
def test_unusable_values_are_named_in_one_line(column: str, value: float, message: str) -> None:
    frame = clicks()
    frame.loc[7, column] = value
    with pytest.raises(DataError, match=message) as caught:
        evaluate_binary(frame)
    assert "\n" not in str(caught.value)


def test_missing_columns_and_tables_without_a_usable_row_are_refused() -> None:
    with pytest.raises(DataError, match="column score is missing"):
        evaluate_binary(clicks().drop(columns="score"))
    with pytest.raises(DataError, match="none of the 600 rows"):
        evaluate_binary(clicks().assign(status="failed"))


def test_segments_are_metrics_of_their_rows() -> None:
    frame = clicks()
    left = evaluate_binary(frame, draws=5).segments["side"][0]
    rows = frame[frame["segment_side"] == "left"]
    assert left["value"] == "left"
    assert left["n"] == len(rows)
    assert left["auroc"] == pytest.approx(roc_auc_score(rows["label"], rows["score"]))
    assert left["auroc_low"] < left["auroc"] < left["auroc_high"]


def test_many_rows_use_fewer_draws_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyhead_core.evaluate.binary.MANY_ROWS", 500)
    monkeypatch.setattr("manyhead_core.evaluate.binary.ROW_DRAWS", 600 * 250)
    interval = evaluate_binary(clicks(), draws=2000).interval
    assert interval["draws"] == 250
    assert interval["auroc"] == "DeLong, logit scale, by group"
