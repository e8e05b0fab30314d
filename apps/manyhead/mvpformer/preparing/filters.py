"""Zero-phase FIR filters: mains and its harmonics out, and a band kept.

The kernel is symmetric and centred, so nothing is delayed, and it is short enough that a piece
needs only some seconds on both sides to come out as if the recording had been filtered whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import signal as scipy_signal

from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.recording import Signal

Kernel = npt.NDArray[np.float64]
# What is left of the stopped frequencies, in dB below.
STOP = 60.0
# Hz on either side of a mains harmonic.
NOTCH_HALF_WIDTH = 1.0


def _length(transition: float, rate: float) -> int:
    """Odd number of taps that goes from pass to stop within `transition` Hz."""
    taps, _ = scipy_signal.kaiserord(STOP, transition / (rate / 2))
    return int(taps) | 1


def _design(edges: list[float], transition: float, rate: float, *, keep_zero: bool) -> Kernel:
    window = ("kaiser", scipy_signal.kaiser_beta(STOP))
    taps = _length(transition, rate)
    kernel = scipy_signal.firwin(taps, edges, window=window, pass_zero=keep_zero, fs=rate)
    return np.asarray(kernel, np.float64)


def harmonics(mains: float, rate: float) -> list[float]:
    """Multiples of the mains frequency that a rate can hold, Hz."""
    if not mains:
        return []
    room = rate / 2 - 2 * NOTCH_HALF_WIDTH
    return [mains * k for k in range(1, int(room // mains) + 1)]


class ZeroPhase:
    """A symmetric FIR filter.

    Args:
        kernel: Odd number of weights.
        about: What it does, for the manifest.
    """

    def __init__(self, kernel: Kernel, about: dict[str, Any]) -> None:
        self.kernel = kernel
        self.about = about

    @classmethod
    def build(cls, options: PrepareOptions) -> ZeroPhase | None:
        """The filter that the options ask for; None if they ask for none."""
        rate, (low, high) = options.rate, options.band
        parts = []
        if low:
            parts.append(_design([low], low, rate, keep_zero=False))
        if high:
            transition = min(0.2 * high, 2 * (rate / 2 - high), 2 * (high - low))
            parts.append(_design([high], transition, rate, keep_zero=True))
        mains = harmonics(options.notch, rate)
        if mains:
            edges = [m + side for m in mains for side in (-NOTCH_HALF_WIDTH, NOTCH_HALF_WIDTH)]
            parts.append(_design(edges, NOTCH_HALF_WIDTH, rate, keep_zero=True))
        if not parts:
            return None
        kernel = parts[0]
        for part in parts[1:]:
            kernel = np.convolve(kernel, part)
        about = {"band_hz": [low, high], "notch_hz": mains, "length_s": len(kernel) / rate}
        return cls(kernel, about)

    @property
    def margin(self) -> int:
        """Samples that are needed before and after a piece."""
        return len(self.kernel) // 2

    def __call__(self, signal: Signal) -> Signal:
        """The filtered piece, `margin` samples shorter on both sides.

        Args:
            signal: Piece with its margins, `(channels, samples)`.
        """
        out = scipy_signal.oaconvolve(
            signal.astype(np.float64), self.kernel[None], mode="valid", axes=1
        )
        return np.asarray(out, np.float32)
