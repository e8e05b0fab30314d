"""Another rate, at exact positions, so that nothing drifts and pieces fit together.

Rates are fractions: 173.61 Hz is 17361/100, and sample k of the new grid lies at
`k * 17361 / 51200` of the old one, computed in integers however long the recording is.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.recording import Signal

# Half of the kernel in samples of the lower rate, and the shape of its window: 80 dB at the half
# rate, nothing lost below 0.42 of the rate.
CROSSINGS = 32
BETA = 7.86
CUTOFF = 0.461
# Rates with more positions than this between two samples take the kernel from a table.
PHASES = 512
# Fine enough that interpolating between its rows stays below float32.
TABLE = 4096
BLOCK = 64
# Weights that are held at a time where they differ from block to block, 32 MB.
WEIGHTS = 4_000_000


class Resampler(Protocol):
    """Turns samples of one grid into samples of another.

    Attributes:
        step: Old samples per new sample.
        most: New samples at a time, to bound the memory of what comes on top of the signal.
    """

    step: Fraction
    most: int

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Samples of the recording that the new samples `start` to `stop` need."""

    def __call__(self, signal: Signal, start: int, stop: int) -> Signal:
        """New samples `start` to `stop`, from the samples of `span`."""


def ratio(rate: float, wanted: float) -> Fraction:
    """Old samples per new sample.

    Args:
        rate: Of the recording, Hz.
        wanted: New rate, Hz.
    """
    # The error stays below a microsecond a day, far below that of any clock.
    return Fraction(rate).limit_denominator(10_000) / Fraction(wanted).limit_denominator(10_000)


def kernel(offset: npt.NDArray[np.float64], shrink: float) -> npt.NDArray[np.float64]:
    """Weights of a windowed sinc, each row with sum 1.

    Args:
        offset: Distance from the new sample, in old samples, `(positions, taps)`.
        shrink: Lower rate divided by the old rate, at most 1.
    """
    inside = np.clip(1 - np.square(offset * shrink / CROSSINGS), 0, None)
    window = np.where(np.abs(offset * shrink) <= CROSSINGS, np.i0(BETA * np.sqrt(inside)), 0)
    weights = np.sinc(2 * CUTOFF * shrink * offset) * window
    normal: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normal


class BandLimited:
    """Low-pass with a linear-phase FIR kernel and evaluate at the new positions.

    New samples are worked out in blocks: a block is a matrix product of the samples around it
    with a matrix of weights, the same for all blocks where the positions repeat.

    Args:
        step: Old samples per new sample.
    """

    def __init__(self, step: Fraction) -> None:
        self.step = step
        self._shrink = float(min(Fraction(1), 1 / step))
        self._half = int(np.ceil(CROSSINGS / self._shrink))
        up = step.denominator
        # Longer blocks spend less on the samples that neighbours share.
        lean = max(BLOCK, round(2 * self._half / float(step)))
        self._periodic = up <= PHASES
        self._block = up * -(-lean // up) if self._periodic else BLOCK
        self._width = ((self._block - 1) * step.numerator) // up + 1 + 2 * self._half
        self._weights = self._matrices(np.zeros(1, np.int64))[0] if self._periodic else None
        # Weights that differ from block to block take more room than the signal.
        values = self._width * self._block
        self.most = sys.maxsize if self._periodic else self._block * max(WEIGHTS // values, 1)
        self._rows: npt.NDArray[np.float64] | None = None

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Samples of the recording that the new samples `start` to `stop` need."""
        blocks = self._blocks(start, stop)
        return int(self._base(blocks[0])), int(self._base(blocks[-1])) + self._width

    def __call__(self, signal: Signal, start: int, stop: int) -> Signal:
        """New samples `start` to `stop`, `(channels, stop - start)`.

        Args:
            signal: Samples of `span(start, stop)`, `(channels, samples)`.
            start: First new sample.
            stop: New sample after the last.
        """
        blocks = self._blocks(start, stop)
        base = self._base(blocks)
        index = (base - base[0])[:, None] + np.arange(self._width)
        around = np.take(signal.astype(np.float64), index, axis=1)
        if self._weights is not None:
            new = around @ self._weights
        else:
            new = (around.swapaxes(0, 1) @ self._matrices(blocks)).swapaxes(0, 1)
        new = new.reshape(len(signal), -1)
        first = start - int(blocks[0]) * self._block
        return np.asarray(new[:, first : first + stop - start], np.float32)

    def _blocks(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        return np.arange(start // self._block, -(-stop // self._block), dtype=np.int64)

    def _base(self, block: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """First old sample that a block needs."""
        first = block * self._block * self.step.numerator // self.step.denominator
        return first - self._half + 1

    def _matrices(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Weights of the old samples in the new ones, `(blocks, width, block)`."""
        number = blocks[:, None] * self._block + np.arange(self._block)
        whole, rest = np.divmod(number * self.step.numerator, self.step.denominator)
        weights = self._kernel(rest.ravel() / self.step.denominator)
        taps = np.arange(2 * self._half)
        row = (whole - self._half + 1 - self._base(blocks)[:, None])[..., None] + taps
        matrices = np.zeros((len(blocks), self._width, self._block))
        which = np.arange(len(blocks))[:, None, None]
        column = np.arange(self._block)[None, :, None]
        matrices[which, row, column] = weights.reshape(len(blocks), self._block, -1)
        return matrices

    def _kernel(self, phase: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Weights of the samples around positions between two samples, `(positions, taps)`."""
        taps = np.arange(2 * self._half) - self._half + 1
        if self._periodic:
            return kernel(phase[:, None] - taps, self._shrink)
        if self._rows is None:
            # A wider kernel is smoother and needs fewer rows.
            places = np.linspace(0, 1, math.ceil(TABLE * self._shrink) + 1)
            self._rows = kernel(places[:, None] - taps, self._shrink)
        place = phase * (len(self._rows) - 1)
        row = place.astype(np.int64)
        share = (place - row)[:, None]
        return self._rows[row] * (1 - share) + self._rows[row + 1] * share


class Linear:
    """Interpolate between two samples; centres lie half a sample in, as in image scaling.

    Equal to `torch.nn.functional.interpolate(mode="linear", align_corners=False)` of the whole
    recording.

    Args:
        step: Old samples per new sample.
    """

    def __init__(self, step: Fraction) -> None:
        self.step = step
        self.most = sys.maxsize

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Samples of the recording that the new samples `start` to `stop` need."""
        whole, _ = self._places(np.array([start, stop - 1]))
        return int(whole[0]), int(whole[1]) + 2

    def __call__(self, signal: Signal, start: int, stop: int) -> Signal:
        """New samples `start` to `stop`, `(channels, stop - start)`.

        Args:
            signal: Samples of `span(start, stop)`, `(channels, samples)`.
            start: First new sample.
            stop: New sample after the last.
        """
        whole, share = self._places(np.arange(start, stop))
        left = np.take(signal, whole - whole[0], axis=1)
        right = np.take(signal, whole - whole[0] + 1, axis=1)
        return np.asarray(left * (1 - share) + right * share, np.float32)

    def _places(
        self, number: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        down, up = self.step.numerator, self.step.denominator
        whole, rest = np.divmod((2 * number + 1) * down - up, 2 * up)
        return whole, rest / (2 * up)
