import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from manyhead.registry import get
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.calibrate import calibrate, saved_temperature
from manyhead_core.evaluate.compare import compare, compare_results
from manyhead_core.evaluate.confusion import kappa
from manyhead_core.evaluate.intervals import bootstrap, delong, delong_interval
from manyhead_core.evaluate.multiclass import (
    ClassStatistics,
    class_rows,
    confusion,
    evaluate_multiclass,
)
from manyhead_core.evaluate.page import report
from manyhead_core.evaluate.predictions import read_results, write_results

NAMES = ("benign", "atypical", "malignant", "other")


def slides(
    classes: int = 4, rows: int = 240, seed: int = 0, sharpness: float = 1.0, noise: float = 0.0
) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    label = generator.choice(
        classes, rows, p=np.arange(1, classes + 1) / (classes + 1) / classes * 2
    )
    logits = generator.normal(size=(rows, classes))
    logits[np.arange(rows), label] += 1.5
    # Softmax of such logits is calibrated; sharpness spoils it, and noise the order.
    logits = 1.5 * logits - 1.5 * np.log(1) + np.log(np.arange(1, classes + 1))
    logits += noise * np.random.default_rng(9).normal(size=logits.shape)
    scores = np.exp(sharpness * logits)
    scores /= scores.sum(axis=1, keepdims=True)
    columns = {"id": np.arange(rows), "group": [f"p{k // 2}" for k in range(rows)], "site": ""}
    columns |= {"label": label, "status": "ok"}
    columns |= {f"score_{name}": scores[:, k] for k, name in enumerate(NAMES[:classes])}
    return pd.DataFrame(columns)


def parts(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = frame[[name for name in frame if name.startswith("score_")]].to_numpy()
    return frame["label"].to_numpy(), scores, scores.argmax(axis=1)


def values(frame: pd.DataFrame) -> dict[str, float]:
    found = evaluate_multiclass(frame, draws=5).metrics
    return {name: entry.value for name, entry in found.items()}


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_metrics_equal_those_of_scikit_learn(classes: int) -> None:
    frame = slides(classes)
    label, scores, predicted = parts(frame)
    found = values(frame)
    expected = {
        "accuracy": sk.accuracy_score(label, predicted),
        "macro_f1": sk.f1_score(label, predicted, average="macro"),
        "macro_f1_declared": sk.f1_score(label, predicted, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(label, predicted),
        "kappa": sk.cohen_kappa_score(label, predicted),
        "logloss": sk.log_loss(label, scores),
        "brier": sk.brier_score_loss(label, scores if classes > 2 else scores[:, 1]),
    }
    if classes == 2:
        expected["auroc"] = sk.roc_auc_score(label, scores[:, 1])
        expected["average_precision"] = sk.average_precision_score(label, scores[:, 1])
    else:
        expected["auroc"] = sk.roc_auc_score(label, scores, multi_class="ovr")
        truth = np.eye(classes)[label]
        expected["average_precision"] = sk.average_precision_score(truth, scores)
        weighted = sk.cohen_kappa_score(label, predicted, weights="quadratic")
        expected["quadratic_kappa"] = weighted
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert expected["accuracy"] == pytest.approx(sk.f1_score(label, predicted, average="micro"))


def test_each_class_equals_scikit_learn() -> None:
    frame = slides()
    label, scores, predicted = parts(frame)
    evaluation = evaluate_multiclass(frame, draws=50)
    precision, recall, f1, support = sk.precision_recall_fscore_support(label, predicted)
    for k, entry in enumerate(evaluation.classes):
        assert (entry["class"], entry["support"]) == (NAMES[k], support[k])
        assert entry["predicted"] == (predicted == k).sum()
        assert entry["precision"]["value"] == pytest.approx(precision[k])
        assert entry["sensitivity"]["value"] == pytest.approx(recall[k])
        assert entry["f1"]["value"] == pytest.approx(f1[k])
        spared = sk.recall_score(label != k, predicted != k)
        assert entry["specificity"]["value"] == pytest.approx(spared)
        area = sk.roc_auc_score(label == k, scores[:, k])
        assert entry["auroc"]["value"] == pytest.approx(area)
        assert entry["auroc"]["low"] < area < entry["auroc"]["high"]
    found = evaluation.details["confusion"]
    assert found["rows_are_labels"] == sk.confusion_matrix(label, predicted).tolist()
    assert found["classes"] == list(NAMES)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for low in range(15):
        chosen = np.minimum((confidence * 15).astype(int), 14) == low
        if chosen.any():
            total += chosen.mean() * abs(confidence[chosen].mean() - right[chosen].mean())
    return total


def test_calibration_errors_by_hand() -> None:
    frame = slides(3, sharpness=2.0)
    label, scores, predicted = parts(frame)
    found = evaluate_multiclass(frame, draws=5)
    top = calibration_error(scores.max(axis=1), predicted == label)
    each = [calibration_error(scores[:, k], label == k) for k in range(3)]
    metrics = found.metrics
    assert metrics["expected_calibration_error"].value == pytest.approx(top)
    assert metrics["classwise_calibration_error"].value == pytest.approx(np.mean(each))
    assert metrics["expected_calibration_error"].low is None
    assert sum(part["count"] for part in found.calibration["bins"]) == len(frame)
    assert list(found.calibration["classes"]) == list(NAMES[:3])


@pytest.mark.parametrize("decimals", [1, 12])
def test_sensitivity_at_a_specificity_is_the_best_threshold_that_keeps_it(decimals: int) -> None:
    frame = slides(2, rows=150)
    score = np.round(frame["score_atypical"], decimals)
    frame = frame.assign(score_benign=1 - score, score_atypical=score)
    label = frame["label"].to_numpy()
    found = values(frame)
    for target, name in ((0.9, "90"), (0.95, "95")):
        best = 0.0
        for threshold in score.unique():
            positive = (score >= threshold).to_numpy()
            if (~positive)[label == 0].mean() >= target - 1e-12:
                best = max(best, positive[label == 1].mean())
        assert found[f"sensitivity_at_specificity_{name}"] == pytest.approx(best)


def test_ten_negatives_may_hold_one_false_positive_at_90_percent() -> None:
    score = np.r_[np.linspace(0.1, 0.4, 9), 0.8, 0.7, 0.9]
    frame = pd.DataFrame({"label": [0] * 10 + [1, 1], "score_a": 1 - score, "score_b": score})
    found = values(frame)
    assert found["sensitivity_at_specificity_90"] == 1.0
    assert found["sensitivity_at_specificity_95"] == 0.5


def test_two_classes_have_the_interval_of_delong() -> None:
    frame = slides(2)
    label, scores, _ = parts(frame)
    found = evaluate_multiclass(frame, draws=20)
    codes = frame["id"].to_numpy() // 2
    low, high = delong_interval(delong(label, scores[:, 1], codes))
    assert (found.metrics["auroc"].low, found.metrics["auroc"].high) == (low, high)
    assert found.interval["auroc"] == "DeLong, logit scale, by group"
    assert any("positive class is atypical" in note for note in found.notes)


def test_an_absent_class_has_no_metrics_and_is_named() -> None:
    frame = slides(4)
    frame = frame[frame["label"] != 3].reset_index(drop=True)
    label, scores, predicted = parts(frame)
    found = evaluate_multiclass(frame, draws=20)
    areas = [sk.roc_auc_score(label == k, scores[:, k]) for k in range(3)]
    assert found.metrics["auroc"].value == pytest.approx(np.mean(areas))
    each = sk.f1_score(label, predicted, labels=[0, 1, 2], average=None)
    assert found.metrics["macro_f1"].value == pytest.approx(each.mean())
    assert found.metrics["macro_f1_declared"].value == pytest.approx(each.sum() / 4)
    assert found.classes[3]["auroc"]["value"] is None
    assert found.classes[3]["sensitivity"]["value"] is None
    assert (predicted == 3).any()
    assert found.classes[3]["precision"]["value"] == 0
    assert any("no row of class other" in note for note in found.notes)
    json.dumps(found.to_json(), allow_nan=False)


def test_one_class_only_leaves_ranking_undefined() -> None:
    found = evaluate_multiclass(slides(3).assign(label=1), draws=20)
    assert found.metrics["auroc"].value is None
    assert found.metrics["accuracy"].value is not None
    assert any("all labels are of one class" in note for note in found.notes)


def test_a_draw_equals_the_repeated_table() -> None:
    frame = slides(3, rows=60)
    rows = class_rows(frame)
    draws: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        draws.append(weights)
        return ClassStatistics(rows)(weights)

    found = bootstrap(statistic, rows.units, 4, seed=3)
    weights = np.concatenate(draws)
    for draw, row in zip(weights, found, strict=True):
        repeated = class_rows(frame.loc[np.repeat(frame.index, draw.astype(int))])
        whole = ClassStatistics(repeated)
        expected = whole(np.ones((1, len(repeated.labels))))[0]
        np.testing.assert_allclose(row, expected, atol=1e-12)
        assert (draw[::2] == draw[1::2]).all()  # both slides of a patient


def test_kappa_is_undefined_when_chance_always_agrees() -> None:
    assert np.isnan(kappa(np.array([[[5.0, 0.0], [0.0, 0.0]]]))[0])
    assert kappa(np.array([[[5.0, 0.0], [0.0, 5.0]]]))[0] == 1


def test_the_baseline_predicts_the_class_frequencies() -> None:
    frame = slides(3)
    label, _, _ = parts(frame)
    share = np.bincount(label) / len(label)
    found = evaluate_multiclass(frame, draws=5).baseline
    assert found["logloss"] == pytest.approx(-(share * np.log(share)).sum())
    assert found["accuracy"] == pytest.approx(share.max())
    assert (found["auroc"], found["kappa"]) == (0.5, 0)
    assert list(found["rates"].values()) == pytest.approx(share.tolist())


def test_few_patients_are_shown_and_have_no_interval() -> None:
    frame = slides(3, rows=18)
    found = evaluate_multiclass(frame)
    assert found.interval["draws"] == 0
    assert found.metrics["accuracy"].low is None
    assert len(found.groups) == 9
    assert sum(entry["n"] for entry in found.groups) == 18


def test_sites_are_segments() -> None:
    frame = slides(3).assign(site=np.where(np.arange(240) < 160, "north", "south"))
    found = evaluate_multiclass(frame, draws=50).segments["site"]
    assert [(entry["value"], entry["n"]) for entry in found] == [("north", 160), ("south", 80)]
    alone = values(frame[frame["site"] == "south"])
    assert found[1]["auroc"] == pytest.approx(alone["auroc"])
    assert found[1]["auroc_low"] < found[1]["auroc"] < found[1]["auroc_high"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 7}, "label is no class number from 0 to 2 in 240 of 240 rows"),
        ({"label": 0.5}, "label is no class number"),
        ({"score_benign": 1.5}, "no probability"),
        ({"score_benign": np.nan}, "score_benign is missing or not a number"),
        ({"score_benign": 0.0}, "not 1 in sum over the classes"),
        ({"status": "failed"}, "none of the 240 rows has the status ok"),
    ],
)
def test_values_that_cannot_be_used_are_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_multiclass(slides(3).assign(**change))


def test_one_score_column_is_refused() -> None:
    with pytest.raises(DataError, match="1 columns score_<class>; two are needed"):
        evaluate_multiclass(pd.DataFrame({"label": [0], "score_a": [1.0]}))


def write(folder: Path, frame: pd.DataFrame, checkpoint: str = "abc") -> Path:
    meta = {"app": "autoint", "config": "small", "seed": 3, "checkpoint_hash": checkpoint}
    write_results(folder, frame, evaluate_multiclass(frame, draws=20), meta)
    return folder


@pytest.mark.parametrize("classes", [2, 4])
def test_the_report_has_the_sections_of_classes(tmp_path: Path, classes: int) -> None:
    write(tmp_path, slides(classes).assign(site=["x", "y"] * 120))
    report(get("autoint"), tmp_path)
    text = (tmp_path / "report.html").read_text()
    for part in ("Classes", "Ranking", "Calibration", "Segments"):
        assert f">{part}</h2>" in text
    assert text.count("<svg role") == 5
    assert "Confusion matrix" in text
    assert "malignant" in text or classes == 2


def test_calibrate_finds_the_sharpness_of_several_classes(tmp_path: Path) -> None:
    write(tmp_path / "validation", slides(3, rows=4000, seed=1, sharpness=2.0))
    write(tmp_path, slides(3, rows=2000, seed=2, sharpness=2.0))
    with pytest.raises(UserError, match="several classes take a temperature"):
        calibrate(get("autoint"), tmp_path, bias=True)
    calibrate(get("autoint"), tmp_path)
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["temperature"] == pytest.approx(2.0, rel=0.1)
    effect = found["effect"]["test"]
    assert effect["after"]["logloss"] < effect["before"]["logloss"]
    error = "expected_calibration_error"
    assert effect["after"][error] < effect["before"][error] / 2
    results = read_results(tmp_path)
    scores = class_rows(results.frame).scores
    applied = saved_temperature(results).apply(scores)
    np.testing.assert_allclose(applied.sum(axis=1), 1)
    assert (applied.argmax(axis=1) == scores.argmax(axis=1)).all()
    report(get("autoint"), tmp_path)
    assert "fitted on the validation samples" in (tmp_path / "report.html").read_text()


def test_compare_pairs_the_metrics_of_classes(tmp_path: Path) -> None:
    good, bad = slides(3), slides(3, noise=2.0)
    runs = [write(tmp_path / "good", good), write(tmp_path / "bad", bad.sample(frac=1))]
    rows = compare_results([read_results(run) for run in runs], draws=200)
    found = {(Path(row.run).name, row.metric): row for row in rows}
    expected = values(bad)
    for name in ("auroc", "macro_f1", "balanced_accuracy", "logloss"):
        row = found["bad", name]
        assert row.value == pytest.approx(expected[name])
        assert row.difference == pytest.approx(expected[name] - values(good)[name])
        assert row.low < row.difference < row.high
        assert row.p is None
    assert found["bad", "auroc"].high < 0
    assert found["bad", "auroc:malignant"].difference < 0


def test_compare_has_a_p_for_two_classes_and_refuses_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / "a", slides(2)), write(tmp_path / "b", slides(2, noise=3.0))]
    compare({}, runs, draws=50)
    assert "balanced_accuracy" in capsys.readouterr().out
    rows = compare_results([read_results(run) for run in runs], draws=50)
    assert next(row for row in rows if row.p is not None).metric == "auroc"
    renamed = slides(2).rename(columns={"score_benign": "score_other"})
    other = write(tmp_path / "c", renamed)
    with pytest.raises(DataError, match="has other classes, or in another order"):
        compare_results([read_results(runs[0]), read_results(other)])


def test_confusion_counts_rows_by_true_then_predicted_class() -> None:
    frame = pd.DataFrame({"label": [0, 0, 1], "score_a": [0.9, 0.2, 0.1]})
    assert confusion(class_rows(frame.assign(score_b=1 - frame["score_a"]))) == [[1, 1], [0, 1]]
