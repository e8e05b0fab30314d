"""Units of the stored numbers, and amplitudes that betray a wrong one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from manyhead.mvpformer.recording import Recording
from manyhead_core.errors import DataError

# µV per unit, by the spellings found in files; the second µ is a Greek letter, then Shift-JIS
# and UTF-8 that was read as Latin-1.
MICROVOLTS = {
    "V": 1e6,
    "volt": 1e6,
    "mV": 1e3,
    "uV": 1.0,
    "µV": 1.0,
    "\u03bcV": 1.0,
    "\x83\xcaV": 1.0,
    "\u00c2µV": 1.0,
    "microV": 1.0,
    "microvolt": 1.0,
    "nV": 1e-3,
}
# Median absolute deviation of a channel in µV that no electrode in or on a head shows.
SMALLEST, LARGEST = 0.05, 50_000.0
PROBES, PROBE_S = 8, 2.0


class Probe(NamedTuple):
    """What a few short pieces of a recording show.

    Args:
        deviation: Median absolute deviation in µV, median of the channels that are not flat;
            NaN if all are.
        flat: Names of the channels that never change.
    """

    deviation: float
    flat: tuple[str, ...]


def microvolts(unit: str) -> float | None:
    """µV per unit; None if it is no voltage.

    Args:
        unit: As written in a file; empty means µV.
    """
    unit = unit.strip()
    if not unit or unit.lower() in ("n/a", "nan", "none"):
        return 1.0
    exact = MICROVOLTS.get(unit)
    # Case tells milli from mega, so only the tail may differ: `uv`, `UV`, `Volts`.
    return exact if exact is not None else _LOOSE.get(unit.lower().rstrip("s"))


_LOOSE = {name.lower(): factor for name, factor in MICROVOLTS.items()}


def probe(recording: Recording) -> Probe:
    """Amplitudes of eight pieces of 2 s, spread over the recording."""
    info = recording.info
    length = min(info.samples, max(2, int(PROBE_S * info.rate)))
    starts = np.unique(np.linspace(0, info.samples - length, PROBES).astype(int))
    pieces = []
    for start in starts:
        piece = recording.read(int(start), int(start) + length).astype(np.float64)
        centred = np.abs(piece - np.median(piece, axis=1, keepdims=True))
        # The mean finds a channel that is quantised so coarsely that its median is zero.
        pieces.append(np.maximum(np.median(centred, axis=1), 1e-3 * centred.mean(axis=1)))
    recording.close()
    spread = np.max(pieces, axis=0)
    alive = spread > 0
    flat = tuple(name for name, lives in zip(info.channels, alive, strict=True) if not lives)
    return Probe(float(np.median(spread[alive])) if alive.any() else float("nan"), flat)


def check_amplitude(id: str, deviation: float) -> None:
    """Refuse amplitudes that only a wrong unit explains.

    Args:
        id: Recording, for the message.
        deviation: As in `Probe`.

    Raises:
        DataError: The numbers are volts, millivolts or nanovolts.
    """
    if SMALLEST <= deviation <= LARGEST or np.isnan(deviation):
        return
    if deviation > LARGEST:
        likely, size = "nV", "large"
    else:
        likely, size = ("V" if deviation < 1e-3 * SMALLEST * 10 else "mV"), "small"
    raise DataError(
        f"{id}: a typical deviation of {deviation:.3g} µV is too {size} for brain signals, the "
        f"numbers are probably {likely}; pass units={likely}, or units=uV if they are right"
    )
