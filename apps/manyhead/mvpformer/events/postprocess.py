"""From a probability per step to seizures: moving median, threshold, joining, shortest length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError

Array = npt.NDArray[Any]

# Times come out of divisions by the sampling rate and go through text files.
ROUNDING = 1e-3
# Steps whose starts lie further apart than so many usual distances have something between them.
FARTHEST = 1.5


@dataclass(frozen=True, kw_only=True)
class PostOptions:
    """How probabilities become seizures.

    Args:
        median: Length of the moving median in steps, odd; 1 leaves the probabilities as they are.
        threshold: A step is positive when its probability is above this.
        merge_s: Detections that are less than so many s apart become one.
        min_s: Detections shorter than so many s are dropped.

    Raises:
        ConfigError: A value is out of its range.
    """

    median: int = 3
    threshold: float = 0.5
    merge_s: float = 0.0
    min_s: float = 0.0

    def __post_init__(self) -> None:
        if self.median < 1 or self.median % 2 == 0:
            raise ConfigError(f"median: {self.median} is not an odd number of steps, 1 or more")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold: {self.threshold} is no probability from 0 to 1")
        for name in ("merge_s", "min_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: {getattr(self, name)} is not 0 s or more")


def detect(
    probability: npt.ArrayLike, start: npt.ArrayLike, stop: npt.ArrayLike, options: PostOptions
) -> list[Interval]:
    """Detected seizures in order, in s; none overlap.

    A positive step covers its newest segment. Positive steps that follow each other are one
    seizure, and the median looks only at steps that follow each other.

    Args:
        probability: Of a seizure in each step, `(steps,)`; NaN where there is no decision.
        start: Start of the newest segment of each step in s, rising, `(steps,)`.
        stop: Its end in s, rising, `(steps,)`.
        options: How.
    """
    first, last = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    smooth = smoothed(probability, first, options.median)
    found = merged(runs(first, last, smooth > options.threshold), options.merge_s)
    return [event for event in found if event.offset - event.onset >= options.min_s - ROUNDING]


def smoothed(probability: npt.ArrayLike, start: npt.ArrayLike, median: int) -> Array:
    """Centred moving median within steps that follow each other, `(steps,)`.

    At an end the window is cut to the same length on both sides, so the first and the last step
    keep their value.

    Args:
        probability: `(steps,)`; a step without decision (NaN) ends a stretch.
        start: Start of each step in s, rising, `(steps,)`.
        median: Odd length in steps.
    """
    values = np.array(probability, np.float64)
    if median == 1 or len(values) < 3:
        return values
    for part in stretches(np.asarray(start, np.float64), np.isfinite(values)):
        values[part] = _median(values[part], median // 2)
    return values


def _median(values: Array, half: int) -> Array:
    number = len(values)
    found = values.copy()
    if number > 2 * half:
        windows = np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1)
        found[half : number - half] = np.median(windows, axis=1)
    for k in range(1, min(half, number // 2 + 1)):
        for centre in {k, number - 1 - k}:
            side = min(centre, number - 1 - centre)
            found[centre] = np.median(values[centre - side : centre + side + 1])
    return found


def follows(start: Array) -> npt.NDArray[np.bool_]:
    """Whether each step but the first follows on the one before, with nothing left out between.

    Args:
        start: Start of each step in s, rising, `(steps,)`.

    Returns:
        `(steps - 1,)`.
    """
    distance = np.diff(start)
    if not len(distance):
        return np.zeros(0, bool)
    near: npt.NDArray[np.bool_] = distance <= FARTHEST * np.median(distance) + ROUNDING
    return near


def stretches(start: Array, chosen: npt.NDArray[np.bool_]) -> list[slice]:
    """Runs of chosen steps that follow each other.

    Args:
        start: Start of each step in s, rising, `(steps,)`.
        chosen: `(steps,)`.
    """
    begins, ends = _ends(start, chosen)
    return [slice(a, b + 1) for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]


def _ends(start: Array, chosen: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Numbers of the first and the last step of every run."""
    joined = chosen[1:] & chosen[:-1] & follows(start)
    begins = chosen.copy()
    ends = chosen.copy()
    begins[1:] &= ~joined
    ends[:-1] &= ~joined
    return np.flatnonzero(begins), np.flatnonzero(ends)


def runs(start: Array, stop: Array, positive: npt.NDArray[np.bool_]) -> list[Interval]:
    """One interval for each run of positive steps.

    Args:
        start: Start of each step in s, rising, `(steps,)`.
        stop: End in s, rising, `(steps,)`.
        positive: `(steps,)`.
    """
    begins, ends = _ends(start, positive)
    onsets, offsets = start[begins].tolist(), stop[ends].tolist()
    return merged([Interval(*pair) for pair in zip(onsets, offsets, strict=True)], 0.0)


def merged(events: Sequence[Interval], gap: float) -> list[Interval]:
    """Events in order, those that overlap or are less than `gap` apart joined.

    Args:
        events: In any order.
        gap: s.
    """
    found: list[Interval] = []
    for event in sorted(events):
        onset, offset = float(event[0]), float(event[1])
        distance = onset - found[-1].offset if found else math.inf
        if distance <= ROUNDING or distance < gap - ROUNDING:
            found[-1] = Interval(found[-1].onset, max(found[-1].offset, offset))
        else:
            found.append(Interval(onset, offset))
    return found


def marked(start: npt.ArrayLike, stop: npt.ArrayLike, events: Sequence[Interval]) -> Array:
    """Whether each step lies in one of the events, `(steps,)`: the column `detected`.

    `runs` of the marked steps are the events again.

    Args:
        start: Start of each step in s, `(steps,)`.
        stop: End in s, `(steps,)`.
        events: In s, in order, none overlapping.
    """
    first, last = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    if not events:
        return np.zeros(len(first), bool)
    onset, offset = (np.array(side, np.float64) for side in zip(*events, strict=True))
    place = np.searchsorted(onset, first + ROUNDING, side="right") - 1
    inside: Array = (place >= 0) & (last <= offset[np.maximum(place, 0)] + ROUNDING)
    return inside
