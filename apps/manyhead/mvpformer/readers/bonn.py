"""Single-channel segments of the Bonn recordings, as text files or in one `.npz` file."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers.arrays import load_arrays
from manyhead.mvpformer.readers.files import ArrayRecording
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import microvolts
from manyhead.mvpformer.recording import Interval, Recording, RecordingInfo
from manyhead_core.errors import DataError

RATE = 173.61
SETS = {"Z": "A", "O": "B", "N": "C", "F": "D", "S": "E"}
SEGMENT = re.compile(r"(?i)^([ZONFS])(\d{3})$")
# Last number of each part: of 001-070 most are for training.
PARTS = ((40, "train"), (50, "validation"), (70, "test"))
NOTE = "who the patients are was never published: a split by segment may share patients"


def is_bonn(root: Path) -> bool:
    """Whether a folder or file holds segments under their published names."""
    if root.is_file():
        return _is_segment(root) or _in_npz(root)
    return any(_is_segment(path) for pattern in ("*", "*/*") for path in root.glob(pattern))


def find_bonn(root: Path) -> list[Source]:
    """Segments of a folder of sets, of one set, or of a file.

    Args:
        root: Folder, text file or `.npz` file.
    """
    if root.is_file() and root.suffix.lower() == ".npz":
        held = load_arrays(Source(root.stem, "", root, "bonn"))
        return [
            Source(str(id), str(id), root, "bonn", {"row": str(row)})
            for row, id in enumerate(held["segment_id"])
        ]
    paths = [root] if root.is_file() else [*root.glob("*"), *root.glob("*/*")]
    segments = sorted((path.stem.upper(), path) for path in paths if _is_segment(path))
    return [Source(id, id, path, "bonn") for id, path in segments]


def open_bonn(source: Source, options: ReadOptions) -> Recording:
    """A segment: one seizure from begin to end in set E, none in the others.

    Args:
        source: What was found.
        options: How to read it.

    Raises:
        DataError: The file is damaged or the name is none of the data set.
    """
    name = SEGMENT.match(source.id.split("__")[-1])
    if not name:
        raise DataError(f"{source.id}: segments are called Z001 to S100; rename the file")
    letter, number = SETS[name[1].upper()], int(name[2])
    signal, rate = _samples(source)
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=("1",),
        kinds=("EEG" if letter in "AB" else "SEEG",),
        rate=rate,
        samples=len(signal),
        seizures=(Interval(0.0, len(signal) / rate),) if letter == "E" else (),
        named=False,
        part=next((part for last, part in PARTS if number <= last), ""),
        notes=(NOTE,),
    )
    factor = (microvolts(options.units) or 1.0) if options.units != "auto" else 1.0
    return ArrayRecording(info, signal[None] * np.float32(factor))


def _samples(source: Source) -> tuple[npt.NDArray[np.float32], float]:
    if "row" in source.extra:
        held = load_arrays(source)
        signal = np.asarray(held["signal"][int(source.extra["row"])], np.float32)
        return signal, float(held.get("sfreq", RATE))
    try:
        words = source.path.read_text(encoding="latin-1").split()
        if not words:
            raise ValueError("it is empty")
        return np.array(words, np.float32), RATE
    except OSError as error:
        raise DataError(
            f"{source.id}: no file {source.path.name}; check that it was copied"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{source.id}: {source.path.name} is not one number per line; copy it again"
        ) from error


def _is_segment(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and bool(SEGMENT.match(path.stem))


def _in_npz(path: Path) -> bool:
    if path.suffix.lower() != ".npz":
        return False
    try:
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            return {"signal", "segment_id"} <= set(file.files)
    except (OSError, ValueError, EOFError, BadZipFile):
        return False
