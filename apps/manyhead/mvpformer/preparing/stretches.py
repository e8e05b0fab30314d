"""Stretches of a recording between gaps, read by piece as if they were prepared whole.

At the ends of a stretch the signal is mirrored (the last sample is repeated once: `c b a | a b c`),
so filters meet neither a step nor the signal behind a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from manyhead.mvpformer.preparing.filters import ZeroPhase
from manyhead.mvpformer.preparing.resampling import Resampler
from manyhead.mvpformer.recording import RecordingInfo, Signal

Read = Callable[[int, int], Signal]
# Values that are in work at a time, whatever is asked for.
RAW_VALUES = 2_000_000
NEW_VALUES = 4_000_000


@dataclass(frozen=True)
class Bounds:
    """First sample and the one after the last, on the grid of the file and on the new one."""

    raw_start: int
    raw_stop: int
    start: int
    stop: int


def find_stretches(info: RecordingInfo, step: Fraction) -> list[Bounds]:
    """Stretches with signal, in order.

    Args:
        info: Of the recording; its gaps are left out.
        step: Old samples per new sample.
    """
    total = math.floor(info.samples / step)
    edges = [0]
    for gap in info.gaps:
        # A microsecond of tolerance: times in tables are rounded.
        edges.append(math.floor(gap.onset * info.rate + 1e-6 * info.rate))
        edges.append(math.ceil(gap.offset * info.rate - 1e-6 * info.rate))
    edges.append(info.samples)
    edges = [min(max(edge, 0), info.samples) for edge in edges]
    found = [
        Bounds(lo, hi, math.ceil(lo / step), min(math.ceil(hi / step), total))
        for lo, hi in zip(edges[::2], edges[1::2], strict=True)
    ]
    return [b for b in found if b.raw_start < b.raw_stop and b.start < b.stop]


def mirrored(read: Read, bounds: tuple[int, int], start: int, stop: int) -> Signal:
    """Samples `start` to `stop` of a stretch that goes on as its own mirror image.

    Args:
        read: Gives samples within the bounds.
        bounds: First sample of the stretch and the one after the last.
        start: First sample, may lie before the stretch.
        stop: Sample after the last, may lie behind the stretch.
    """
    first, end = bounds
    if first <= start and stop <= end:
        return read(start, stop)
    length = end - first
    index = (np.arange(start, stop) - first) % (2 * length)
    index = np.where(index < length, index, 2 * length - 1 - index)
    low = int(index.min())
    return read(first + low, first + int(index.max()) + 1)[:, index - low]


def by_piece(read: Read, start: int, stop: int, piece: int, channels: int) -> Signal:
    """Samples `start` to `stop`, worked out `piece` samples at a time."""
    if stop - start <= piece:
        return read(start, stop)
    out = np.empty((channels, stop - start), np.float32)
    for at in range(start, stop, piece):
        end = min(at + piece, stop)
        out[:, at - start : end - start] = read(at, end)
    return out


class Stretch:
    """A stretch with signal, resampled and filtered.

    Args:
        source: Gives samples of the file after the montage.
        channels: Number of channels that `source` gives.
        bounds: Of the stretch.
        resampler: Changes the rate; None leaves it.
        fir: Filters at the new rate; None for none.
    """

    def __init__(
        self,
        source: Read,
        channels: int,
        bounds: Bounds,
        resampler: Resampler | None,
        fir: ZeroPhase | None,
    ) -> None:
        self.bounds = bounds
        self._source = source
        self._channels = channels
        self._resampler = resampler
        self._fir = fir
        self._piece = max(NEW_VALUES // channels, 4 * fir.margin if fir else 1)

    def read(self, start: int, stop: int) -> Signal:
        """New samples `start` to `stop`, both inside the stretch."""
        if self._fir is None:
            return self._resampled(start, stop)
        return by_piece(self._filtered, start, stop, self._piece, self._channels)

    def _filtered(self, start: int, stop: int) -> Signal:
        assert self._fir is not None  # noqa: S101
        margin = self._fir.margin
        inside = (self.bounds.start, self.bounds.stop)
        return self._fir(mirrored(self._resampled, inside, start - margin, stop + margin))

    def _resampled(self, start: int, stop: int) -> Signal:
        if self._resampler is None:
            return self._source(start, stop)
        old_per_new = float(self._resampler.step)
        piece = max(int(RAW_VALUES / (self._channels * max(old_per_new, 1))), 256)
        piece = min(piece, self._resampler.most)
        return by_piece(self._one_piece, start, stop, piece, self._channels)

    def _one_piece(self, start: int, stop: int) -> Signal:
        assert self._resampler is not None  # noqa: S101
        inside = (self.bounds.raw_start, self.bounds.raw_stop)
        around = mirrored(self._source, inside, *self._resampler.span(start, stop))
        return self._resampler(around, start, stop)
