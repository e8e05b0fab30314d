"""What every reader gives: a recording in microvolts that is read piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float32]


class Interval(NamedTuple):
    """A stretch of a recording: a seizure, a gap, or what was detected.

    Args:
        onset: Start in s from the start of the recording.
        offset: End in s.
    """

    onset: float
    offset: float


@dataclass(frozen=True, kw_only=True)
class RecordingInfo:
    """All that is known of a recording without reading its signal.

    Args:
        id: Name that is unique within a data set, made of entity labels or the file name.
        patient: Whose recording it is; splits keep patients together.
        path: File.
        channels: Names in order; numbers as text where the file has no names.
        rate: Samples per second, Hz.
        samples: Samples of each channel.
        kinds: Type of each channel as in BIDS (`SEEG`, `ECOG`, `EEG`, `DBS`), or empty.
        seizures: Annotated seizures in order; None if nobody annotated the recording.
        dropped: Channels of the file that are left out, with the reason.
        gaps: Stretches without signal, in order.
        named: Whether the file names its channels; otherwise their order is arbitrary.
        site: Hospital or centre, for reports.
        part: Official part of the data set (`train`, `validation`, `test`), or empty.
        notes: What the user should be told, one line each.
    """

    id: str
    patient: str
    path: Path
    channels: tuple[str, ...]
    rate: float
    samples: int
    kinds: tuple[str, ...] = ()
    seizures: tuple[Interval, ...] | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    gaps: tuple[Interval, ...] = ()
    named: bool = True
    site: str = ""
    part: str = ""
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Length in s."""
        return self.samples / self.rate


class Recording(ABC):
    """A recording on disk, or something that looks like one.

    Attributes:
        info: What is known without reading the signal.
    """

    info: RecordingInfo

    @abstractmethod
    def read(self, start: int, stop: int) -> Signal:
        """Samples `start` to `stop` of all channels in µV, `(channels, stop - start)`.

        Memory grows with `stop - start` only.

        Args:
            start: First sample, 0 or more.
            stop: Sample after the last, at most `info.samples`.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing open
        """Let go of files; a closed recording opens them again when it is read."""
