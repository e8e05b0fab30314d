"""How long after its onset a seizure is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.events.szcore import SZCORE, ScoreOptions
from manyhead.mvpformer.recording import Interval

Array = npt.NDArray[Any]

WITHIN = (10, 30, 60)


def delays(
    seizures: Sequence[Interval],
    start: npt.ArrayLike,
    stop: npt.ArrayLike,
    detected: npt.ArrayLike,
    options: ScoreOptions = SZCORE,
) -> Array:
    """From the onset of each seizure to the end of its first positive step in s, `(seizures,)`.

    The end of the step is when the decision can be known. A step belongs to a seizure when it
    overlaps it or the tolerance around it, so an alarm just before the onset has a negative delay.
    NaN for a seizure without a positive step.

    Args:
        seizures: True seizures in s.
        start: Start of the newest segment of each step in s, rising, `(steps,)`.
        stop: Its end in s, rising, `(steps,)`.
        detected: Whether the step is positive, `(steps,)`.
        options: Of which the tolerance is used.
    """
    positive = np.asarray(detected) > 0.5
    first = np.asarray(start, np.float64)[positive]
    last = np.asarray(stop, np.float64)[positive]
    found = np.full(len(seizures), np.nan)
    for number, (onset, offset) in enumerate(seizures):
        place = int(np.searchsorted(last, onset - options.before, side="right"))
        if place < len(last) and first[place] < offset + options.after:
            found[number] = last[place] - onset
    return found


def event_delays(
    seizures: Sequence[Interval],
    events: Sequence[Interval],
    step: float = 0.0,
    options: ScoreOptions = SZCORE,
) -> Array:
    """The same from detected events alone, where single steps are not known, `(seizures,)`.

    Args:
        seizures: True seizures in s.
        events: Detected ones in s.
        step: Length of a step of the detector in s, after which an event could be known.
        options: Of which the tolerance is used.
    """
    found = np.full(len(seizures), np.nan)
    for number, (onset, offset) in enumerate(seizures):
        low, high = onset - options.before, offset + options.after
        known = [max(e.onset, low) for e in events if e.offset > low and e.onset < high]
        if known:
            found[number] = min(known) + step - onset
    return found
