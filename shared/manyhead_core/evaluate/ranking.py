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
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        values = np.asarray(scores)
        self.order: Array = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.positive: Array = np.asarray(labels)[self.order] > 0.5
        self.starts: Array = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._tied = len(self.starts) < len(ordered)

    def steps(self, weights: Array | None = None) -> tuple[Array, Array]:
        """Positives and negatives at each distinct score, in ascending order of the score.

        Args:
            weights: Multiplicities, `(draws, rows)`; None counts every row once.

        Returns:
            Two arrays `(draws, distinct scores)`.
        """
        if weights is None:
            weights = np.ones((1, len(self.order)))
        ordered = weights[:, self.order]
        positives = ordered * self.positive
        negatives = ordered - positives
        if not self._tied:
            return positives, negatives
        return (
            np.add.reduceat(positives, self.starts, axis=1),
            np.add.reduceat(negatives, self.starts, axis=1),
        )

    def areas(self, weights: Array | None = None) -> tuple[Array, Array]:
        """Area under the ROC curve and average precision, `(draws,)` each; NaN for one class.

        Ties count one half for the area (Mann-Whitney) and one step for the precision.
        """
        positives, negatives = self.steps(weights)
        below = np.cumsum(negatives, axis=1)
        hits = np.cumsum(positives, axis=1)
        total_n, total_p = below[:, -1], hits[:, -1]
        wins = np.einsum("ds,ds->d", positives, below - negatives / 2)
        # At and above a step: everything less what lies below it.
        at_least_p = total_p[:, None] - hits + positives
        at_least = at_least_p + total_n[:, None] - below + negatives
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(at_least > 0, at_least_p / at_least, 0.0)
            auroc = wins / (total_p * total_n)
            average = np.einsum("ds,ds->d", positives, precision) / total_p
        undefined = (total_p == 0) | (total_n == 0)
        return np.where(undefined, np.nan, auroc), np.where(undefined, np.nan, average)


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
    positives, negatives = Ranking(labels, scores).steps()
    hits = np.r_[0.0, np.cumsum(positives[0, ::-1])]
    alarms = np.r_[0.0, np.cumsum(negatives[0, ::-1])]
    return alarms / alarms[-1], hits / hits[-1]


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
