"""Evaluation of log hazards against times, some of which are censored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

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

IN_SEGMENTS = ("concordance",)
# Draws times the square of the units, and pairs compared at once.
PAIR_DRAWS = 20_000_000_000
BLOCK_PAIRS = 4_000_000
FEW_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class TimeRows(Rows):
    """The rows of a predictions table that can be scored.

    Labels are times and scores log hazards, `(rows,)` each.

    Args:
        events: True where the event was seen, False where the time is censored, `(rows,)`.
    """

    events: Array


@dataclass(frozen=True)
class Curve:
    """Kaplan-Meier curve of a group: steps down at each time with an event.

    Args:
        name: Of the group.
        n: Rows.
        events: Events seen.
        time: From 0 to the last time, at every distinct one.
        survival: Estimated share without an event after each time.
        low: Lower 95 % limit (Greenwood on the log-log scale).
        high: Upper limit.
        at_risk: Rows under observation just before each time.
        median: Time at which the curve falls to one half; None when it does not.
    """

    name: str
    n: int
    events: int
    time: list[float]
    survival: list[float]
    low: list[float]
    high: list[float]
    at_risk: list[int]
    median: float | None


class TimeStatistics:
    """Harrell's C as a function of row multiplicities, equal within a group.

    Args:
        rows: What is evaluated.
    """

    names: tuple[str, ...] = ("concordance",)

    def __init__(self, rows: TimeRows) -> None:
        _, self._first, units = np.unique(rows.units, return_index=True, return_inverse=True)
        self._wins, self._pairs = pair_counts(rows.scores, rows.labels, rows.events, units)

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, 1)`; NaN where no pair can be compared.

        Args:
            weights: Multiplicities, `(draws, rows)`.
        """
        share = np.take(weights, self._first, axis=1)
        wins = np.einsum("du,du->d", share @ self._wins, share)
        pairs = np.einsum("du,du->d", share @ self._pairs, share)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(pairs > 0, wins / pairs, np.nan)[:, None]


def pair_counts(risk: Array, time: Array, event: Array, units: Array) -> tuple[Array, Array]:
    """Concordant and comparable pairs of rows by the units they are of, `(units, units)` each.

    A pair can be compared when the earlier time is an event; at equal times, when one is an event
    and the other censored. Equal risks count one half (Harrell et al. 1996).

    Args:
        risk: Log hazards, `(rows,)`.
        time: `(rows,)`.
        event: True where seen, `(rows,)`.
        units: Code of each row's unit, from 0, `(rows,)`.
    """
    number = int(units.max()) + 1
    wins, pairs = np.zeros((number, number)), np.zeros((number, number))
    seen = np.flatnonzero(event)
    order = np.argsort(units, kind="stable")
    starts = np.searchsorted(units[order], np.arange(number))
    step = max(1, BLOCK_PAIRS // len(time))
    for chosen in (seen[k : k + step] for k in range(0, len(seen), step)):
        first, second = chosen[:, None], order[None, :]
        later = (time[first] < time[second]) | ((time[first] == time[second]) & ~event[second])
        higher = (risk[first] > risk[second]) + 0.5 * (risk[first] == risk[second])
        for total, values in ((pairs, later.astype(float)), (wins, later * higher)):
            np.add.at(total, units[chosen], np.add.reduceat(values, starts, axis=1))
    return wins, pairs


def evaluate_survival(frame: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> Evaluation:
    """Harrell's C with a 95 % interval, and survival curves of the two halves by risk.

    Args:
        frame: `label` (time), `event` (1 where seen, 0 where censored), `score` (log hazard, or any
            number that grows with the risk), and where known `group`, `site`, `status` and
            `segment_<name>`. Rows whose status is not ok are left out and counted.
        draws: Bootstrap resamples, of groups when there are groups, else of rows.
        seed: Seed of the resamples.

    Raises:
        DataError: A column is missing, no row is left, or a value cannot be used.
    """
    rows = time_rows(frame)
    statistics = TimeStatistics(rows)
    units = len(np.unique(rows.units))
    used = min(affordable(draws, len(rows.labels)), max(FEW_DRAWS, PAIR_DRAWS // units**2))
    limits, interval = resampled(rows, statistics, min(used, draws), seed)
    return Evaluation(
        num_samples=len(rows.labels),
        num_groups=rows.num_groups,
        num_excluded=rows.num_excluded,
        metrics=estimates(values_of(statistics, rows), limits),
        interval=interval,
        baseline={"name": "no order", "concordance": 0.5},
        segments=segments_of(rows, TimeStatistics, IN_SEGMENTS, draws, seed),
        groups=each_group(rows, TimeStatistics, IN_SEGMENTS),
        notes=_notes(rows),
        kind="survival",
        details={"num_events": int(rows.events.sum())} | risk_groups(rows),
    )


def time_rows(frame: pd.DataFrame) -> TimeRows:
    """Check a predictions table and take out what can be scored.

    Raises:
        DataError: A column is missing, no row is left, or a value cannot be used.
    """
    kept = kept_rows(frame, ("label", "event", "score"))
    labels, scores = numbers(kept, "label"), numbers(kept, "score")
    truth = kept["event"].astype(str).str.lower().map({"true": 1.0, "false": 0.0})
    events = numbers(kept.assign(event=truth.where(truth.notna(), kept["event"])), "event")
    check(kept, "label", np.isfinite(labels) & (labels >= 0), "no time of 0 or more")
    check(kept, "event", np.isin(events, (0.0, 1.0)), "neither 0 nor 1")
    check(kept, "score", np.isfinite(scores), "not finite")
    groups, number, named = group_codes(kept)
    return TimeRows(
        frame=kept,
        labels=labels,
        scores=scores,
        groups=groups,
        num_groups=number,
        named=named,
        num_excluded=len(frame) - len(kept),
        events=events > 0,
    )


def risk_groups(rows: TimeRows) -> dict[str, Any]:
    """Survival curves of the rows above and below the median risk, with the log-rank test."""
    middle = float(np.median(rows.scores))
    high = rows.scores > middle
    found: dict[str, Any] = {"cut": middle, "curves": [], "log_rank_p": None, "hazard_ratio": None}
    if high.all() or not high.any():
        return found
    named = {"low risk": ~high, "high risk": high}
    found["curves"] = [
        asdict(kaplan_meier(rows.labels[part], rows.events[part], name))
        for name, part in named.items()
    ]
    found["log_rank_p"], found["hazard_ratio"] = log_rank(rows.labels, rows.events, high)
    return found


def kaplan_meier(time: Array, event: Array, name: str = "") -> Curve:
    """Share without an event by time (Kaplan and Meier 1958).

    Args:
        time: `(rows,)`.
        event: True where seen, `(rows,)`.
        name: Of the group.
    """
    times, at_risk, deaths = _table(time, event)
    with np.errstate(divide="ignore", invalid="ignore"):
        survival = np.cumprod(1 - deaths / at_risk)
        variance = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        # On the log-log scale limits stay within 0 and 1 (Kalbfleisch and Prentice).
        width = 1.959963984540054 * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-width), survival ** np.exp(width)
    settled = (survival <= 0) | (survival >= 1)
    low, high = np.where(settled, survival, low), np.where(settled, survival, high)
    below = np.flatnonzero(survival <= 0.5 + 1e-12)
    return Curve(
        name=name,
        n=len(time),
        events=int(event.sum()),
        time=np.r_[0.0, times].tolist(),
        survival=np.r_[1.0, survival].tolist(),
        low=np.r_[1.0, low].tolist(),
        high=np.r_[1.0, high].tolist(),
        at_risk=np.r_[len(time), at_risk].astype(int).tolist(),
        median=float(times[below[0]]) if len(below) else None,
    )


def log_rank(time: Array, event: Array, chosen: Array) -> tuple[float | None, float | None]:
    """p-value of the log-rank test of two groups, and the hazard ratio of the chosen one.

    The ratio is that of events observed over events expected (Peto and others 1977); None where
    a group has none expected or the other has none observed.

    Args:
        time: `(rows,)`.
        event: True where seen, `(rows,)`.
        chosen: True for the rows of one group, `(rows,)`.
    """
    times = np.unique(time[event])
    (risk, dead), (risk_chosen, dead_chosen) = (
        (
            len(part) - np.searchsorted(np.sort(part), times),
            np.bincount(np.searchsorted(times, part[seen]), minlength=len(times)),
        )
        for part, seen in ((time, event), (time[chosen], event[chosen]))
    )
    expected = dead * risk_chosen / risk
    spread = expected * (1 - risk_chosen / risk) * (risk - dead) / np.maximum(risk - 1, 1)
    observed, mean, variance = dead_chosen.sum(), expected.sum(), spread.sum()
    p = float(chi2.sf((observed - mean) ** 2 / variance, 1)) if variance > 0 else None
    others, others_mean = dead.sum() - observed, dead.sum() - mean
    if mean <= 0 or others_mean <= 0 or others == 0:
        return p, None
    return p, float(observed / mean / (others / others_mean))


def _table(time: Array, event: Array) -> tuple[Array, Array, Array]:
    """Distinct times, rows under observation just before each, events at each."""
    times, inverse = np.unique(time, return_inverse=True)
    leaving = np.bincount(inverse)
    deaths = np.bincount(inverse, weights=event)
    at_risk = len(time) - (np.cumsum(leaving) - leaving)
    return times, at_risk.astype(float), deaths


def _notes(rows: TimeRows) -> list[str]:
    notes = row_notes(rows)
    number = int(rows.events.sum())
    notes.append(f"{number} of {len(rows.events)} rows have an event")
    if rows.groups is not None and rows.num_groups < len(rows.labels):
        notes.append(
            "a patient may have several rows: the survival curves and the log-rank test take "
            "rows as independent, the interval of concordance does not"
        )
    return notes
