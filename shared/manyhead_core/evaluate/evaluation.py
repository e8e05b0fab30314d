"""What an evaluation has found, and the parts that all kinds of predictions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manyhead_core.evaluate.intervals import MIN_GROUPS, Estimate, bootstrap, percentiles
from manyhead_core.evaluate.rows import Rows
from manyhead_core.evaluate.segments import segment_masks

Array = NDArray[Any]
Limits = tuple[float | None, float | None]

SEGMENT_DRAWS = 500


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
        kind: What is predicted: `binary`, `classes`, `regression` or `survival`.
        classes: Metrics of each class.
        details: What only this kind has: a confusion matrix, survival curves.
    """

    num_samples: int
    num_groups: int
    num_excluded: int
    metrics: dict[str, Estimate]
    interval: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    segments: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kind: str = "binary"
    classes: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as metrics.json has them."""
        return asdict(self)


class Statistics(Protocol):
    """Metrics as a function of row multiplicities."""

    names: tuple[str, ...]

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, metrics)` in the order of `names`, of weights `(draws, rows)`."""
        ...


Build = Callable[[Any], Statistics]


def too_few(rows: Rows) -> bool:
    """Whether the groups are too few for an interval."""
    return 0 < rows.num_groups < MIN_GROUPS


def values_of(statistics: Statistics, rows: Rows) -> dict[str, float | None]:
    """All metrics of the rows as they are; None where one is undefined."""
    values = statistics(np.ones((1, len(rows.labels))))[0]
    return {name: defined(value) for name, value in zip(statistics.names, values, strict=True)}


def resampled(
    rows: Rows, statistics: Statistics, draws: int, seed: int
) -> tuple[dict[str, Limits], dict[str, Any]]:
    """95 % limits by metric, and how they were made; no limits when groups are too few.

    Args:
        rows: What is evaluated.
        statistics: Metrics of it.
        draws: Resamples of groups when there are groups, else of rows.
        seed: Seed of the resamples.
    """
    if too_few(rows):
        reason = f"none: {rows.num_groups} groups are too few, see the groups"
        return {}, {"level": 0.95, "unit": "group", "method": reason, "draws": 0}
    values = bootstrap(statistics, rows.units, draws, seed)
    limits = {name: percentiles(values[:, k]) for k, name in enumerate(statistics.names)}
    interval: dict[str, Any] = {"level": 0.95, "unit": rows.unit, "method": "percentile bootstrap"}
    interval |= {"draws": draws, "seed": seed}
    interval["undefined_draws"] = int((~np.isfinite(values[:, 0])).sum())
    return limits, interval


def estimates(values: dict[str, float | None], limits: dict[str, Limits]) -> dict[str, Estimate]:
    """Values with their limits, by name."""
    return {
        name: Estimate(value, *(limits.get(name, (None, None)) if value is not None else ()))
        for name, value in values.items()
    }


def segments_of(
    rows: Rows, build: Build, shown: Sequence[str], draws: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Size and metrics of the rows of every segment value, by segment.

    Args:
        rows: What is evaluated; `segment_<name>` columns and sites are the segments.
        build: Gives the metrics of rows.
        shown: Names of the metrics; the first one has an interval where there are groups enough.
        draws: Resamples; at most 500.
        seed: Seed of the resamples.
    """
    return {
        name: [
            one_part(value, rows.subset(chosen), build, shown, draws, seed) for value, chosen in p
        ]
        for name, p in segment_masks(rows.frame).items()
    }


def each_group(rows: Rows, build: Build, shown: Sequence[str]) -> list[dict[str, Any]]:
    """Metrics of every named group, when they are too few for an interval; else nothing."""
    if not too_few(rows):
        return []
    names = rows.frame["group"].astype(str).to_numpy()
    return [
        one_part(name, rows.subset(names == name), build, shown, 0, 0)
        for name in sorted(set(names[rows.named]))
    ]


def one_part(
    name: str, rows: Rows, build: Build, shown: Sequence[str], draws: int, seed: int
) -> dict[str, Any]:
    """Size and metrics of some of the rows, as metrics.json has them.

    Args:
        name: What they are called.
        rows: The rows.
        build: Gives the metrics of rows.
        shown: Names of the metrics; the first one has an interval where there are groups enough.
        draws: Resamples; at most 500. 0 for no interval.
        seed: Seed of the resamples.
    """
    statistics = build(rows)
    values = values_of(statistics, rows)
    entry: dict[str, Any] = {"value": name, "n": len(rows.labels), "groups": rows.num_groups}
    entry |= {metric: values.get(metric) for metric in shown}
    units = len(np.unique(rows.units))
    if draws and units >= 2 * MIN_GROUPS and values.get(shown[0]) is not None:
        limits, _ = resampled(rows, statistics, min(draws, SEGMENT_DRAWS), seed)
        entry[f"{shown[0]}_low"], entry[f"{shown[0]}_high"] = limits.get(shown[0], (None, None))
    return entry


def defined(value: float) -> float | None:
    """The value, or None when it is not finite."""
    return float(value) if np.isfinite(value) else None
