"""A signal with names, rate and times in one `.npz` or MATLAB file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers.annotations import Found, inside
from manyhead.mvpformer.readers.channels import Channel, choose, kind_of
from manyhead.mvpformer.readers.files import ArrayRecording, merged
from manyhead.mvpformer.readers.matlab import load, texts
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import microvolts
from manyhead.mvpformer.recording import Interval, Recording, RecordingInfo
from manyhead_core.errors import DataError

# Names under which people store the same thing.
SIGNALS = ("signal", "data", "eeg", "ieeg", "x")
RATES = ("sfreq", "fs", "sampling_rate", "rate", "srate")
NAMES = ("channels", "ch_names", "channel_names", "labels")
SEIZURES = ("seizures", "events")


def open_arrays(source: Source, options: ReadOptions) -> Recording:
    """A recording that is one array `(channels, samples)`; it is held in memory.

    Besides the signal the file holds the rate in Hz, and may hold names of the channels, `seizures`
    `(seizures, 2)` in s and `units`. Where all channels are NaN is a gap.

    Args:
        source: What was found.
        options: How to read it.

    Raises:
        DataError: Something is missing or of the wrong shape.
    """
    held = {name.lower(): value for name, value in load_arrays(source).items()}
    rate = _rate(held, source.id)
    names = next((texts(held[name]) for name in NAMES if name in held), [])
    signal, notes = _signal(held, source.id, len(names))
    if names and len(names) != len(signal):
        raise DataError(
            f"{source.id}: {len(names)} names for {len(signal)} channels; the signal is "
            "(channels, samples) and has a name for each channel"
        )
    chosen = choose(
        [
            Channel(name=name, kind=kind_of(name), rate=rate)
            for name in (names or [""] * len(signal))
        ]
    )
    found = _seizures(held, source.id, signal.shape[1] / rate)
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=chosen.names,
        kinds=chosen.kinds,
        rate=rate,
        samples=signal.shape[1],
        seizures=found.seizures,
        dropped=chosen.dropped,
        gaps=_gaps(signal, rate),
        named=bool(names),
        notes=(*notes, *found.notes),
    )
    unit: str = options.units
    if unit == "auto":
        unit = texts(held["units"])[0] if "units" in held else "uV"
    factor = microvolts(unit)
    if factor is None:
        raise DataError(f"{source.id}: units {unit!r} is no voltage; store V, mV, uV or nV")
    return ArrayRecording(info, signal[chosen.picks] * np.float32(factor))


def load_arrays(source: Source) -> dict[str, Any]:
    """Arrays of an `.npz` or MATLAB file.

    Raises:
        DataError: The file is missing or damaged.
    """
    if source.path.suffix.lower() == ".mat":
        return load(source.path, source.id)
    try:
        return _npz(source.path, source.path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(
            f"{source.id}: no file {source.path.name}; check that it was copied"
        ) from error
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise DataError(
            f"{source.id}: {source.path.name} is no readable npz file of plain arrays; "
            "save it again with numpy.savez"
        ) from error


@lru_cache(maxsize=1)
def _npz(path: Path, changed: int) -> dict[str, Any]:  # noqa: ARG001
    """Arrays of a file; the last one is kept, since one file may hold many recordings."""
    # numpy leaves a file open that it cannot make out.
    with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _signal(
    held: Mapping[str, Any], id: str, named: int
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    name = next((name for name in SIGNALS if name in held), None)
    if name is None:
        raise DataError(
            f"{id}: the file holds {', '.join(list(held)[:6]) or 'nothing'}, no signal; store it "
            "as `signal` (channels, samples)"
        )
    try:
        signal = np.asarray(held[name], np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{id}: {name} is no array of numbers; store plain numbers") from error
    if signal.ndim == 1:
        signal = signal[None]
    if signal.ndim != 2 or signal.size == 0:
        raise DataError(f"{id}: {name} has the shape {signal.shape}, not (channels, samples)")
    turned = signal.shape[1] == named != signal.shape[0] if named else np.argmax(signal.shape) == 0
    if turned and signal.shape[0] > 1 and signal.shape[0] != signal.shape[1]:
        note = f"{name} is stored as (samples, channels) and was turned"
        return np.ascontiguousarray(signal.T), (note,)
    return signal, ()


def _rate(held: Mapping[str, Any], id: str) -> float:
    name = next((name for name in RATES if name in held), None)
    if name is None:
        raise DataError(f"{id}: the file does not say the rate; store `sfreq` in Hz beside it")
    try:
        rate = float(np.asarray(held[name], float).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        rate = float("nan")
    if not 0 < rate < 1e6:
        raise DataError(f"{id}: {name} is {held[name]!r}, not a rate in Hz")
    return rate


def _seizures(held: Mapping[str, Any], id: str, duration: float) -> Found:
    name = next((name for name in SEIZURES if name in held), None)
    if name is None:
        return Found(None)
    try:
        times = np.asarray(held[name], float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{id}: {name} is no table of numbers (onset, offset)") from error
    if times.size % 2 or (times.ndim == 2 and times.shape[1] != 2 and times.size):
        raise DataError(f"{id}: {name} has the shape {times.shape}, not (seizures, 2) in s")
    return inside(id, [(float(a), float(b)) for a, b in times.reshape(-1, 2)], duration)


def _gaps(signal: npt.NDArray[np.float32], rate: float) -> tuple[Interval, ...]:
    """Where no channel has a number."""
    empty = np.isnan(signal).all(axis=0)
    if not empty.any():
        return ()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]]).astype(np.int8)))
    return merged(Interval(a / rate, b / rate) for a, b in edges.reshape(-1, 2).tolist())
