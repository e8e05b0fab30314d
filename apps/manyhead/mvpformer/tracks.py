"""Recordings with their windows under one numbering, and how a window is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.recording import RecordingInfo, Signal
from manyhead.mvpformer.windows import Windows

Numbers = npt.NDArray[np.int64]


class Readable(Protocol):
    """What a prepared recording offers to those who cut windows.

    Args:
        info: Of the recording in the file.
        options: How it was prepared.
        channels: Names, in order.
        rate: Samples per second, Hz.
        samples: Samples of each channel.
    """

    info: RecordingInfo
    options: PrepareOptions
    channels: tuple[str, ...]
    rate: float
    samples: int

    def read(self, start: int, stop: int) -> Signal:
        """Samples `start` to `stop` in µV, `(channels, stop - start)`."""


class WindowBatch(NamedTuple):
    """Windows with as many channels each.

    Args:
        signal: µV, `(batch, segments, channels, samples)` float32.
        label: Of the newest segment, `(batch,)` int64.
        number: Of each window, by which the data tell what it is, `(batch,)` int64.
    """

    signal: Tensor
    label: Tensor
    number: Tensor


@dataclass(frozen=True)
class Track:
    """A recording and its windows.

    Args:
        signal: The prepared recording.
        patient: Whose it is; two folders of one patient have the same name here.
        windows: In the order of time.
    """

    signal: Readable
    patient: str
    windows: Windows

    @property
    def channels(self) -> int:
        """How many the network is given."""
        return len(self.signal.channels)

    @property
    def duration(self) -> float:
        """Length of the recording, s."""
        return self.signal.samples / self.signal.rate


class WindowSet:
    """All windows of some recordings, numbered through.

    Args:
        tracks: The recordings.
        num_segments: Segments of a window.
        segment_samples: Samples of a segment.

    Attributes:
        track: Number of the recording of each window, `(windows,)`.
        local: Number of each window within its recording, `(windows,)`.
        label: Of each window, `(windows,)`.
        patient: Number of the patient of each window, `(windows,)`.
    """

    def __init__(self, tracks: Sequence[Track], num_segments: int, segment_samples: int) -> None:
        self.tracks = list(tracks)
        self.num_segments, self.segment_samples = num_segments, segment_samples
        sizes = np.array([len(track.windows) for track in self.tracks], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.track = np.repeat(np.arange(len(sizes)), sizes)
        self.local = np.arange(self.offsets[-1]) - self.offsets[:-1].repeat(sizes)
        labels = [track.windows.label for track in self.tracks]
        self.label = np.concatenate([*labels, np.zeros(0, np.int64)])
        codes = {name: k for k, name in enumerate(dict.fromkeys(t.patient for t in self.tracks))}
        self.patient = np.array([codes[t.patient] for t in self.tracks], np.int64).repeat(sizes)

    def __len__(self) -> int:
        return len(self.track)

    def of(self, tracks: npt.ArrayLike) -> Numbers:
        """Numbers of the windows of some recordings, in order.

        Args:
            tracks: Numbers of the recordings.
        """
        return np.flatnonzero(np.isin(self.track, np.asarray(tracks, np.int64)))

    def channels(self, numbers: Numbers) -> list[int]:
        """How many channels the recording of each window has."""
        return [self.tracks[k].channels for k in self.track[numbers].tolist()]

    def read(self, numbers: Numbers, count: int, first: Sequence[int] | None = None) -> WindowBatch:
        """A batch of windows; their signal is copied once, from the prepared recording.

        Args:
            numbers: Of the windows.
            count: Channels of the batch.
            first: First of the neighbouring channels that each window gives; None for 0.
        """
        shape = (len(numbers), self.num_segments, count, self.segment_samples)
        signal = np.empty(shape, np.float32)
        begins = [0] * len(numbers) if first is None else first
        for out, number, begin in zip(signal, numbers.tolist(), begins, strict=True):
            self._fill(out, number, slice(begin, begin + count))
        label = torch.from_numpy(self.label[numbers])
        return WindowBatch(torch.from_numpy(signal), label, torch.from_numpy(numbers))

    def _fill(self, out: Signal, number: int, channels: slice) -> None:
        segments, count, samples = out.shape
        track, local = self.tracks[self.track[number]], self.local[number]
        windows = track.windows
        padded = int(windows.padded[local])
        begin = round(float(windows.start[local]) * track.signal.rate)
        signal = track.signal.read(begin + padded * samples, begin + segments * samples)
        # Splitting the last axis is a view whatever the strides, so this is the only copy.
        parts = signal[channels].reshape(count, segments - padded, samples)
        out[padded:] = parts.transpose(1, 0, 2)
        out[:padded] = out[padded]
