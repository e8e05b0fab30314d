"""Header and clock of EDF, EDF+, BDF and BDF+ files: what mne does not tell.

mne reads a discontinuous file as if its records followed each other without a pause.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers.annotations import Remark
from manyhead.mvpformer.readers.files import Block
from manyhead_core.errors import DataError

ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
# Widths of the fields of a signal, in the order of the header.
FIELDS = {
    "label": 16,
    "transducer": 80,
    "unit": 8,
    "physical_min": 8,
    "physical_max": 8,
    "digital_min": 8,
    "digital_max": 8,
    "filters": 80,
    "samples": 8,
    "reserved": 32,
}


@dataclass(frozen=True)
class EdfHeader:
    """What the header of a file says, without who was recorded and when.

    Args:
        labels: Of the signals, annotations among them.
        units: Physical dimension of each.
        samples: Samples of each in a record.
        records: Records that the file really holds.
        declared: Records that the header names; -1 while it was being written.
        seconds: Length of a record.
        size: Bytes of the header.
        width: Bytes of a sample.
        discontinuous: Whether records may leave time between them.
    """

    labels: tuple[str, ...]
    units: tuple[str, ...]
    samples: tuple[int, ...]
    records: int
    declared: int
    seconds: float
    size: int
    width: int
    discontinuous: bool

    @property
    def signals(self) -> list[int]:
        """Numbers of the signals that are no annotations."""
        return [n for n, label in enumerate(self.labels) if label not in ANNOTATIONS]

    def rate(self, signal: int) -> float:
        """Samples per second of a signal, Hz."""
        return self.samples[signal] / self.seconds


def read_header(path: Path, id: str) -> EdfHeader:
    """Header of a file.

    Args:
        path: File.
        id: Recording, for messages.

    Raises:
        DataError: It is no EDF or BDF file, or holds no samples.
    """
    try:
        with path.open("rb") as file:
            return _parse(file, path.stat().st_size)
    except OSError as error:
        raise DataError(f"{id}: no file {path.name}; check that it was copied") from error
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"{id}: {path.name} has a damaged EDF header ({' '.join(str(error).split())[:80]}); "
            "copy or export it again"
        ) from error


def _parse(file: BinaryIO, size: int) -> EdfHeader:
    def text(width: int) -> str:
        return file.read(width).decode("latin-1").split("\x00")[0].strip()

    version = file.read(8)
    if version.strip() != b"0" and version[:1] != b"\xff":
        raise ValueError("it does not begin as EDF or BDF" if version else "it is empty")
    file.seek(184)
    header, reserved = int(text(8)), text(44)
    declared, seconds, count = int(text(8)), float(text(8).replace(",", ".")), int(text(4))
    fields = {name: [text(width) for _ in range(count)] for name, width in FIELDS.items()}
    samples = tuple(int(cell) for cell in fields["samples"])
    width = 3 if version[:1] == b"\xff" else 2
    records = (size - header) // (width * sum(samples))
    if records < 1 or seconds <= 0:
        raise ValueError("it holds no samples")
    return EdfHeader(
        tuple(fields["label"]),
        tuple(fields["unit"]),
        samples,
        records,
        declared,
        seconds,
        header,
        width,
        reserved[:5] in ("EDF+D", "BDF+D"),
    )


def read_clock(path: Path, header: EdfHeader) -> tuple[list[float], list[Remark]]:
    """Start of every record and all remarks, in s from the start of the recording.

    Args:
        path: File.
        header: Its header.
    """
    own = [n for n, label in enumerate(header.labels) if label in ANNOTATIONS]
    regular = [number * header.seconds for number in range(header.records)]
    if not own:
        return regular, []
    shape = (header.records, header.width * sum(header.samples))
    raw = np.memmap(path, np.uint8, "r", header.size, shape)
    starts, remarks = list(regular), []
    for signal in own:
        first = header.width * sum(header.samples[:signal])
        for number, row in enumerate(raw[:, first : first + header.width * header.samples[signal]]):
            lists = _lists(row)
            # Only the first list of the first annotation signal keeps the time of its record.
            if signal == own[0] and lists and not any(lists[0][2]):
                starts[number] = lists[0][0]
            remarks += [Remark(at, length, text) for at, length, said in lists for text in said]
    origin = starts[0]
    remarks = [Remark(at - origin, length, text) for at, length, text in remarks if text]
    return [start - origin for start in starts], remarks


def _lists(row: npt.NDArray[np.uint8]) -> list[tuple[float, float, list[str]]]:
    """Onset, duration and texts of the time-stamped lists of one record."""
    found = []
    for part in row.tobytes().split(b"\x00"):
        stamp, *texts = part.split(b"\x14")
        onset, _, duration = stamp.partition(b"\x15")
        try:
            at, length = float(onset), float(duration or "nan")
        except ValueError:
            continue
        found.append((at, length, [text.decode("utf-8", "replace").strip() for text in texts]))
    return found


def blocks_of(starts: list[float], seconds: float, per_record: int) -> list[Block]:
    """Blocks of records that follow each other within a sample.

    Args:
        starts: Of the records, s.
        seconds: Length of a record.
        per_record: Samples of a channel in a record.

    Raises:
        ValueError: Records overlap or run backwards.
    """
    rate = per_record / seconds
    blocks: list[Block] = []
    for number, start in enumerate(starts):
        sample = round(start * rate)
        if blocks:
            last = blocks[-1]
            end = last.start + last.length
            if sample < end - 1:
                raise ValueError(f"record {number} begins before the one ahead of it ends")
            if sample <= end + 1:
                blocks[-1] = last._replace(length=last.length + per_record)
                continue
        blocks.append(Block(sample, number * per_record, per_record))
    return blocks
