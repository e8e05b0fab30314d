"""Where the windows of a recording lie, and what the newest segment of each is labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError

Seconds = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
# A quotient of times that misses a whole number by less than this is one; times are sums of floats.
SLACK = 1e-6
# Around a seizure the slowed-down windows begin this many windows before and after it.
SLOW_BEFORE, SLOW_AFTER = 3, 2


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """How windows are laid over a recording.

    Args:
        num_segments: Segments of a window.
        segment_seconds: Length of a segment, s.
        stride_seconds: From one window to the next, s.
        padding: `repeat` gives decisions to the segments for which a whole window does not exist
            yet, by repeating the first segment of the stretch on the left. The number of segments
            stays fixed, since the row of the time table that a distance takes depends on it.
            `none` leaves those segments without a decision.
        mode: `reference` yields the windows and labels of the authors' code: the last
            `num_segments` windows are missing, gaps are ignored, nothing is padded, and the
            labelled segment is the window divided by its segments without the remainder, s.

    Raises:
        ConfigError: A number is too small.
    """

    num_segments: int = 25
    segment_seconds: float = 5.0
    stride_seconds: float = 5.0
    padding: Literal["repeat", "none"] = "repeat"
    mode: Literal["default", "reference"] = "default"

    def __post_init__(self) -> None:
        if self.num_segments < 1:
            raise ConfigError(f"data.num_segments: must be at least 1, got {self.num_segments}")
        for name in ("segment_seconds", "stride_seconds"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"data.{name}: must be more than 0 s, got {value}")
        for name, known in (("padding", ("repeat", "none")), ("mode", ("default", "reference"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"data.{name}: {getattr(self, name)!r} is unknown; use {' or '.join(known)}"
                )

    @property
    def seconds(self) -> float:
        """Length of a window, s."""
        return self.num_segments * self.segment_seconds

    @property
    def pads(self) -> bool:
        """Whether windows may begin before the signal."""
        return self.padding == "repeat" and self.mode == "default"

    def segment_samples(self, rate: float) -> int:
        """Samples of a segment.

        Args:
            rate: Samples per second, Hz.

        Raises:
            ConfigError: A segment is no whole number of samples.
        """
        exact = self.segment_seconds * rate
        samples = round(exact)
        if samples < 1 or abs(exact - samples) > SLACK * max(1.0, exact):
            nearest = max(1, samples) / rate
            raise ConfigError(
                f"data.segment_seconds: {self.segment_seconds} s are {exact:g} samples at "
                f"{rate:g} Hz, which is no whole number; use {nearest:.6g}"
            )
        return samples


@dataclass(frozen=True)
class Windows:
    """Windows of one recording in the order of time; every array is `(windows,)`.

    Args:
        start: Begin of each, s; negative, or inside the gap before, where it is padded.
        padded: Segments on the left that repeat the next one.
        step_start: Begin of the newest segment, s.
        step_stop: End of the newest segment, s.
        label: 1 where the newest segment touches a seizure.
        event_start: Begin of the seizure inside the newest segment, s; NaN without one. Two
            seizures in one segment count as one.
        event_stop: Its end, s.
    """

    start: Seconds
    padded: Counts
    step_start: Seconds
    step_stop: Seconds
    label: Counts
    event_start: Seconds
    event_stop: Seconds

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, which: slice | npt.NDArray[np.bool_] | Counts) -> Windows:
        return Windows(*(getattr(self, each.name)[which] for each in fields(self)))


def index_windows(
    duration: float,
    seizures: Sequence[Interval],
    gaps: Sequence[Interval],
    options: WindowOptions,
    *,
    slow_down: bool = False,
) -> Windows:
    """Every window that fits between the gaps of a recording.

    Args:
        duration: Length of the recording, s.
        seizures: Annotated seizures, s.
        gaps: Stretches without signal; no window reaches across one.
        options: Length, stride, padding.
        slow_down: Divide the stride by `num_segments` from three windows before to two windows
            after each seizure, for training.
    """
    parts = [Interval(0.0, duration)] if options.mode == "reference" else stretches(duration, gaps)
    found = [_starts(part, seizures, options, slow_down) for part in parts]
    start = np.concatenate([own for own, _ in found]) if found else np.zeros(0)
    padded = np.concatenate([own for _, own in found]) if found else np.zeros(0, np.int64)
    stop = start + options.seconds
    step_start = stop - options.segment_seconds
    labelled = _reference_segment(options) if options.mode == "reference" else None
    label = touches(step_start if labelled is None else stop - labelled, stop, seizures)
    events = _inside(step_start, stop, seizures)
    return Windows(start, padded, step_start, stop, label.astype(np.int64), *events)


def stretches(duration: float, gaps: Sequence[Interval]) -> list[Interval]:
    """What a recording holds between its gaps.

    Args:
        duration: Length of the recording, s.
        gaps: Stretches without signal, in any order.
    """
    found, begin = [], 0.0
    for gap in sorted(gaps):
        if gap.onset > begin:
            found.append(Interval(begin, min(gap.onset, duration)))
        begin = max(begin, gap.offset)
    if begin < duration:
        found.append(Interval(begin, duration))
    return found


def touches(start: Seconds, stop: Seconds, events: Sequence[Interval]) -> npt.NDArray[np.bool_]:
    """Whether each span touches an event; ends belong to both, `(spans,)`.

    Args:
        start: Begin of each span, s.
        stop: End of each span, s.
        events: Seizures.
    """
    found = np.zeros(len(start), bool)
    for event in events:
        found |= (event.onset <= stop) & (event.offset >= start)
    return found


def _starts(
    part: Interval, seizures: Sequence[Interval], options: WindowOptions, slow_down: bool
) -> tuple[Seconds, Counts]:
    """Begin of the windows of one stretch and how many of their segments are padding."""
    per_stride = options.num_segments if slow_down else 1
    stride = options.stride_seconds / per_stride
    room = part.offset - part.onset - options.seconds
    last = _floor(room / stride)
    if options.mode == "reference":
        lost = _floor(options.seconds / options.stride_seconds)
        last = (_floor(room / options.stride_seconds) - lost) * per_stride
    # A padded window holds one real segment at least.
    longest = options.seconds - options.segment_seconds
    first = -_floor(longest / stride) if options.pads else 0
    number = np.arange(first, last + 1, dtype=np.int64)
    start = np.asarray(part.onset + number * stride, np.float64)
    if slow_down:
        kept = (number % per_stride == 0) | _near(start, seizures, options)
        number, start = number[kept], start[kept]
    missing = np.maximum(part.onset - start, 0.0) / options.segment_seconds
    return start, np.ceil(missing - SLACK).astype(np.int64)


def _near(
    start: Seconds, seizures: Sequence[Interval], options: WindowOptions
) -> npt.NDArray[np.bool_]:
    before, after = SLOW_BEFORE * options.seconds, SLOW_AFTER * options.seconds
    around = [Interval(event.onset - before, event.offset + after) for event in seizures]
    return touches(start, start, around)


def _floor(quotient: float) -> int:
    return math.floor(quotient + SLACK)


def _reference_segment(options: WindowOptions) -> float:
    return float(options.seconds // options.num_segments)


def _inside(start: Seconds, stop: Seconds, seizures: Sequence[Interval]) -> tuple[Seconds, Seconds]:
    """Begin and end of what the seizures have in each span, NaN where they have nothing."""
    onset, offset = np.full(len(start), np.inf), np.full(len(start), -np.inf)
    for event in seizures:
        here = touches(start, stop, [event])
        onset[here] = np.minimum(onset, np.maximum(start, event.onset))[here]
        offset[here] = np.maximum(offset, np.minimum(stop, event.offset))[here]
    nothing = onset > offset
    onset[nothing] = offset[nothing] = np.nan
    return onset, offset
