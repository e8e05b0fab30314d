"""Small EDF, EDF+C and EDF+D files, byte by byte, with whatever a test wants to be odd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Signal(NamedTuple):
    """One signal: digital values, one per physical unit."""

    label: str
    values: np.ndarray
    per_record: int
    unit: str = "uV"


def write_edf(
    path: Path,
    signals: Sequence[Signal],
    *,
    starts: Sequence[float] | None = None,
    remarks: Sequence[str] = (),
    seconds: float = 1.0,
    declared: int | None = None,
    patient: str = "X X X X",
) -> Path:
    """Write a file; with `starts` (s) an EDF+D, with `remarks` (`+1.5\\x152\\x14text`) an EDF+C."""
    records = len(signals[0].values) // signals[0].per_record
    plus = starts is not None or bool(remarks)
    labels = [s.label for s in signals] + (["EDF Annotations"] if plus else [])
    units = [s.unit for s in signals] + ([""] if plus else [])
    counts = [s.per_record for s in signals] + ([60] if plus else [])
    count = len(labels)

    def cells(values: Sequence[object], width: int) -> bytes:
        return b"".join(str(value).encode("latin-1").ljust(width)[:width] for value in values)

    kind = "EDF+D" if starts is not None else "EDF+C" if plus else ""
    text = cells(["0"], 8) + cells([patient, "Startdate 01-JAN-2020 X X X"], 80)
    text += cells(["01.01.20", "00.00.00", 256 * (count + 1)], 8) + cells([kind], 44)
    text += cells([records if declared is None else declared, seconds], 8) + cells([count], 4)
    text += cells(labels, 16) + cells([""] * count, 80) + cells(units, 8)
    for edge in (-32768, 32767, -32768, 32767):
        text += cells([edge] * count, 8)
    text += cells([""] * count, 80) + cells(counts, 8) + cells([""] * count, 32)
    times = starts if starts is not None else [number * seconds for number in range(records)]
    body = b""
    for number in range(records):
        for signal in signals:
            piece = signal.values[number * signal.per_record : (number + 1) * signal.per_record]
            body += np.asarray(piece, "<i2").tobytes()
        if plus:
            said = f"+{times[number]:g}\x14\x14\x00"
            said += "".join(f"{remark}\x14\x00" for remark in remarks if number == 0)
            body += said.encode().ljust(120, b"\x00")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text + body)
    return path


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Whole numbers with a spread like that of brain signals in µV."""
    return np.random.default_rng(seed).normal(0, 50, samples).round().astype(np.int16)
