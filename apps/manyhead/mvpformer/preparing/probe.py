"""A bounded look at a recording: some pieces at seeded places, spread over its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.preparing.stretches import Bounds
from manyhead.mvpformer.recording import Recording, Signal

PIECES = 16
PIECE_SECONDS = 2.0
# Values of all pieces together, 64 MB.
VALUES = 16_000_000


@dataclass(frozen=True)
class Probe:
    """Pieces of a recording.

    Args:
        pieces: Signals, each `(channels, samples)`.
        flat: Whether a channel never changes within a piece, `(channels,)`.
        numbers: Whether a channel holds any number at all, `(channels,)`.
        about: What was looked at, in words.
    """

    pieces: tuple[Signal, ...]
    flat: npt.NDArray[np.bool_]
    numbers: npt.NDArray[np.bool_]
    about: str


def look(recording: Recording, stretches: Sequence[Bounds], seed: int) -> Probe:
    """Read the pieces; memory does not grow with the recording.

    Args:
        recording: The recording.
        stretches: Parts of it that hold signal.
        seed: Of the places.
    """
    info = recording.info
    room = max(VALUES // (PIECES * max(len(info.channels), 1)), 2)
    length = max(min(round(PIECE_SECONDS * info.rate), room), 2)
    pieces = [recording.read(*place) for place in _places(stretches, length, seed)]
    flat = np.all([np.ptp(piece, axis=1) == 0 for piece in pieces], axis=0)
    numbers = np.any([np.isfinite(piece).any(axis=1) for piece in pieces], axis=0)
    about = f"{len(pieces)} pieces of {pieces[0].shape[1] / info.rate:.3g} s"
    return Probe(tuple(pieces), flat, numbers, about)


def _places(stretches: Sequence[Bounds], length: int, seed: int) -> list[tuple[int, int]]:
    """First and last sample of each piece, one in each sixteenth of the signal."""
    generator = np.random.default_rng(seed)
    sizes = np.array([s.raw_stop - s.raw_start for s in stretches])
    ends = np.cumsum(sizes)
    count = int(min(PIECES, max(ends[-1] // length, 1)))
    at = (np.arange(count) + generator.random(count)) * ends[-1] / count
    places = []
    for value in at.astype(np.int64):
        which = int(np.searchsorted(ends, value, side="right"))
        inside = int(value - (ends[which] - sizes[which]))
        start = max(min(inside, int(sizes[which]) - length), 0)
        first = stretches[which].raw_start + start
        places.append((first, min(first + length, stretches[which].raw_stop)))
    return places
