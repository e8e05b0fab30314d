"""Recordings in memory in place of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import manyhead.mvpformer.signals as signals
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.recording import Interval, Recording, RecordingInfo, Signal
from manyhead_core.errors import DataError

RATE = 16.0


class FakeRecording(Recording):
    """Channel c at sample s holds 1000 c + s."""

    def __init__(self, info: RecordingInfo) -> None:
        self.info = info
        self.closed = False

    def read(self, start: int, stop: int) -> Signal:
        rows = 1000.0 * np.arange(len(self.info.channels))
        return (rows[:, None] + np.arange(start, stop)).astype(np.float32)

    def close(self) -> None:
        self.closed = True


def fake(
    id: str,
    patient: str,
    *,
    channels: int = 3,
    seconds: float = 40.0,
    seizures: Sequence[tuple[float, float]] | None = (),
    gaps: Sequence[tuple[float, float]] = (),
    part: str = "",
    rate: float = RATE,
) -> FakeRecording:
    """A recording without a file."""
    info = RecordingInfo(
        id=id,
        patient=patient,
        path=Path(f"{id}.h5"),
        channels=tuple(f"C{k}" for k in range(channels)),
        rate=rate,
        samples=round(seconds * rate),
        seizures=None if seizures is None else tuple(Interval(*pair) for pair in seizures),
        gaps=tuple(Interval(*pair) for pair in gaps),
        part=part,
    )
    return FakeRecording(info)


def serve(
    monkeypatch: pytest.MonkeyPatch,
    recordings: Sequence[FakeRecording],
    broken: Sequence[str] = (),
    format: str = "npz",
) -> None:
    """Let the data module find these recordings; `broken` ones cannot be opened."""
    by_id = {recording.info.id: recording for recording in recordings}
    sources = [Source(id, r.info.patient, r.info.path, format) for id, r in by_id.items()]
    sources += [Source(id, id, Path(id), format) for id in broken]

    def open_one(source: Source, options: object) -> Recording:
        if source.id in broken:
            raise DataError(f"{source.id}: the file is damaged")
        return by_id[source.id]

    monkeypatch.setattr(signals, "find_recordings", lambda *_, **__: sources)
    monkeypatch.setattr(signals, "open_recording", open_one)
