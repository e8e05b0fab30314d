"""Metrics over patients as a function of how often each patient is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.events.delay import WITHIN
from manyhead.mvpformer.events.rates import alarms_per_day, alarms_per_hour
from manyhead.mvpformer.events.steps import COUNTS, STEP_METRICS, areas, ratio, step_metrics
from manyhead.mvpformer.events.tallies import Counted

Array = npt.NDArray[Any]

POOLED = "_pooled"
# Points of the precision-recall curve of all patients together; with more positive steps than
# that, neighbouring ones share a point.
POINTS = 2000


class PatientStatistics:
    """All metrics as a function of patient multiplicities.

    A name without an ending is the mean over the patients in which the metric is defined, one that
    ends in `_pooled` comes from the counts of all patients together. Everything that takes time is
    counted once; a draw of a bootstrap only weighs patients.

    Args:
        patients: What was counted in each.
    """

    def __init__(self, patients: Sequence[Counted]) -> None:
        self._counts = {name: _column(patients, get) for name, get in _COUNTED.items()}
        each = _ratios(self._counts)
        self._pooled_names = tuple(name for name in each if not name.startswith("sample"))
        if any(len(patient.label) for patient in patients):
            each |= _each_area(patients)
            self._ranking: PooledAreas | None = PooledAreas(patients)
            self._pooled_names += ("step_auroc", "step_average_precision")
        else:
            each = {name: value for name, value in each.items() if not name.startswith("step")}
            self._pooled_names = tuple(name for name in self._pooled_names if name in each)
            self._ranking = None
        self.each = each
        self._table = np.stack(list(each.values()), axis=1)
        self._delays = PooledDelays(patients)
        pooled = tuple(f"{name}{POOLED}" for name in self._pooled_names)
        self.names: tuple[str, ...] = (*each, *pooled, *self._delays.names)

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, metrics)` in the order of `names`; NaN where one is undefined.

        Args:
            weights: Multiplicities, `(draws, patients)`.
        """
        defined = np.isfinite(self._table)
        means = ratio(weights @ np.where(defined, self._table, 0), weights @ defined)
        found = _ratios({name: weights @ value for name, value in self._counts.items()})
        if self._ranking is not None:
            found["step_auroc"], found["step_average_precision"] = self._ranking(weights)
        pooled = np.stack([found[name] for name in self._pooled_names], axis=1)
        return np.concatenate([means, pooled, self._delays(weights)], axis=1)


class PooledAreas:
    """Area under the ROC curve and average precision of the steps of all patients together.

    Args:
        patients: What was counted in each.
    """

    def __init__(self, patients: Sequence[Counted]) -> None:
        truth = [np.asarray(patient.label) > 0.5 for patient in patients]
        scores = [np.asarray(patient.probability, np.float64) for patient in patients]
        positive = [np.sort(s[t]) for s, t in zip(scores, truth, strict=True)]
        negative = [np.sort(s[~t]) for s, t in zip(scores, truth, strict=True)]
        self._positives = np.array([len(part) for part in positive], float)
        self._negatives = np.array([len(part) for part in negative], float)
        self._wins = np.array([[_wins(p, n) for n in negative] for p in positive])
        levels = _levels(np.concatenate(positive))
        self._hits = np.stack([_at_least(part, levels) for part in positive])
        self._alarms = np.stack([_at_least(part, levels) for part in negative])

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """Both areas, `(draws,)` each; NaN where only one class was drawn.

        Args:
            weights: Multiplicities, `(draws, patients)`.
        """
        positives, negatives = weights @ self._positives, weights @ self._negatives
        wins = np.einsum("dp,dp->d", weights @ self._wins, weights)
        auroc = ratio(wins, positives * negatives)
        hits, alarms = weights @ self._hits, weights @ self._alarms
        precision = ratio(hits, hits + alarms)
        inside = np.diff(hits, axis=1, prepend=0.0)
        total = np.where(inside > 0, inside * precision, 0).sum(axis=1)
        return auroc, np.where(np.isfinite(auroc), ratio(total, positives), np.nan)


class PooledDelays:
    """Median delay of the detected seizures, and the share of all that is noticed in time.

    Args:
        patients: What was counted in each.
    """

    names: tuple[str, ...] = ("delay_median", *(f"within_{limit}_s" for limit in WITHIN))

    def __init__(self, patients: Sequence[Counted]) -> None:
        self._seizures = np.array([patient.seizures for patient in patients], float)
        self._within = np.stack(
            [[float((patient.delays <= limit).sum()) for limit in WITHIN] for patient in patients]
        )
        values = np.concatenate([patient.delays for patient in patients])
        owner = np.repeat(np.arange(len(patients)), [len(patient.delays) for patient in patients])
        order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
        self._sorted, self._owner = values[order], owner[order]

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, 4)` in the order of `names`.

        Args:
            weights: Multiplicities, `(draws, patients)`.
        """
        shares = ratio(weights @ self._within, (weights @ self._seizures)[:, None])
        return np.concatenate([self._median(weights)[:, None], shares], axis=1)

    def _median(self, weights: Array) -> Array:
        if not len(self._sorted):
            return np.full(len(weights), np.nan)
        below = np.cumsum(weights[:, self._owner], axis=1)
        total = below[:, -1:]
        last = len(self._sorted) - 1
        # Two places, since an even number of delays has two middle ones.
        low = np.minimum((below < total / 2).sum(axis=1), last)
        high = np.minimum((below <= total / 2).sum(axis=1), last)
        value = (self._sorted[low] + self._sorted[high]) / 2
        return np.where(total[:, 0] > 0, value, np.nan)


_COUNTED: dict[str, Callable[[Counted], float]] = {
    "event_true": lambda patient: patient.events.true,
    "event_hits": lambda patient: patient.events.hits,
    "event_alarms": lambda patient: patient.events.alarms,
    "seconds": lambda patient: patient.events.seconds,
    "sample_true": lambda patient: patient.samples.true,
    "sample_hits": lambda patient: patient.samples.hits,
    "sample_alarms": lambda patient: patient.samples.alarms,
}


def _column(patients: Sequence[Counted], get: Callable[[Counted], float]) -> Array:
    return np.array([get(patient) for patient in patients], np.float64)


def _step(name: str) -> Callable[[Counted], float]:
    return lambda patient: patient.steps[name]


_COUNTED |= {f"step_{name}": _step(name) for name in COUNTS}


def _ratios(counts: Mapping[str, Array]) -> dict[str, Array]:
    """Metrics of counts, elementwise."""
    alarms, seconds = counts["event_alarms"], counts["seconds"]
    events = _scores(counts, "event")
    # The F1 and the false alarms of a detector are read together.
    found = {
        "event_f1": events.pop("event_f1"),
        "false_alarms_per_day": alarms_per_day(alarms, seconds),
        "false_alarms_per_hour": alarms_per_hour(alarms, seconds),
    } | events
    steps = step_metrics({name: counts[f"step_{name}"] for name in COUNTS})
    found |= {f"step_{name}": steps[name] for name in STEP_METRICS}
    return found | _scores(counts, "sample")


def _scores(counts: Mapping[str, Array], what: str) -> dict[str, Array]:
    true, hits, alarms = (counts[f"{what}_{part}"] for part in ("true", "hits", "alarms"))
    return {
        f"{what}_f1": ratio(2 * hits, hits + alarms + true),
        f"{what}_sensitivity": ratio(hits, true),
        f"{what}_precision": ratio(hits, hits + alarms),
    }


def _each_area(patients: Sequence[Counted]) -> dict[str, Array]:
    values = [
        areas(patient.label, patient.probability) if len(patient.label) else (np.nan, np.nan)
        for patient in patients
    ]
    auroc, precision = np.array(values, np.float64).T
    return {"step_auroc": auroc, "step_average_precision": precision}


def _wins(positive: Array, negative: Array) -> float:
    """Pairs in which the positive step is scored higher; ties count one half. Both sorted."""
    below = np.searchsorted(negative, positive, side="left").sum()
    upto = np.searchsorted(negative, positive, side="right").sum()
    return float(below + upto) / 2


def _levels(positive: Array) -> Array:
    """Scores of positive steps, falling: all of them, or so many in equal shares."""
    levels = np.unique(positive)[::-1]
    if len(levels) > POINTS:
        levels = levels[np.unique(np.linspace(0, len(levels) - 1, POINTS).round().astype(int))]
    return levels


def _at_least(ordered: Array, levels: Array) -> Array:
    count: Array = len(ordered) - np.searchsorted(ordered, levels, side="left")
    return count.astype(np.float64)
