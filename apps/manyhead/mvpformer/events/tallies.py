"""What is counted in each recording and added up for each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.events.delay import delays, event_delays
from manyhead.mvpformer.events.postprocess import runs
from manyhead.mvpformer.events.steps import step_counts
from manyhead.mvpformer.events.szcore import (
    SZCORE,
    ScoreOptions,
    Tally,
    score_events,
    score_samples,
)
from manyhead.mvpformer.recording import Interval

Array = npt.NDArray[Any]

# What is left of the tolerance when a detection has to overlap the seizure itself.
OVERLAP = ScoreOptions(before=0.0, after=0.0)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The decisions of one recording.

    Args:
        start: Start of the newest segment of each step in s, rising, `(steps,)`.
        stop: Its end in s, `(steps,)`.
        label: Whether it is part of a true seizure, `(steps,)`.
        probability: Of a seizure, `(steps,)`.
        detected: Whether it was called one after post-processing, `(steps,)`.
    """

    start: Array
    stop: Array
    label: Array
    probability: Array
    detected: Array


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was counted in a recording, or in all recordings of a patient.

    Args:
        events: Events with the tolerance that was asked for.
        overlap: Events when a detection has to overlap the seizure itself.
        samples: Seconds, without tolerance.
        seizures: True seizures as they were marked.
        delays: From onset to alarm of each of them in s, NaN where it was missed, `(seizures,)`.
        recordings: Recordings.
        steps: Steps by truth and decision; all 0 when only events are known.
        label: Label of all steps, `(steps,)`.
        probability: Probability of all steps, `(steps,)`.
    """

    events: Tally
    overlap: Tally
    samples: Tally
    seizures: int
    delays: Array
    recordings: int = 1
    steps: dict[str, int] = field(default_factory=lambda: step_counts([], []))
    label: Array = field(default_factory=lambda: np.zeros(0))
    probability: Array = field(default_factory=lambda: np.zeros(0))


def count_steps(
    steps: Steps, seizures: Sequence[Interval], duration: float, options: ScoreOptions = SZCORE
) -> Counted:
    """What is counted in a recording whose decisions are known.

    Args:
        steps: Decisions.
        seizures: True seizures in s.
        duration: Length of the recording in s.
        options: When a detection counts.
    """
    events = runs(steps.start, steps.stop, np.asarray(steps.detected) > 0.5)
    found = delays(seizures, steps.start, steps.stop, steps.detected, options)
    return Counted(
        **_tallies(seizures, events, duration, options),
        delays=found,
        steps=step_counts(steps.label, steps.detected),
        label=steps.label,
        probability=steps.probability,
    )


def count_events(
    seizures: Sequence[Interval],
    events: Sequence[Interval],
    duration: float,
    options: ScoreOptions = SZCORE,
    step: float = 0.0,
) -> Counted:
    """What is counted in a recording of which only the detected events are known.

    Args:
        seizures: True seizures in s.
        events: Detected ones in s.
        duration: Length of the recording in s.
        options: When a detection counts.
        step: Length of a step of the detector in s, after which an event could be known.
    """
    found = event_delays(seizures, events, step, options)
    return Counted(**_tallies(seizures, events, duration, options), delays=found)


def pooled(parts: Sequence[Counted]) -> Counted:
    """The counts of several recordings, or patients, together.

    Args:
        parts: One or more.
    """
    return Counted(
        events=add(part.events for part in parts),
        overlap=add(part.overlap for part in parts),
        samples=add(part.samples for part in parts),
        seizures=sum(part.seizures for part in parts),
        delays=np.concatenate([part.delays for part in parts]),
        recordings=sum(part.recordings for part in parts),
        steps={name: sum(part.steps[name] for part in parts) for name in parts[0].steps},
        label=np.concatenate([part.label for part in parts]),
        probability=np.concatenate([part.probability for part in parts]),
    )


def add(tallies: Any) -> Tally:
    """Sum of tallies."""
    return Tally(*(sum(values) for values in zip(*tallies, strict=True)))


def _tallies(
    seizures: Sequence[Interval],
    events: Sequence[Interval],
    duration: float,
    options: ScoreOptions,
) -> dict[str, Any]:
    return {
        "events": score_events(seizures, events, duration, options).tally,
        "overlap": score_events(seizures, events, duration, OVERLAP).tally,
        "samples": score_samples(seizures, events, duration).tally,
        "seizures": len(seizures),
    }
