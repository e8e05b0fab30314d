"""Recordings that are read from files: opened when needed, gaps filled with zeros."""

from __future__ import annotations

import hashlib
import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.recording import Interval, Recording, RecordingInfo, Signal
from manyhead_core.errors import DataError

# Bytes of each place of a file that are looked at to tell it from others.
DIGESTED = 65_536

# Quoted and bare paths in the messages of libraries: folders may bear names of patients.
PATHS = (re.compile(r"(['\"])[^'\"]*[/\\][^'\"]*\1"), re.compile(r"\S*[/\\]\S+"))


class Block(NamedTuple):
    """Samples that lie together in a file.

    Args:
        start: First sample, counted on the clock of the recording.
        stored: First sample, counted in the file.
        length: Samples.
        file: Number of the file, for recordings of several.
    """

    start: int
    stored: int
    length: int
    file: int = 0


class FileRecording(Recording):
    """A recording in one or several files.

    Args:
        info: What is known of it.
        blocks: Where its samples lie, in order; by default all of them in one file.
    """

    def __init__(self, info: RecordingInfo, blocks: Sequence[Block] = ()) -> None:
        self.info = info
        self.blocks = tuple(blocks) or (Block(0, 0, info.samples),)
        self._opened: dict[int, Any] = {}
        self._process = os.getpid()

    @abstractmethod
    def _open(self, file: int) -> Any:
        """Open a file by number."""

    @abstractmethod
    def _stored(self, opened: Any, start: int, stop: int) -> npt.NDArray[Any]:
        """Samples of an open file in µV, `(channels, stop - start)`."""

    def read(self, start: int, stop: int) -> Signal:
        """As `Recording.read`; gaps and values that are not finite are zero.

        Raises:
            DataError: The file is damaged or gone.
        """
        if not 0 <= start <= stop <= self.info.samples:
            raise ValueError(f"read({start}, {stop}) of {self.info.samples} samples")
        signal = np.zeros((len(self.info.channels), stop - start), np.float32)
        for block in self.blocks:
            first, last = max(start, block.start), min(stop, block.start + block.length)
            if first < last:
                shift = block.stored - block.start
                piece = self._piece(block.file, first + shift, last + shift)
                signal[:, first - start : last - start] = piece
        return np.nan_to_num(signal, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def _piece(self, file: int, start: int, stop: int) -> npt.NDArray[Any]:
        try:
            return self._stored(self._handle(file), start, stop)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise unreadable(self.info.id, error) from error

    def surely_loud(self, sample: int) -> bool:  # noqa: ARG002
        """Whether the chunk of a sample holds signal, as far as that is known without reading."""
        return False

    def _handle(self, file: int) -> Any:
        # Handles do not survive a fork: two processes would share one file position.
        if self._process != os.getpid():
            self._opened, self._process = {}, os.getpid()
        if file not in self._opened:
            self.close()
            self._opened[file] = self._open(file)
        return self._opened[file]

    def close(self) -> None:
        """As `Recording.close`."""
        opened, self._opened = self._opened, {}
        for handle in opened.values():
            getattr(handle, "close", lambda: None)()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}


class ArrayRecording(FileRecording):
    """A recording that is in memory.

    Args:
        info: What is known of it.
        signal: Samples in µV, `(channels, samples)`.
    """

    def __init__(self, info: RecordingInfo, signal: npt.NDArray[Any]) -> None:
        super().__init__(info)
        self.signal = np.asarray(signal, np.float32)

    def _open(self, file: int) -> Any:  # noqa: ARG002
        return self.signal

    def _stored(self, opened: Any, start: int, stop: int) -> npt.NDArray[Any]:
        return np.asarray(opened[:, start:stop])


def gaps_between(blocks: Sequence[Block], rate: float) -> tuple[Interval, ...]:
    """Stretches between blocks that no file holds, in s."""
    found = []
    for before, after in pairwise(blocks):
        end = before.start + before.length
        if after.start > end:
            found.append(Interval(end / rate, after.start / rate))
    return tuple(found)


def merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The intervals in order; those that touch or overlap become one."""
    found: list[Interval] = []
    for onset, offset in sorted(intervals):
        if found and onset <= found[-1].offset:
            found[-1] = Interval(found[-1].onset, max(offset, found[-1].offset))
        else:
            found.append(Interval(onset, offset))
    return tuple(found)


def digest(path: Path) -> str:
    """What a recording holds, shortened: sizes, begin, middle and end of its files.

    The whole of a recording of days would take as long as to look for seizures in it.

    Args:
        path: File, or folder of files.
    """
    known = hashlib.sha256()
    files = sorted(path.iterdir()) if path.is_dir() else [path, path.with_suffix(".eeg")]
    for file in files:
        if not file.is_file():
            continue
        size = file.stat().st_size
        known.update(str(size).encode())
        with file.open("rb") as data:
            for start in (0, size // 2, max(size - DIGESTED, 0)):
                data.seek(start)
                known.update(data.read(DIGESTED))
    return known.hexdigest()[:12]


def unreadable(id: str, error: Exception) -> DataError:
    """The error for a file that a library cannot read, in one line and without its path."""
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern in PATHS:
        text = pattern.sub("the file", text)
    remedy = "copy or export it again, or leave it out"
    if "filter" in text:
        remedy = "install hdf5plugin, which brings the compression that the file uses"
    return DataError(f"{id}: cannot be read ({text[:200]}); {remedy}")
