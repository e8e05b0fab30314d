"""How well scores order the two classes: area under the ROC curve, average precision.

All functions take row multiplicities, so that one sort serves every draw of a bootstrap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


class Ranking:
    """Rows sorted by score once; ties form one step.

    Args:
        labels: 0 or 1, `(rows,)`.
        scores: Larger means class 1, `(rows,)`.

    Attributes:
        order: Rows in ascending order of the score, `(rows,)`.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        values = np.asarray(scores)
        self.order: Array = np.argsort(values, kind="stable")
        ordered = values[self.order]
        starts: Array = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        ends: Array = np.r_[starts[1:], len(ordered)]
        self._positive = np.flatnonzero(np.asarray(labels)[self.order] > 0.5)
        first: Array = np.searchsorted(self._positive, starts)
        last: Array = np.searchsorted(self._positive, ends)
        # Both areas are sums over positives: steps without any contribute nothing.
        kept = last > first
        self._starts, self._ends = starts[kept], ends[kept]
        self._first, self._last = first[kept], last[kept]

    def areas(self, weights: Array) -> tuple[Array, Array]:
        """Area under the ROC curve and average precision, `(draws,)` each; NaN for one class.

        Ties count one half for the area (Mann-Whitney) and one step for the precision.

        Args:
            weights: Multiplicities in the order `order`, `(draws, rows)`.
        """
        rows, hits = _cumulative(weights), _cumulative(weights[:, self._positive])
        total, positives = rows[:, -1], hits[:, -1]
        rows_below, hits_below = rows[:, self._starts], hits[:, self._first]
        inside = hits[:, self._last] - hits_below
        # Negatives below the step, and one half of those within it.
        beaten = rows_below - hits_below
        beaten += (rows[:, self._ends] - rows_below - inside) / 2
        wins = np.einsum("ds,ds->d", inside, beaten)
        at_least = total[:, None] - rows_below
        precision = (positives[:, None] - hits_below) / np.maximum(at_least, 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = wins / (positives * (total - positives))
            average = np.einsum("ds,ds->d", inside, precision) / positives
        undefined = (positives == 0) | (positives == total)
        return np.where(undefined, np.nan, auroc), np.where(undefined, np.nan, average)


def _cumulative(weights: Array) -> Array:
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve over all rows, ties counted one half; NaN for one class.

    Args:
        labels: 0 or 1, `(rows,)`.
        scores: Larger means class 1, `(rows,)`.
    """
    truth = np.asarray(labels) > 0.5
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = midranks(np.asarray(scores))
    wins = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def midranks(values: Array) -> Array:
    """Ranks from 1, equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: Array = (last - (counts - 1) / 2)[inverse]
    return shared


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """False and true positive rates from (0, 0) to (1, 1), one point a distinct score."""
    values = np.asarray(scores)
    order = np.argsort(-values, kind="stable")
    ordered, truth = values[order], np.asarray(labels)[order] > 0.5
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hits = np.r_[0, np.cumsum(truth)[last]]
    alarms = np.r_[0, np.cumsum(~truth)[last]]
    return alarms / alarms[-1], hits / hits[-1]


def precision_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Recall, rising, and precision, one point a distinct score; the first point has recall 0."""
    values = np.asarray(scores)
    order = np.argsort(-values, kind="stable")
    ordered, truth = values[order], np.asarray(labels)[order] > 0.5
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hits = np.cumsum(truth)[last]
    precision = hits / (last + 1)
    return np.r_[0, hits / hits[-1]], np.r_[precision[0], precision]


def group_areas(labels: Array, scores: Array, codes: Array) -> tuple[Array, Array]:
    """Area under the ROC curve and number of positives within each group.

    Args:
        labels: 0 or 1, `(rows,)`.
        scores: `(rows,)`.
        codes: Group of each row, from 0, `(rows,)`.

    Returns:
        `(groups,)` each; the area is NaN where a group has one class only.
    """
    groups = int(codes.max(initial=-1)) + 1
    order = np.lexsort((scores, codes))
    group, score, truth = codes[order], scores[order], labels[order] > 0.5
    new = np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])]
    starts = np.flatnonzero(new)
    counts = np.diff(np.r_[starts, len(group)])
    # Midranks within the group: those over all rows, less the rows of earlier groups.
    middle = np.repeat(starts + (counts + 1) / 2, counts)
    sizes = np.bincount(codes, minlength=groups)
    ranks = middle - (np.cumsum(sizes) - sizes)[group]
    positives = np.bincount(group, weights=truth, minlength=groups)
    rank_sum = np.bincount(group, weights=ranks * truth, minlength=groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        wins = rank_sum - positives * (positives + 1) / 2
        areas = wins / (positives * (sizes - positives))
    return areas, positives


class Sensitivity:
    """Sensitivity at a given specificity, for many row multiplicities at once.

    The threshold is the lowest of the scores at which the specificity is reached; between two
    scores nothing is interpolated.

    Args:
        labels: 0 or 1, `(rows,)`.
        scores: Larger means class 1, `(rows,)`.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        values = np.asarray(scores)
        self._order: Array = np.argsort(-values, kind="stable")
        ordered = values[self._order]
        self._truth = np.asarray(labels)[self._order] > 0.5
        self._last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])

    def at(self, weights: Array, specificity: float) -> Array:
        """Sensitivity `(draws,)`; NaN where a class is missing.

        Args:
            weights: Multiplicities, `(draws, rows)`.
            specificity: At least this share of the negatives shall be below the threshold.
        """
        ordered = np.take(weights, self._order, axis=1)
        hits = _cumulative(ordered * self._truth)
        alarms = _cumulative(ordered * ~self._truth)
        # Products such as (1 - 0.9) * 10 fall short of the whole number.
        limit = (1 - specificity) * alarms[:, -1:] + 1e-9
        steps = (alarms[:, self._last + 1] <= limit).sum(axis=1)
        ends = np.r_[0, self._last + 1][steps]
        reached = np.take_along_axis(hits, ends[:, None], axis=1)[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            value: Array = reached / hits[:, -1]
        return np.where((alarms[:, -1] > 0) & (hits[:, -1] > 0), value, np.nan)
