"""Recordings of noise in the shape of intracranial EEG; only the sizes count."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.readers.files import ArrayRecording
from manyhead.mvpformer.recording import Interval, RecordingInfo
from manyhead.mvpformer.tracks import Readable, Track, WindowSet
from manyhead.mvpformer.windows import WindowOptions, index_windows

RATE = 512
MICROVOLTS = 50.0
# Written at a time, and repeated.
BLOCK_S = 60
CHUNK_S = 10


def noise(channels: int, seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """White noise in µV, `(channels, samples)`.

    Args:
        channels: Channels.
        seconds: Length, s.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal((channels, round(seconds * RATE)), np.float32)
    return drawn * np.float32(MICROVOLTS)


def prepared(channels: int, seconds: float) -> Prepared:
    """A recording in memory with a seizure in its middle fifth, ready for a network.

    Args:
        channels: Channels.
        seconds: Length, s.
    """
    info = RecordingInfo(
        id="noise",
        patient="noise",
        path=Path("noise.h5"),
        channels=tuple(f"C{k}" for k in range(1, channels + 1)),
        rate=float(RATE),
        samples=round(seconds * RATE),
        seizures=(Interval(0.4 * seconds, 0.6 * seconds),),
    )
    return Prepared(ArrayRecording(info, noise(channels, seconds)), PrepareOptions())


def window_set(recording: Readable, options: WindowOptions) -> WindowSet:
    """The windows of a recording, each read on its own.

    Args:
        recording: The recording.
        options: How windows are laid.
    """
    seizures = recording.info.seizures or ()
    windows = index_windows(recording.samples / recording.rate, seizures, (), options)
    track = Track(recording, "noise", windows)
    return WindowSet([track], options.num_segments, options.segment_samples(recording.rate))


def write_swec(root: Path, channels: int, minutes: int) -> None:
    """An HDF5 file of 16-bit numbers in the layout of SWEC, written a block at a time.

    Args:
        root: New folder of the data set.
        channels: Channels.
        minutes: Length.
    """
    folder = root / "ID01"
    folder.mkdir(parents=True)
    block = np.rint(noise(channels, BLOCK_S)).astype(np.int16)
    shape, chunks = (channels, minutes * BLOCK_S * RATE), (channels, CHUNK_S * RATE)
    with h5py.File(folder / "ID01_total.h5", "w") as file:
        file.attrs["sampling_rate"] = float(RATE)
        data = file.create_dataset("data/ieeg", shape, np.int16, chunks=chunks)
        for start in range(0, shape[1], block.shape[1]):
            data[:, start : start + block.shape[1]] = block
