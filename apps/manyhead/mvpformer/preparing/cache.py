"""Prepared signals kept, in memory or on disk, so that training prepares each recording once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.preparing.prepared import Prepared
from manyhead.mvpformer.recording import Recording, RecordingInfo, Signal
from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import read_json, replace, replace_json

# A new number makes old cache files unknown; for every change of the prepared values.
VERSION = 1
# Of the signal that is prepared at a time when a cache file is written.
PIECE_SECONDS = 120
# Samples that are looked at to tell signals apart.
GLANCE = 256


class Kept:
    """A prepared recording whose signal is ready; reads as `Prepared` does.

    Args:
        recording: Where it came from.
        options: How it was prepared.
        manifest: Of the preparing.
        signal: All of it, `(channels, samples)`, or the `.npy` file that is mapped.
    """

    def __init__(
        self,
        recording: Recording,
        options: PrepareOptions,
        manifest: dict[str, Any],
        signal: Signal | Path,
    ) -> None:
        self._recording = recording
        self.info: RecordingInfo = recording.info
        self.options = options
        self.rate = options.rate
        self.samples: int = manifest["samples"]
        self.channels: tuple[str, ...] = tuple(manifest["channels"])
        self.notes: tuple[str, ...] = tuple(manifest["notes"])
        self.dropped: dict[str, str] = dict(manifest["dropped"])
        self._manifest = manifest
        self._kept = signal
        self._open: Signal | None = None

    @property
    def duration(self) -> float:
        """Length in s."""
        return self.samples / self.rate

    def read(self, start: int, stop: int) -> Signal:
        """Samples `start` to `stop` in µV, `(channels, stop - start)`, a view that is not written.

        Args:
            start: First sample, 0 or more.
            stop: Sample after the last, at most `samples`.
        """
        if not 0 <= start <= stop <= self.samples:
            raise ValueError(f"read {start} to {stop} of {self.samples} samples")
        if self._open is None:
            kept = self._kept
            self._open = np.load(kept, mmap_mode="r") if isinstance(kept, Path) else kept
        view: Signal = self._open[:, start:stop]
        view.flags.writeable = False
        return view

    def manifest(self) -> dict[str, Any]:
        """Everything that was done, as JSON knows it."""
        return self._manifest

    def close(self) -> None:
        """Let go of the files."""
        self._open = None
        self._recording.close()

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be sent to worker processes as a copy of the whole file.
        return self.__dict__ | {"_open": None}


def open_prepared(
    recording: Recording,
    options: PrepareOptions | None = None,
    cache: Path | Literal["memory"] | None = None,
) -> Prepared | Kept:
    """A prepared recording, worked out as it is read or kept.

    Args:
        recording: The recording.
        options: How it is prepared.
        cache: Folder for prepared signals, 4 bytes a sample; `memory` keeps them there; None
            prepares every piece when it is read.

    Raises:
        DataError: The folder cannot be written, or the recording cannot be prepared.
    """
    options = options or PrepareOptions()
    if cache is None:
        return Prepared(recording, options)
    if isinstance(cache, Path):
        return _on_disk(recording, options, cache)
    prepared = Prepared(recording, options)
    return Kept(recording, options, prepared.manifest(), prepared.read(0, prepared.samples))


def key(recording: Recording, options: PrepareOptions) -> str:
    """Name of a cache file: changes with the file, how it is read, and the options.

    Args:
        recording: The recording; a few of its samples are read.
        options: How it is prepared.
    """
    info = recording.info
    try:
        stat = info.path.stat()
        identity = [str(info.path.resolve()), stat.st_size, stat.st_mtime_ns]
    except OSError:
        identity = [str(info.path)]
    gaps = [list(gap) for gap in info.gaps]
    read = [info.id, list(info.channels), info.rate, info.samples, gaps]
    text = json.dumps([VERSION, identity, read, asdict(options)])
    digest = hashlib.sha256(text.encode())
    # The same file read in other units is another signal.
    for start in (0, info.samples // 2) if info.samples else ():
        digest.update(recording.read(start, min(start + GLANCE, info.samples)).tobytes())
    return digest.hexdigest()[:24]


def _on_disk(recording: Recording, options: PrepareOptions, folder: Path) -> Kept:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; the cache of prepared signals needs a folder")
    name = key(recording, options)
    signal, about = folder / f"{name}.npy", folder / f"{name}.json"
    # The JSON file is written last: where it is, the signal is complete.
    if not (about.is_file() and signal.is_file()):
        prepared = Prepared(recording, options)
        replace(signal, lambda temporary: _write(prepared, temporary))
        replace_json(about, prepared.manifest())
    return Kept(recording, options, read_json(about), signal)


def _write(prepared: Prepared, path: Path) -> None:
    shape = (len(prepared.channels), prepared.samples)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    piece = round(PIECE_SECONDS * prepared.rate)
    for start in range(0, prepared.samples, piece):
        stop = min(start + piece, prepared.samples)
        out[:, start:stop] = prepared.read(start, stop)
    out.flush()
