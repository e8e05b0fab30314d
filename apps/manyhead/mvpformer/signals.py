"""Recordings of a data set, opened and ready to be prepared when they are first read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import pandas as pd

from manyhead.mvpformer.patients import canonical_patient
from manyhead.mvpformer.preparing import Prepared, PrepareOptions, open_prepared
from manyhead.mvpformer.preparing.cache import Kept
from manyhead.mvpformer.readers import Source, find_recordings, open_recording
from manyhead.mvpformer.readers.annotations import check_table
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.recording import Recording, RecordingInfo, Signal
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError

# Rules that look at the signal; their choice for a patient must not change between recordings.
RANKED = ("variance", "kurtosis")
# Prepared signals may take so much memory, bytes.
MEMORY = 16 * 2**30
SAMPLE_BYTES = 4


class LazySignal:
    """A prepared recording that is worked out, or kept, when it is first read.

    Args:
        recording: As it was opened.
        options: How it is prepared.
        cache: As of `open_prepared`.

    Raises:
        DataError: It cannot be prepared.
    """

    def __init__(
        self,
        recording: Recording,
        options: PrepareOptions,
        cache: Path | Literal["memory"] | None = None,
    ) -> None:
        prepared = Prepared(recording, options)
        self.info: RecordingInfo = prepared.info
        self.options = options
        self.channels: tuple[str, ...] = prepared.channels
        self.rate: float = prepared.rate
        self.samples: int = prepared.samples
        self._recording, self._cache = recording, cache
        self._ready: Prepared | Kept = prepared
        # Readers of files and the first fill of the cache serve one thread at a time.
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: no lock, no open file, no copy of what lies in a folder."""
        self._recording.close()
        state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        if isinstance(self._cache, Path):
            state["_ready"] = Prepared(self._recording, self.options)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    @property
    def duration(self) -> float:
        """Length in s."""
        return self.samples / self.rate

    def read(self, start: int, stop: int) -> Signal:
        """Samples `start` to `stop` in µV, `(channels, stop - start)`.

        Args:
            start: First sample, 0 or more.
            stop: Sample after the last, at most `samples`.
        """
        with self._lock:
            if self._cache is not None and not isinstance(self._ready, Kept):
                self._ready = open_prepared(self._recording, self.options, self._cache)
                self._recording.close()
            if not isinstance(self._ready, Kept):
                return self._ready.read(start, stop)
        return self._ready.read(start, stop)


@dataclass
class Gathered:
    """Recordings of a data set.

    Args:
        signals: Those that could be opened.
        frame: A row for each: id, folder, patient, format, site, part, seizures (how many).
        left_out: The others by id, with the reason.
    """

    signals: list[LazySignal]
    frame: pd.DataFrame
    left_out: dict[str, str] = field(default_factory=dict)


def gather(
    root: Path,
    format: str,
    read: ReadOptions,
    prepare: PrepareOptions,
    *,
    cache: str = "memory",
    patient: str = "",
    include: str = "",
) -> Gathered:
    """Find and open the recordings below a folder; those that cannot be used are listed.

    Args:
        root: Folder.
        format: `auto`, or the name of a format.
        read: How files are read.
        prepare: How signals are prepared.
        cache: `memory`, `none` or a folder.
        patient: Regular expression for the patient in the path of a file.
        include: Regular expression; recordings without a match in their id do not exist.

    Raises:
        ConfigError: The signals do not fit into memory, or an expression is none.
        DataError: Nothing is found.
    """
    place = _place(cache)
    left_out: dict[str, str] = {}
    signals: list[LazySignal] = []
    rows: list[dict[str, object]] = []
    ranked: dict[str, PrepareOptions] = {}
    sources = _included(find_recordings(root, format, patient=patient), include)
    if read.seizures is not None:
        for note in check_table(read.seizures, [source.id for source in sources]):
            console.say(f"note: {note}")
    for source in sources:
        name = canonical_patient(source.patient, source.format)
        try:
            recording = open_recording(source, read)
            signal = LazySignal(recording, ranked.get(name, prepare), place)
        except DataError as err:
            left_out[source.id] = str(err)
            continue
        if prepare.channels in RANKED:
            ranked.setdefault(name, prepare.with_names(signal.channels))
        info = signal.info
        signals.append(signal)
        rows.append(
            {
                "id": info.id,
                "folder": info.patient,
                "patient": name,
                "format": source.format,
                "site": info.site,
                "part": info.part,
                "seizures": float("nan") if info.seizures is None else len(info.seizures),
            }
        )
    _refuse_nothing(root, signals, left_out)
    if place == "memory":
        _refuse_too_much(signals)
    return Gathered(signals, pd.DataFrame(rows), left_out)


def _included(sources: list[Source], include: str) -> list[Source]:
    if not sources:
        return sources
    try:
        found = [source for source in sources if re.search(include, source.id)]
    except re.error as err:
        raise ConfigError(f"data.include: {include!r} is no regular expression: {err}") from err
    if not found:
        raise DataError(
            f"data.include: {include!r} matches none of {len(sources)} recordings; the first is "
            f"{sources[0].id}"
        )
    return found


def _place(cache: str) -> Path | Literal["memory"] | None:
    if cache == "memory":
        return "memory"
    return None if cache in ("none", "") else Path(cache)


def _refuse_nothing(root: Path, signals: list[LazySignal], left_out: dict[str, str]) -> None:
    if signals:
        return
    why = next(iter(left_out.values()), "the folder holds none")
    raise DataError(f"data.root: no recording in {root} can be used: {why}")


def _refuse_too_much(signals: list[LazySignal]) -> None:
    size = sum(len(signal.channels) * signal.samples * SAMPLE_BYTES for signal in signals)
    if size > MEMORY:
        raise ConfigError(
            f"data.cache: memory would hold {size / 2**30:.0f} GiB of prepared signals, at most "
            f"{MEMORY / 2**30:.0f} are taken; name a folder with so much room, or none"
        )
