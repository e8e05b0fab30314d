"""Intervals: bootstrap by group for any statistic, DeLong for the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from manyhead_core.evaluate.ranking import midranks

Array = NDArray[Any]
# Multiplicities (draws, rows) -> values (draws, statistics).
Statistic = Callable[[Array], Array]

LEVEL = 0.95
MIN_GROUPS = 10
# Small enough for the processor's cache: one pass over a larger block is slower.
CHUNK_BYTES = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None where there is none.

    Args:
        value: Estimate; None when it is undefined for these data.
        low: Lower limit.
        high: Upper limit.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve with its DeLong standard error.

    Args:
        value: Area.
        error: Standard error.
        influence: What each row adds to the deviation of the area, `(rows,)`.
        smaller: Number of rows of the smaller class.
    """

    value: float
    error: float
    influence: Array
    smaller: int


def bootstrap(statistic: Statistic, units: Array, draws: int = 2000, seed: int = 0) -> Array:
    """Values of `statistic` on resampled units.

    Args:
        statistic: Gets multiplicities `(draws, rows)` and returns `(draws, statistics)`.
        units: What is resampled with all its rows: codes from 0, `(rows,)`.
        draws: Number of resamples.
        seed: Seed of the draws.

    Returns:
        `(draws, statistics)`.
    """
    generator = np.random.default_rng(seed)
    number = int(units.max()) + 1
    single = number == len(units) and bool((units == np.arange(number)).all())
    chunk = max(1, CHUNK_BYTES // (8 * len(units)))
    parts = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        counts = np.empty((size, number))
        for row in counts:
            row[:] = np.bincount(generator.integers(0, number, number), minlength=number)
        parts.append(statistic(counts if single else np.take(counts, units, axis=1)))
    return np.concatenate(parts)


def percentiles(values: Array) -> tuple[float | None, float | None]:
    """95 % limits of the draws of one statistic; undefined draws are left out.

    None when more than half of the draws are undefined.
    """
    defined = values[np.isfinite(values)]
    if len(defined) * 2 < len(values) or not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def delong(labels: Array, scores: Array, units: Array | None = None) -> Area:
    """Area under the ROC curve and its standard error.

    DeLong et al. 1988; with `units` the structural components are summed within each unit first
    (Obuchowski 1997), so that rows of one user count as dependent.

    Args:
        labels: 0 or 1, `(rows,)`, both present.
        scores: `(rows,)`.
        units: Group of each row, `(rows,)`; None for independent rows.
    """
    truth = labels > 0.5
    positives, negatives = int(truth.sum()), int((~truth).sum())
    ranks = midranks(scores)
    within = np.empty_like(ranks)
    within[truth], within[~truth] = midranks(scores[truth]), midranks(scores[~truth])
    above = (ranks - within)[truth] / negatives
    below = 1 - (ranks - within)[~truth] / positives
    value = float(above.mean())
    influence = np.empty(len(scores))
    influence[truth] = (above - value) / positives
    influence[~truth] = (below - value) / negatives
    error = _error(influence, truth, units)
    return Area(value, error, influence, min(positives, negatives))


def delong_interval(area: Area) -> tuple[float | None, float | None]:
    """95 % limits on the logit scale.

    Complete separation leaves no variance. Then m disjoint pairs of rows, all in the right order,
    bound the area: 0.025 ** (1 / m), m the size of the smaller class.
    """
    if area.value in (0.0, 1.0):
        bound = ((1 - LEVEL) / 2) ** (1 / area.smaller)
        return (bound, 1.0) if area.value == 1.0 else (0.0, 1 - bound)
    width = norm.ppf((1 + LEVEL) / 2) * area.error / (area.value * (1 - area.value))
    middle = np.log(area.value / (1 - area.value))
    low, high = 1 / (1 + np.exp(-np.array([middle - width, middle + width])))
    return float(low), float(high)


def delong_paired(
    labels: Array, reference: Array, scores: Array, units: Array | None = None
) -> tuple[Estimate, float | None]:
    """Difference of two areas on the same rows, with interval and two-sided p-value.

    Args:
        labels: 0 or 1, `(rows,)`, both present.
        reference: Scores that are subtracted, `(rows,)`.
        scores: Scores of the other model, `(rows,)`.
        units: Group of each row; None for independent rows.

    Returns:
        The difference, and p; p is None when the two orders agree everywhere.
    """
    first, second = delong(labels, reference, units), delong(labels, scores, units)
    difference = second.value - first.value
    error = _error(second.influence - first.influence, labels > 0.5, units)
    if error <= 1e-15:
        return Estimate(difference, difference, difference), None
    width = norm.ppf((1 + LEVEL) / 2) * error
    p = 2 * norm.sf(abs(difference) / error)
    return Estimate(difference, difference - width, difference + width), float(p)


def _error(influence: Array, truth: Array, units: Array | None) -> float:
    if units is None:
        parts = [influence[truth], influence[~truth]]
        variance = sum((part**2).sum() * len(part) / max(len(part) - 1, 1) for part in parts)
    else:
        number = int(units.max()) + 1
        sums = np.bincount(units, weights=influence, minlength=number)
        variance = (sums**2).sum() * number / max(number - 1, 1)
    return float(np.sqrt(variance))
