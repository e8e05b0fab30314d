"""Evaluation of a binary classifier that gives probabilities, such as a click-through rate."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manyhead_core.evaluate.calibration import (
    NUM_BINS,
    bin_index,
    calibration_json,
    log_loss,
    reliability,
    row_losses,
)
from manyhead_core.evaluate.evaluation import (
    Evaluation,
    Limits,
    defined,
    estimates,
    resampled,
    too_few,
)
from manyhead_core.evaluate.intervals import delong, delong_interval
from manyhead_core.evaluate.ranking import Ranking, group_areas, roc_auc
from manyhead_core.evaluate.rows import Rows, check, group_codes, kept_rows, numbers, row_notes
from manyhead_core.evaluate.segments import binary_segments, one_segment

__all__ = [
    "BinaryRows",
    "BinaryStatistics",
    "Evaluation",
    "binary_rows",
    "evaluate_binary",
    "roc_auc",
]

Array = NDArray[Any]

# Above this many rows DeLong gives the interval of the area, and draws are fewer.
MANY_ROWS = 200_000
ROW_DRAWS = 200_000_000
FEW_DRAWS = 200


class BinaryRows(Rows):
    """The rows of a predictions table that can be scored.

    Labels are 0.0 or 1.0, scores are probabilities of 1; `(rows,)` each.
    """


class BinaryStatistics:
    """All metrics as a function of row multiplicities, for the estimate and for every draw.

    Args:
        rows: What is evaluated.
    """

    names: tuple[str, ...] = (
        "auroc", "average_precision", "logloss", "brier", "gauc",
        "relative_information_gain", "calibration", "expected_calibration_error",
    )  # fmt: skip

    def __init__(self, rows: BinaryRows) -> None:
        self._ranking = Ranking(rows.labels, rows.scores)
        self._order = self._ranking.order
        labels, scores = rows.labels[self._order], rows.scores[self._order]
        columns = [labels, scores, row_losses(labels, scores), (scores - labels) ** 2]
        self._sums = np.stack([np.ones(len(labels)), *columns], axis=1)
        self._gap = scores - labels
        # Equal-width bins are contiguous in sorted rows.
        edges = np.searchsorted(bin_index(scores), np.arange(NUM_BINS + 1))
        self._bins = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]
        self._first, self._group_weight, self._group_area = _groups(rows)
        if rows.num_groups == 0:
            self.names = tuple(name for name in self.names if name != "gauc")

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, metrics)` in the order of `names`.

        Args:
            weights: Multiplicities, `(draws, rows)`; equal within a group for `gauc`.
        """
        ordered = np.take(weights, self._order, axis=1)
        auroc, precision = self._ranking.areas(ordered)
        count, positives, predicted, loss, squares = (ordered @ self._sums).T
        gaps = sum(np.abs(ordered[:, part] @ self._gap[part]) for part in self._bins)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "auroc": auroc,
                "average_precision": precision,
                "logloss": loss / count,
                "brier": squares / count,
                "gauc": self._gauc(weights),
                "relative_information_gain": 1 - (loss / count) / entropy(positives / count),
                "calibration": predicted / positives,
                "expected_calibration_error": gaps / count,
            }
        return np.stack([found[name] for name in self.names], axis=1)

    def _gauc(self, weights: Array) -> Array:
        share = weights[:, self._first] * self._group_weight
        value: Array = (share @ self._group_area) / share.sum(axis=1)
        return value


def evaluate_binary(frame: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> Evaluation:
    """Metrics of probabilities against 0/1 labels, with 95 % intervals.

    Args:
        frame: `label` (0 or 1), `score` (probability of 1), and where known `group`, `status` and
            `segment_<name>`. Rows whose status is not ok are left out and counted.
        draws: Bootstrap resamples, of groups when there are groups, else of rows.
        seed: Seed of the resamples.

    Raises:
        DataError: A column is missing, no row is left, or a label or score cannot be used.
    """
    rows = binary_rows(frame)
    statistics = BinaryStatistics(rows)
    values = statistics(np.ones((1, len(rows.labels))))[0]
    bins = reliability(rows.labels, rows.scores)
    limits, interval = _intervals(rows, statistics, draws, seed)
    found = {name: defined(value) for name, value in zip(statistics.names, values, strict=True)}
    return Evaluation(
        num_samples=len(rows.labels),
        num_groups=rows.num_groups,
        num_excluded=rows.num_excluded,
        metrics=estimates(found, limits),
        interval=interval,
        calibration=calibration_json(bins),
        baseline=_baseline(rows),
        segments=binary_segments(rows.frame, rows.labels, rows.scores, rows.groups),
        groups=_each_group(rows) if too_few(rows) else [],
        notes=_notes(rows),
    )


def binary_rows(frame: pd.DataFrame) -> BinaryRows:
    """Check a predictions table and take out what can be scored.

    Raises:
        DataError: A column is missing, no row is left, or a label or score cannot be used.
    """
    kept = kept_rows(frame, ("label", "score"))
    labels, scores = numbers(kept, "label"), numbers(kept, "score")
    check(kept, "label", np.isin(labels, (0.0, 1.0)), "neither 0 nor 1")
    check(kept, "score", (scores >= 0) & (scores <= 1), "no probability in [0, 1]")
    groups, number, named = group_codes(kept)
    return BinaryRows(
        frame=kept,
        labels=labels,
        scores=scores,
        groups=groups,
        num_groups=number,
        named=named,
        num_excluded=len(frame) - len(kept),
    )


def affordable(draws: int, rows: int) -> int:
    """`draws`, or fewer for a table so large that they would take minutes; at least 200."""
    return draws if rows <= MANY_ROWS else min(draws, max(FEW_DRAWS, ROW_DRAWS // rows))


def entropy(rate: Array) -> Array:
    """Natural-log entropy of a Bernoulli variable: the log loss of the constant predictor."""
    clipped = np.clip(rate, 1e-300, 1 - 1e-16)
    result: Array = -(clipped * np.log(clipped) + (1 - clipped) * np.log1p(-clipped))
    return np.where((rate <= 0) | (rate >= 1), np.nan, result)


def _intervals(
    rows: BinaryRows, statistics: BinaryStatistics, draws: int, seed: int
) -> tuple[dict[str, Limits], dict[str, Any]]:
    number = len(rows.labels)
    limits, interval = resampled(rows, statistics, affordable(draws, number), seed)
    interval["auroc"] = interval["method"]
    separable = 0 < rows.labels.sum() < number
    if limits and separable and (rows.groups is None or number > MANY_ROWS):
        limits["auroc"] = delong_interval(delong(rows.labels, rows.scores, rows.groups))
        interval["auroc"] = delong_name(rows)
    return limits, interval


def delong_name(rows: Rows) -> str:
    """How DeLong's interval of these rows is called."""
    return "DeLong, logit scale" + (", by group" if rows.groups is not None else "")


def _groups(rows: BinaryRows) -> tuple[Array, Array, Array]:
    """Of each group with both classes: its first row, its positives, its area."""
    if rows.groups is None:
        return np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    areas, positives = group_areas(rows.labels, rows.scores, rows.groups)
    first = np.unique(rows.groups, return_index=True)[1]
    both = np.isfinite(areas)
    return first[both], positives[both], areas[both]


def _each_group(rows: BinaryRows) -> list[dict[str, Any]]:
    names = rows.frame["group"].astype(str).to_numpy()
    return [
        one_segment(name, rows.labels[names == name], rows.scores[names == name], None)
        for name in sorted(set(names[rows.named]))
    ]


def _baseline(rows: BinaryRows) -> dict[str, Any]:
    rate = float(rows.labels.mean())
    constant = np.full(len(rows.labels), rate)
    return {
        "name": "constant rate",
        "rate": rate,
        "logloss": log_loss(rows.labels, constant),
        "brier": rate * (1 - rate),
        "auroc": 0.5,
    }


def _notes(rows: BinaryRows) -> list[str]:
    notes = row_notes(rows)
    if rows.labels.min() == rows.labels.max():
        notes.append("all labels are of one class: ranking metrics are undefined")
    unnamed = int((~rows.named).sum())
    if rows.num_groups and unnamed:
        notes.append(f"{unnamed} rows without a group count as one group each, and not for gauc")
    return notes
