"""Scores of detected against true seizures after SzCORE, by the package timescoring.

The package works on a grid of 10 Hz: times are rounded to it. It takes events as they come, so
they are first sorted, united where they overlap, and cut to the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from timescoring.annotations import Annotation
from timescoring.scoring import EventScoring, SampleScoring

from manyhead.mvpformer.events.rates import alarms_per_day, alarms_per_hour
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError, DataError

Array = npt.NDArray[Any]

GRID = 10


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """When a detection counts as a hit. The defaults are those of SzCORE.

    Args:
        before: A seizure is also found by a detection up to so many s before it.
        after: The same after its end, s.
        overlap: Share of the extended seizure that must be covered by more than this; 0 means that
            any overlap is enough.
        longest: Events longer than so many s are cut into pieces of this length and the rest.
        merge: Events that are less than so many s apart are joined before that.

    Raises:
        ConfigError: A value is out of its range.
    """

    before: float = 30.0
    after: float = 60.0
    overlap: float = 0.0
    longest: float = 300.0
    merge: float = 90.0

    def __post_init__(self) -> None:
        for name in ("before", "after", "merge"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: {getattr(self, name)} is not 0 s or more")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap: {self.overlap} is no share from 0 to below 1")
        if not self.longest >= 1:
            raise ConfigError(f"longest: {self.longest} is not 1 s or more")

    def describe(self) -> str:
        """The tolerance as it stands next to a number."""
        share = f"more than {self.overlap:.0%} of it covered" if self.overlap else "any overlap"
        return (
            f"{self.before:g} s before to {self.after:g} s after a seizure, {share}; events less "
            f"than {self.merge:g} s apart joined, longer than {self.longest:g} s split"
        )


SZCORE = ScoreOptions()


class Tally(NamedTuple):
    """What is counted, for events or for samples; tallies of several recordings add up.

    Args:
        true: Pieces of true seizures, or samples in them.
        hits: Those of them that were found.
        alarms: Detected pieces without a match, or samples detected outside of seizures.
        seconds: Length of the recording in s.
    """

    true: int
    hits: int
    alarms: int
    seconds: float


@dataclass(frozen=True)
class EventScore:
    """Metrics of a tally; NaN where there is nothing to divide by.

    Args:
        tally: What was counted.
    """

    tally: Tally

    @property
    def sensitivity(self) -> float:
        """Share of what is true that was found; NaN without any."""
        return _ratio(self.tally.hits, self.tally.true)

    @property
    def precision(self) -> float:
        """Hits over hits and false alarms; NaN without either."""
        return _ratio(self.tally.hits, self.tally.hits + self.tally.alarms)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; NaN when nothing is true and nothing a false alarm."""
        true, hits, alarms, _ = self.tally
        return _ratio(2 * hits, hits + alarms + true)

    @property
    def alarms_per_day(self) -> float:
        """False alarms in 24 h of recording."""
        return float(alarms_per_day(self.tally.alarms, self.tally.seconds))

    @property
    def alarms_per_hour(self) -> float:
        """False alarms in an hour of recording."""
        return float(alarms_per_hour(self.tally.alarms, self.tally.seconds))


def score_events(
    reference: Iterable[Sequence[float]],
    hypothesis: Iterable[Sequence[float]],
    duration: float,
    options: ScoreOptions = SZCORE,
) -> EventScore:
    """Score of the events of one recording.

    Args:
        reference: Onset and offset of the true seizures in s.
        hypothesis: The same of the detected ones.
        duration: Length of the recording in s.
        options: When a detection counts.

    Raises:
        DataError: An event ends before it begins, a time is not finite, or the duration is below
            0.1 s.
    """
    found = _event_scoring(reference, hypothesis, duration, options)
    seconds = found.numSamples / GRID
    return EventScore(Tally(int(found.refTrue), int(found.tp), int(found.fp), seconds))


def pieces(
    events: Iterable[Sequence[float]],
    duration: float,
    options: ScoreOptions = SZCORE,
) -> list[Interval]:
    """What of a list of events is counted: joined, then split.

    Args:
        events: Onset and offset in s.
        duration: Length of the recording in s.
        options: When events are joined and split.
    """
    found = _event_scoring(events, (), duration, options).ref.events
    return [Interval(float(onset), float(offset)) for onset, offset in found]


def score_samples(
    reference: Iterable[Sequence[float]],
    hypothesis: Iterable[Sequence[float]],
    duration: float,
) -> EventScore:
    """Score of the seconds of one recording: masks at 1 Hz, no tolerance.

    Args:
        reference: Onset and offset of the true seizures in s.
        hypothesis: The same of the detected ones.
        duration: Length of the recording in s.

    Raises:
        DataError: As for `score_events`.
    """
    found = SampleScoring(*_annotations(reference, hypothesis, duration), fs=1)
    tally = Tally(int(found.refTrue), int(found.tp), int(found.fp), float(found.numSamples))
    return EventScore(tally)


def sample_mask(
    events: Iterable[Sequence[float]], duration: float, rate: int = 1
) -> npt.NDArray[np.bool_]:
    """Whether each sample of a grid lies in an event, `(samples,)`.

    Args:
        events: Onset and offset in s.
        duration: Length of the recording in s.
        rate: Samples per second.
    """
    ordered = tidy(events, duration)
    mask: npt.NDArray[np.bool_] = Annotation(ordered, rate, round(duration * rate)).mask
    return mask


def tidy(events: Iterable[Sequence[float]], duration: float) -> list[tuple[float, float]]:
    """Events sorted, cut to the recording, united where they overlap; none too short for the grid.

    Args:
        events: Onset and offset in s.
        duration: Length of the recording in s.

    Raises:
        DataError: An event ends before it begins, or a time is not finite.
    """
    found: list[tuple[float, float]] = []
    for onset, offset in sorted((float(a), float(b)) for a, b in events):
        if not (math.isfinite(onset) and math.isfinite(offset) and offset >= onset):
            raise DataError(f"events: {onset:g} s to {offset:g} s is no stretch of time")
        if offset < 0 or onset >= duration:
            continue
        first, last = _on_grid(max(onset, 0.0), min(offset, duration), duration)
        if found and first < found[-1][1]:
            first, last = found[-1][0], max(found[-1][1], last)
            found.pop()
        found.append((first, last))
    return found


def _on_grid(onset: float, offset: float, duration: float) -> tuple[float, float]:
    """An event between two points of the grid would have no sample and count as a false alarm."""
    if round(onset * GRID) < round(offset * GRID):
        return onset, offset
    last = max(round(duration * GRID), 1)
    place = min(int(onset * GRID), last - 1)
    return place / GRID, (place + 1) / GRID


def _annotations(
    reference: Iterable[Sequence[float]],
    hypothesis: Iterable[Sequence[float]],
    duration: float,
    merge: float = 0.0,
) -> tuple[Annotation, Annotation]:
    if not (math.isfinite(duration) and round(duration * GRID) >= 1):
        raise DataError(f"duration: {duration:g} s is too short to score; 0.1 s or more is needed")
    samples = round(duration * GRID)
    first, second = (
        Annotation(_joined(tidy(events, duration), merge), GRID, samples)
        for events in (reference, hypothesis)
    )
    return first, second


def _joined(events: list[tuple[float, float]], merge: float) -> list[tuple[float, float]]:
    """What the package does first, without its quadratic time for thousands of events."""
    found: list[tuple[float, float]] = []
    for onset, offset in events:
        if found and onset - found[-1][1] < merge:
            onset = found.pop()[0]
        found.append((onset, offset))
    return found


def _event_scoring(
    reference: Iterable[Sequence[float]],
    hypothesis: Iterable[Sequence[float]],
    duration: float,
    options: ScoreOptions,
) -> EventScoring:
    parameters = EventScoring.Parameters(
        toleranceStart=options.before,
        toleranceEnd=options.after,
        minOverlap=options.overlap,
        maxEventDuration=options.longest,
        minDurationBetweenEvents=options.merge,
    )
    annotations = _annotations(reference, hypothesis, duration, options.merge)
    return EventScoring(*annotations, parameters)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
