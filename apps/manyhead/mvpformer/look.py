"""What a run would make of the recordings of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manyhead.mvpformer.patients import canonical_patient
from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.readers import ReadOptions, Source, open_recording
from manyhead.mvpformer.readers.units import probe
from manyhead.mvpformer.recording import Recording, RecordingInfo
from manyhead.mvpformer.windows import WindowOptions, Windows, index_windows
from manyhead_core.cli import console
from manyhead_core.errors import DataError

# Samples of the middle of a recording that tell two recordings apart.
SAMPLE = 4096


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What is known of a recording; a row of recordings.csv.

    Args:
        recording: Its id.
        format: How it lies on disk.
        patient: Number of the patient in this report; names stay out of it.
        problem: Why a run leaves it out, or empty.
        site: Hospital.
        hours: Length.
        rate: Samples per second in the file, Hz.
        channels: Channels of brain signals in the file.
        used: Channels that a run gives to the network.
        dropped: Channels that it does not, with reasons.
        flat: Channels without any signal.
        gaps: Stretches without signal.
        gap_seconds: Their length, s.
        seizures: Annotated seizures; None where nobody annotated.
        seizure_seconds: Length of each, s.
        deviation: Typical amplitude of a channel, median absolute deviation in µV.
        steps: Decisions of a run.
        seizure_steps: Those that touch a seizure.
        notes: What else there is to say.
    """

    recording: str
    format: str
    patient: int
    problem: str = ""
    site: str = ""
    hours: float = 0.0
    rate: float = 0.0
    channels: int = 0
    used: int = 0
    dropped: Mapping[str, str] = field(default_factory=dict)
    flat: tuple[str, ...] = ()
    gaps: int = 0
    gap_seconds: float = 0.0
    seizures: int | None = None
    seizure_seconds: tuple[float, ...] = ()
    deviation: float = float("nan")
    steps: int = 0
    seizure_steps: int = 0
    notes: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether the file could be opened."""
        return self.channels > 0


@dataclass(frozen=True)
class Findings:
    """What is known of a data set.

    Args:
        rows: Recordings in the order of their ids.
        folders: Folders of each patient who has several, by patient.
        alike: Recordings with the same signal.
    """

    rows: list[Looked]
    folders: dict[str, list[str]]
    alike: list[list[str]]


@dataclass(frozen=True)
class Look:
    """Opens one recording after the other.

    Args:
        read: How files are read.
        prepare: How a run prepares signals.
        layout: How a run cuts windows.
        annotated: Whether a run needs annotations.
    """

    read: ReadOptions
    prepare: PrepareOptions
    layout: WindowOptions
    annotated: bool = True

    def over(self, sources: Sequence[Source]) -> Findings:
        """Look at recordings.

        Args:
            sources: What was found.
        """
        names = [canonical_patient(source.patient, source.format) for source in sources]
        number = {name: k for k, name in enumerate(dict.fromkeys(names), start=1)}
        rows, digests = [], {}
        sized = list(zip(sources, names, strict=True))
        for source, name in console.progress(sized, "looking at recordings"):
            row, digest = self._one(source, number[name])
            rows.append(row)
            if digest:
                digests[source.id] = digest
        return Findings(rows, _several(sources, names), _alike(digests))

    def _one(self, source: Source, patient: int) -> tuple[Looked, str]:
        """What is known, and a digest of the signal."""
        about: dict[str, Any] = {
            "recording": source.id,
            "format": source.format,
            "patient": patient,
            "site": source.extra.get("site", ""),
        }
        try:
            recording = open_recording(source, self.read)
        except DataError as err:
            return Looked(problem=_short(err, source.id), **about), ""
        try:
            about |= self._of_file(recording)
            digest = _digest(recording)
            about |= self._of_run(recording)
        except DataError as err:
            return Looked(problem=_short(err, source.id), **about), ""
        finally:
            recording.close()
        return Looked(**about), digest

    def _of_file(self, recording: Recording) -> dict[str, Any]:
        info = recording.info
        seen = probe(recording)
        spans = [event.offset - event.onset for event in info.seizures or ()]
        return {
            "site": info.site,
            "hours": info.duration / 3600,
            "rate": info.rate,
            "channels": len(info.channels),
            "dropped": dict(info.dropped),
            "flat": seen.flat,
            "gaps": len(info.gaps),
            "gap_seconds": sum(gap.offset - gap.onset for gap in info.gaps),
            "seizures": None if info.seizures is None else len(info.seizures),
            "seizure_seconds": tuple(spans),
            "deviation": seen.deviation,
            "notes": info.notes,
        }

    def _of_run(self, recording: Recording) -> dict[str, Any]:
        """What a run makes of it.

        Raises:
            DataError: It cannot be prepared.
        """
        prepared, info = Prepared(recording, self.prepare), recording.info
        windows = index_windows(prepared.duration, info.seizures or (), info.gaps, self.layout)
        return {
            "used": len(prepared.channels),
            "dropped": dict(info.dropped) | dict(prepared.dropped),
            "steps": len(windows),
            "seizure_steps": int(windows.label.sum()),
            "problem": self._reason(info, prepared.duration, windows),
        }

    def _reason(self, info: RecordingInfo, duration: float, windows: Windows) -> str:
        if not len(windows):
            layout = self.layout
            needed = layout.segment_seconds if layout.pads else layout.seconds
            return f"{duration:.1f} s without a stretch of {needed:g} s"
        if self.annotated and info.seizures is None:
            return "nobody annotated its seizures"
        return ""


def _short(err: DataError, name: str) -> str:
    return str(err).removeprefix(f"{name}: ")


def _digest(recording: Recording) -> str:
    """Of the middle of the signal; empty where it says nothing."""
    samples = recording.info.samples
    start = max(0, (samples - SAMPLE) // 2)
    piece = recording.read(start, min(samples, start + SAMPLE))
    if not piece.size or np.ptp(piece) == 0:
        return ""
    return hashlib.sha256(repr(piece.shape).encode() + piece.tobytes()).hexdigest()


def _alike(digests: Mapping[str, str]) -> list[list[str]]:
    names: dict[str, list[str]] = {}
    for name, digest in digests.items():
        names.setdefault(digest, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _several(sources: Sequence[Source], names: Sequence[str]) -> dict[str, list[str]]:
    """Patients whose recordings lie under several names."""
    folders: dict[str, dict[str, None]] = {}
    for source, name in zip(sources, names, strict=True):
        folders.setdefault(name, {})[source.patient] = None
    return {name: list(own) for name, own in folders.items() if len(own) > 1}
