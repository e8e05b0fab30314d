"""Evaluation of a binary classifier that gives probabilities, such as a click-through rate."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manyhead_core.errors import DataError
from manyhead_core.evaluate.calibration import (
    NUM_BINS,
    bin_index,
    calibration_json,
    log_loss,
    reliability,
    row_losses,
)
from manyhead_core.evaluate.intervals import (
    MIN_GROUPS,
    Estimate,
    bootstrap,
    delong,
    delong_interval,
    percentiles,
)
from manyhead_core.evaluate.ranking import Ranking, group_areas, roc_auc
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


@dataclass(frozen=True)
class BinaryRows:
    """The rows of a predictions table that can be scored.

    Args:
        frame: Rows with status ok.
        labels: 0.0 or 1.0, `(rows,)`.
        scores: Probabilities in float64, `(rows,)`.
        groups: Code of the group, `(rows,)`; None when no row has one. A row without a group is a
            group of its own.
        num_groups: Groups that have a name.
        named: True where the row has a group, `(rows,)`.
        num_excluded: Rows with another status.
    """

    frame: pd.DataFrame
    labels: Array
    scores: Array
    groups: Array | None
    num_groups: int
    named: Array
    num_excluded: int


@dataclass(frozen=True)
class Evaluation:
    """Metrics with intervals, and what a report needs beside them.

    Args:
        num_samples: Rows that were scored.
        num_groups: Users, patients; 0 when unknown.
        num_excluded: Rows whose status is not ok.
        metrics: By name.
        interval: How the intervals were made.
        calibration: Reliability bins.
        baseline: Metrics of the constant predictor.
        segments: Metrics by value, by segment.
        groups: Metrics of each group when there are too few for an interval.
        notes: What a reader should know about these numbers.
    """

    num_samples: int
    num_groups: int
    num_excluded: int
    metrics: dict[str, Estimate]
    interval: dict[str, Any]
    calibration: dict[str, Any]
    baseline: dict[str, Any]
    segments: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as metrics.json has them."""
        return asdict(self)


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
    few = 0 < rows.num_groups < MIN_GROUPS
    limits, interval = (
        ({}, _no_interval(rows)) if few else _intervals(rows, statistics, draws, seed)
    )
    metrics = {
        name: Estimate(_defined(value), *limits.get(name, (None, None)))
        for name, value in zip(statistics.names, values, strict=True)
    }
    return Evaluation(
        num_samples=len(rows.labels),
        num_groups=rows.num_groups,
        num_excluded=rows.num_excluded,
        metrics=metrics,
        interval=interval,
        calibration=calibration_json(bins),
        baseline=_baseline(rows),
        segments=binary_segments(rows.frame, rows.labels, rows.scores, rows.groups),
        groups=_each_group(rows) if few else [],
        notes=_notes(rows),
    )


def binary_rows(frame: pd.DataFrame) -> BinaryRows:
    """Check a predictions table and take out what can be scored.

    Raises:
        DataError: A column is missing, no row is left, or a label or score cannot be used.
    """
    for name in ("label", "score"):
        if name not in frame:
            raise DataError(f"predictions: column {name} is missing")
    status = frame["status"].astype(str) if "status" in frame else pd.Series("ok", frame.index)
    kept = frame[(status == "ok").to_numpy()].reset_index(drop=True)
    if kept.empty:
        raise DataError(f"predictions: none of the {len(frame)} rows has the status ok")
    labels, scores = _numbers(kept, "label"), _numbers(kept, "score")
    _check(kept, "label", np.isin(labels, (0.0, 1.0)), "neither 0 nor 1")
    _check(kept, "score", (scores >= 0) & (scores <= 1), "no probability in [0, 1]")
    groups, number, named = _group_codes(kept)
    return BinaryRows(kept, labels, scores, groups, number, named, len(frame) - len(kept))


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
) -> tuple[dict[str, tuple[float | None, float | None]], dict[str, Any]]:
    number = len(rows.labels)
    used = affordable(draws, number)
    unit = "row" if rows.groups is None else "group"
    units = np.arange(number) if rows.groups is None else rows.groups
    values = bootstrap(statistics, units, used, seed)
    limits = {name: percentiles(values[:, k]) for k, name in enumerate(statistics.names)}
    interval: dict[str, Any] = {"level": 0.95, "unit": unit, "method": "percentile bootstrap"}
    interval |= {"draws": used, "seed": seed, "auroc": "percentile bootstrap"}
    interval["undefined_draws"] = int((~np.isfinite(values[:, 0])).sum())
    if (unit == "row" or number > MANY_ROWS) and 0 < rows.labels.sum() < number:
        limits["auroc"] = delong_interval(delong(rows.labels, rows.scores, rows.groups))
        interval["auroc"] = "DeLong, logit scale" + (", by group" if unit == "group" else "")
    return limits, interval


def _no_interval(rows: BinaryRows) -> dict[str, Any]:
    reason = f"none: {rows.num_groups} groups are too few, see the groups"
    return {"level": 0.95, "unit": "group", "method": reason, "auroc": reason, "draws": 0}


def _numbers(frame: pd.DataFrame, name: str) -> Array:
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
    _check(frame, name, ~np.isnan(values), "missing or not a number")
    return values


def _check(frame: pd.DataFrame, name: str, good: Array, what: str) -> None:
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    where = frame["id"].iloc[first] if "id" in frame else first
    raise DataError(
        f"predictions: {name} is {what} in {int((~good).sum())} of {len(frame)} rows with the "
        f"status ok, first in id {where}"
    )


def _group_codes(frame: pd.DataFrame) -> tuple[Array | None, int, Array]:
    if "group" not in frame:
        return None, 0, np.zeros(len(frame), bool)
    groups = frame["group"].fillna("").astype(str)
    named = (groups != "").to_numpy()
    codes, names = pd.factorize(groups.where(named, None))
    if not len(names):
        return None, 0, named
    codes = np.asarray(codes, dtype=np.int64)
    codes[~named] = len(names) + np.arange(int((~named).sum()))
    return codes, len(names), named


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
    notes = []
    if rows.num_excluded:
        notes.append(f"{rows.num_excluded} rows without the status ok were left out")
    if rows.labels.min() == rows.labels.max():
        notes.append("all labels are of one class: ranking metrics are undefined")
    unnamed = int((~rows.named).sum())
    if rows.num_groups and unnamed:
        notes.append(f"{unnamed} rows without a group count as one group each, and not for gauc")
    return notes


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
