"""A recording that lies in memory, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyhead.mvpformer.recording import Recording, RecordingInfo, Signal


class ArrayRecording(Recording):
    """Reads as a file would, and refuses to be read outside of it.

    Args:
        signal: µV, `(channels, samples)`.
        rate: Hz.
        names: Of the channels.
        about: Further fields of the info.
    """

    def __init__(
        self, signal: np.ndarray, rate: float, names: Sequence[str] = (), **about: Any
    ) -> None:
        self.signal = signal.astype(np.float32)
        self.asked: list[tuple[int, int]] = []
        about = {"id": "rec", "patient": "p", "path": Path("rec"), "rate": rate} | about
        self.info = RecordingInfo(
            channels=tuple(names) or tuple(f"A{i + 1}" for i in range(len(signal))),
            samples=signal.shape[1],
            **about,
        )

    def read(self, start: int, stop: int) -> Signal:
        assert 0 <= start < stop <= self.info.samples, (start, stop)
        self.asked.append((start, stop))
        return self.signal[:, start:stop]


def noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    """White noise of 100 µV on an offset of 300 µV."""
    return 300 + 100 * np.random.default_rng(seed).standard_normal((channels, samples))
