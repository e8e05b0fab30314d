"""Long stretches in which every channel is exactly zero, found without reading everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers.files import FileRecording, merged
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import DataError

LONGEST_S = 60.0
# Looks into a recording: of 16 hours and less every silence of a minute is found, of longer
# ones those of a two-thousandth part and more, which a missing hour always is.
LOOKS, LOOK_SAMPLES = 2000, 4
# Read at a time where a silence begins and ends.
EDGE_S = 10.0

Read = Callable[[int, int], npt.NDArray[np.float32]]


def find_silence(
    read: Read, samples: int, rate: float, loud: Callable[[int], bool] = lambda _: False
) -> tuple[Interval, ...]:
    """Stretches of more than a minute in which all channels are zero, in s.

    Args:
        read: Samples from start to stop, `(channels, stop - start)`.
        samples: Of the recording.
        rate: Hz.
        loud: Whether there is surely signal around a sample, where that is known without reading.
    """
    step = max(int(LONGEST_S * rate / 2), -(-samples // LOOKS), 1)
    looks = [*range(0, samples, step), max(samples - LOOK_SAMPLES, 0)]
    silent = [
        not loud(look) and not read(look, min(look + LOOK_SAMPLES, samples)).any() for look in looks
    ]
    found, number = [], 0
    while number < len(looks):
        last = number
        while silent[number] and last + 1 < len(looks) and silent[last + 1]:
            last += 1
        if silent[number]:
            start = _begin(read, looks[number], rate)
            stop = _end(read, looks[last], samples, rate)
            if stop - start > LONGEST_S * rate:
                found.append(Interval(start / rate, stop / rate))
        number = last + 1
    return merged(found)


def _begin(read: Read, inside: int, rate: float) -> int:
    """Sample at which the silence around a sample begins."""
    edge = inside
    while edge > 0:
        low = max(edge - int(EDGE_S * rate), 0)
        loud = np.flatnonzero(read(low, edge).any(axis=0))
        if len(loud):
            return low + int(loud[-1]) + 1
        edge = low
    return 0


def _end(read: Read, inside: int, samples: int, rate: float) -> int:
    """Sample after the last of the silence around a sample."""
    edge = inside
    while edge < samples:
        high = min(edge + int(EDGE_S * rate), samples)
        loud = np.flatnonzero(read(edge, high).any(axis=0))
        if len(loud):
            return edge + int(loud[0])
        edge = high
    return samples


def treat_silence(recording: FileRecording, zeros: Literal["refuse", "keep"]) -> FileRecording:
    """The recording, with long silences as gaps.

    Args:
        recording: To look into.
        zeros: As `ReadOptions.zeros`.

    Raises:
        DataError: There is one and it shall not be kept.
    """
    info = recording.info
    known = [gap for gap in info.gaps if gap.offset > gap.onset]
    silences = [
        silence
        for silence in find_silence(recording.read, info.samples, info.rate, recording.surely_loud)
        if not any(gap.onset <= silence.onset and silence.offset <= gap.offset for gap in known)
    ]
    if silences and zeros == "refuse":
        total = sum(offset - onset for onset, offset in silences)
        raise DataError(
            f"{info.id}: all channels are zero for {total:.0f} s, first from "
            f"{silences[0].onset:.0f} s on, as if part files were missing; restore them, or pass "
            "zeros=keep to treat this as gaps"
        )
    if silences:
        note = f"{len(silences)} stretches of zeros are gaps"
        gaps = merged((*info.gaps, *silences))
        recording.info = replace(info, gaps=gaps, notes=(*info.notes, note))
    return recording
