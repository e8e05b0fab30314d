import numpy as np
import pytest
from scipy.special import expit

from manyhead_core.errors import DataError
from manyhead_core.evaluate.calibration import (
    Temperature,
    calibration_error,
    fit_temperature,
    log_loss,
    reliability,
    to_logit,
)
from manyhead_core.evaluate.intervals import (
    bootstrap,
    delong,
    delong_interval,
    delong_paired,
    percentiles,
)
from manyhead_core.evaluate.ranking import midranks, roc_auc, roc_curve


def scores(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.4).astype(float)
    first = labels + generator.normal(size=rows)
    return labels, first, first + generator.normal(size=rows) * 0.7


def naive_delong(labels: np.ndarray, both: list[np.ndarray]) -> np.ndarray:
    """Covariance of the areas straight from the definition."""
    components = []
    for values in both:
        positive, negative = values[labels == 1], values[labels == 0]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        components.append((wins.mean(1), wins.mean(0)))
    above = np.cov([entry[0] for entry in components]) / int((labels == 1).sum())
    below = np.cov([entry[1] for entry in components]) / int((labels == 0).sum())
    return above + below


def test_delong_equals_its_definition() -> None:
    labels, first, second = scores(60)
    first = np.round(first, 1)
    covariance = naive_delong(labels, [first, second])
    area = delong(labels, first)
    assert area.value == pytest.approx(roc_auc(labels, first))
    assert area.error**2 == pytest.approx(covariance[0, 0])
    difference, p = delong_paired(labels, first, second)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert (difference.high - difference.low) / 2 == pytest.approx(1.959964 * variance**0.5)
    assert p is not None
    assert 0 < p < 1


def test_clusters_of_repeated_rows_have_the_error_of_the_rows_behind_them() -> None:
    labels, first, _ = scores(300)
    once = delong(labels, first)
    times = 5
    repeated = delong(np.repeat(labels, times), np.repeat(first, times))
    clustered = delong(
        np.repeat(labels, times), np.repeat(first, times), np.repeat(np.arange(300), times)
    )
    assert repeated.error == pytest.approx(once.error / times**0.5, rel=0.02)
    assert clustered.error == pytest.approx(once.error, rel=0.02)


def test_the_interval_covers_the_true_area() -> None:
    inside = 0
    for seed in range(200):
        labels, first, _ = scores(80, seed)
        low, high = delong_interval(delong(labels, first))
        inside += low <= 0.7602 <= high  # Phi(1 / sqrt 2)
    assert 180 <= inside <= 199


def test_complete_separation_has_a_lower_bound_below_one() -> None:
    labels = np.array([0.0, 0, 0, 1, 1])
    low, high = delong_interval(delong(labels, labels))
    assert (low, high) == (pytest.approx(0.025**0.5), 1.0)
    low, high = delong_interval(delong(labels, -labels))
    assert (low, high) == (0.0, pytest.approx(1 - 0.025**0.5))


def test_equal_scores_do_not_differ() -> None:
    labels, first, _ = scores(50)
    difference, p = delong_paired(labels, first, 3 * first)
    assert (difference.value, difference.low, difference.high, p) == (0, 0, 0, None)


def test_bootstrap_of_a_mean_has_the_standard_error_of_groups() -> None:
    generator = np.random.default_rng(0)
    means = generator.normal(size=50)
    units = np.repeat(np.arange(50), 20)

    def mean(weights: np.ndarray) -> np.ndarray:
        return (weights @ means[units] / weights.sum(1))[:, None]

    draws = bootstrap(mean, units, draws=2000, seed=1)
    assert draws.shape == (2000, 1)
    assert draws.std() == pytest.approx(means.std() / 50**0.5, rel=0.1)


def test_percentiles_leave_out_undefined_draws_up_to_one_half() -> None:
    assert percentiles(np.array([np.nan, 1.0, 2.0, 3.0])) == (
        pytest.approx(1.05),
        pytest.approx(2.95),
    )
    assert percentiles(np.array([np.nan, np.nan, 1.0])) == (None, None)


def test_midranks_and_roc_curve_treat_ties_as_one_step() -> None:
    assert midranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]
    alarms, hits = roc_curve([1, 0, 1, 0], [0.9, 0.9, 0.5, 0.1])
    assert alarms.tolist() == [0, 0.5, 0.5, 1]
    assert hits.tolist() == [0, 0.5, 1, 1]


def test_one_class_has_no_area() -> None:
    assert np.isnan(roc_auc([1, 1], [0.1, 0.2]))


def test_temperature_undoes_a_known_distortion() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=20_000) * 2
    labels = (generator.random(20_000) < expit(logits)).astype(float)
    distorted = 2.5 * (logits + 0.6)
    found = fit_temperature(distorted, labels, bias=True)
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.bias == pytest.approx(-0.6, abs=0.05)
    restored = found.apply(expit(distorted))
    assert log_loss(labels, restored) < log_loss(labels, expit(distorted))
    assert calibration_error(reliability(labels, restored)) < 0.015


def test_temperature_of_several_classes() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)) * 1.5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (generator.random((20_000, 1)) > shares.cumsum(1)).sum(1)
    assert fit_temperature(logits * 3, labels).temperature == pytest.approx(3, rel=0.05)


def test_temperature_needs_both_classes_and_survives_separation() -> None:
    with pytest.raises(DataError, match="one class"):
        fit_temperature(np.array([0.1, 0.2]), np.array([1.0, 1.0]))
    separated = fit_temperature(np.array([-1.0, 1.0]), np.array([0.0, 1.0]))
    assert 0.01 <= separated.temperature < 0.1


def test_temperature_keeps_the_order_and_the_ends() -> None:
    values = np.array([0.0, 0.2, 0.7, 1.0])
    changed = Temperature(2.0).apply(values)
    assert np.isfinite(to_logit(values)).all()
    assert (np.diff(changed) > 0).all()
    assert Temperature(1.0).apply(values) == pytest.approx(values, abs=1e-12)


def test_reliability_puts_one_into_the_last_bin() -> None:
    bins = reliability(np.array([0.0, 1, 1]), np.array([0.0, 1.0, 0.95]), num_bins=10)
    assert [(part.low, part.count) for part in bins] == [(0.0, 1), (0.9, 2)]
    assert calibration_error(bins) == pytest.approx(2 / 3 * 0.025)
