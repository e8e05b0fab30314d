"""Evaluation of predicted numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manyhead_core.evaluate.binary import affordable
from manyhead_core.evaluate.evaluation import (
    Evaluation,
    each_group,
    estimates,
    resampled,
    segments_of,
    values_of,
)
from manyhead_core.evaluate.rows import Rows, check, group_codes, kept_rows, numbers, row_notes

Array = NDArray[Any]

IN_SEGMENTS = ("mae", "rmse", "r2", "spearman")


class NumberRows(Rows):
    """The rows of a predictions table that can be scored: numbers, `(rows,)` each."""


class NumberStatistics:
    """All metrics as a function of row multiplicities, for the estimate and for every draw.

    Args:
        rows: What is evaluated.
    """

    names: tuple[str, ...] = ("mae", "rmse", "r2", "pearson", "spearman", "bias")

    def __init__(self, rows: NumberRows) -> None:
        label, score = rows.labels, rows.scores
        # Correlations and the variance do not depend on the origin; sums of squares do lose digits.
        label, score = label - label.mean(), score - label.mean()
        self._label, self._score = label, score
        gap = score - label
        self._sums = np.stack(
            [np.ones(len(label)), np.abs(gap), gap**2, gap, label, label**2], axis=1
        )
        self._ranks = [Ranks(label), Ranks(score)]

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, metrics)` in the order of `names`.

        Args:
            weights: Multiplicities, `(draws, rows)`.
        """
        count, absolute, squares, gap, label, label_squares = (weights @ self._sums).T
        spread = label_squares - label**2 / count
        ranks = [ranks(weights) for ranks in self._ranks]
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(spread > 1e-12 * label_squares, 1 - squares / spread, np.nan)
        columns = [absolute / count, np.sqrt(squares / count), r2]
        columns += [correlation(weights, self._label, self._score)]
        columns += [correlation(weights, *ranks), gap / count]
        return np.stack(columns, axis=1)


class Ranks:
    """Ranks of repeated values, equal values sharing the mean of theirs.

    Args:
        values: `(rows,)`.
    """

    def __init__(self, values: Array) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        new = np.r_[True, ordered[1:] != ordered[:-1]]
        self._starts = np.flatnonzero(new)
        self._step = np.empty(len(values), np.int64)
        self._step[self._order] = np.cumsum(new) - 1

    def __call__(self, weights: Array) -> Array:
        """Rank of each row among the repeated rows, `(draws, rows)`.

        Args:
            weights: Multiplicities, `(draws, rows)`.
        """
        sums = np.add.reduceat(np.take(weights, self._order, axis=1), self._starts, axis=1)
        middle = np.cumsum(sums, axis=1) - (sums - 1) / 2
        ranks: Array = np.take(middle, self._step, axis=1)
        return ranks


def correlation(weights: Array, first: Array, second: Array) -> Array:
    """Pearson's correlation of repeated values, `(draws,)`; NaN where one of them is constant.

    Args:
        weights: Multiplicities, `(draws, rows)`.
        first: `(rows,)`, or `(draws, rows)`.
        second: The same.
    """
    total = weights.sum(axis=1, keepdims=True)
    one, two = (
        values - (weights * values).sum(axis=1, keepdims=True) / total for values in (first, second)
    )
    spread = [(weights * part**2).sum(axis=1) for part in (one, two)]
    scale = [(weights * np.square(part)).sum(axis=1) for part in (first, second)]
    flat = (spread[0] <= 1e-20 * scale[0]) | (spread[1] <= 1e-20 * scale[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Array = (weights * one * two).sum(axis=1) / np.sqrt(spread[0] * spread[1])
    return np.where(flat, np.nan, value)


def evaluate_regression(frame: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> Evaluation:
    """Metrics of predicted numbers, with 95 % intervals.

    Args:
        frame: `label` and `score` (numbers in the same unit), and where known `group`, `site`,
            `status` and `segment_<name>`. Rows whose status is not ok are left out and counted.
        draws: Bootstrap resamples, of groups when there are groups, else of rows.
        seed: Seed of the resamples.

    Raises:
        DataError: A column is missing, no row is left, or a label or score is no number.
    """
    rows = number_rows(frame)
    statistics = NumberStatistics(rows)
    limits, interval = resampled(rows, statistics, affordable(draws, len(rows.labels)), seed)
    constant = float(rows.labels.mean())
    spread = float(rows.labels.std())
    distance = float(np.abs(rows.labels - constant).mean())
    notes = row_notes(rows)
    if not spread:
        notes.append("all labels are equal: r2 and correlations are undefined")
    return Evaluation(
        num_samples=len(rows.labels),
        num_groups=rows.num_groups,
        num_excluded=rows.num_excluded,
        metrics=estimates(values_of(statistics, rows), limits),
        interval=interval,
        baseline={"name": "constant mean", "mean": constant, "mae": distance, "rmse": spread}
        | {"r2": 0.0, "bias": 0.0},
        segments=segments_of(rows, NumberStatistics, IN_SEGMENTS, draws, seed),
        groups=each_group(rows, NumberStatistics, IN_SEGMENTS),
        notes=notes,
        kind="regression",
    )


def number_rows(frame: pd.DataFrame) -> NumberRows:
    """Check a predictions table and take out what can be scored.

    Raises:
        DataError: A column is missing, no row is left, or a label or score is no number.
    """
    kept = kept_rows(frame, ("label", "score"))
    labels, scores = numbers(kept, "label"), numbers(kept, "score")
    check(kept, "label", np.isfinite(labels), "not finite")
    check(kept, "score", np.isfinite(scores), "not finite")
    groups, number, named = group_codes(kept)
    return NumberRows(
        frame=kept,
        labels=labels,
        scores=scores,
        groups=groups,
        num_groups=number,
        named=named,
        num_excluded=len(frame) - len(kept),
    )
