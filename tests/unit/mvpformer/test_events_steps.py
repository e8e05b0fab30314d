import math

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from manyhead.mvpformer.events.rates import alarms_per_day, alarms_per_hour
from manyhead.mvpformer.events.steps import areas, step_counts, step_metrics


def test_metrics_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    label = generator.random(500) < 0.2
    probability = np.round(np.clip(0.4 * label + 0.7 * generator.random(500), 0, 1), 2)
    called = probability > 0.5
    found = step_metrics(step_counts(label, called))
    assert found["sensitivity"] == pytest.approx(recall_score(label, called))
    assert found["specificity"] == pytest.approx(recall_score(~label, ~called))
    assert found["precision"] == pytest.approx(precision_score(label, called))
    assert found["f1"] == pytest.approx(f1_score(label, called))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(label, called))
    expected = (roc_auc_score(label, probability), average_precision_score(label, probability))
    assert areas(label, probability) == pytest.approx(expected)


def test_undefined_metrics_are_nan() -> None:
    quiet = step_metrics(step_counts([0, 0], [0, 0]))
    assert quiet["specificity"] == 1
    assert all(math.isnan(quiet[name]) for name in ("sensitivity", "precision", "f1", "kappa"))
    assert all(map(math.isnan, areas([0, 0], [0.1, 0.2])))
    assert all(map(math.isnan, areas([1, 1], [0.1, 0.2])))
    missed = step_metrics(step_counts([0, 1], [0, 0]))
    assert (missed["sensitivity"], missed["f1"], missed["kappa"]) == (0, 0, 0)
    assert math.isnan(missed["precision"])


def test_kappa_is_undefined_when_both_are_constant() -> None:
    for label, called in ((0, 0), (1, 1), (0, 1), (1, 0)):
        found = step_metrics(step_counts([label] * 3, [called] * 3))
        assert math.isnan(found["kappa"])
    assert step_metrics(step_counts([0, 1, 0], [0, 1, 0]))["kappa"] == 1


def test_rates_count_all_recorded_time() -> None:
    assert alarms_per_hour(3, 7200) == 1.5
    assert alarms_per_day([1, 0], [86_400, 3600]).tolist() == [1, 0]
    assert math.isnan(alarms_per_day(0, 0))
