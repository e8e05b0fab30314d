"""Long-term recordings as HDF5 files `IDnn/IDnn_total.h5`, often virtual over part files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers.annotations import Found, inside
from manyhead.mvpformer.readers.channels import unique
from manyhead.mvpformer.readers.files import Block, FileRecording
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.silence import treat_silence
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import microvolts
from manyhead.mvpformer.recording import Recording, RecordingInfo
from manyhead_core.errors import DataError

with suppress(ImportError):
    # Registers the compression filters that some releases use.
    import hdf5plugin  # noqa: F401

SIGNAL, SEIZURES, RATE = "data/ieeg", "data/seizures", "sampling_rate"
TOTAL = re.compile(r"(?i)^(ID\d+)_total\.h5$")
PART = re.compile(r"(?i)^(ID\d+)_part_(\d+)\.h5$")

# Zeros compress to a thousandth of their size, signal to a half.
LOUD_SHARE, LOUD_S = 0.05, 10.0


class Hdf5Recording(FileRecording):
    """A recording of one or several HDF5 files.

    Args:
        info: What is known of it.
        files: Files in order.
        factor: µV per stored number.
        blocks: Where the samples lie.
    """

    def __init__(
        self,
        info: RecordingInfo,
        files: Sequence[Path],
        factor: float = 1.0,
        blocks: Sequence[Block] = (),
    ) -> None:
        super().__init__(info, blocks)
        self.files, self.factor = tuple(files), factor

    def _open(self, file: int) -> Any:
        return h5py.File(self.files[file], "r")

    def surely_loud(self, sample: int) -> bool:
        """As `FileRecording.surely_loud`: zeros compress to next to nothing."""
        for block in self.blocks:
            if block.start <= sample < block.start + block.length:
                data = self._handle(block.file)[SIGNAL]
                # A longer chunk could hide a silence of a minute beside signal.
                small = bool(data.chunks) and data.chunks[1] <= LOUD_S * self.info.rate
                place = sample - block.start + block.stored
                return small and _compressed_to(data, place) > LOUD_SHARE
        return False

    def _stored(self, opened: Any, start: int, stop: int) -> npt.NDArray[Any]:
        return np.asarray(opened[SIGNAL][:, start:stop], np.float32) * np.float32(self.factor)


def _compressed_to(data: h5py.Dataset, sample: int) -> float:
    """Stored size of the first chunk of a sample as a share of its size in memory."""
    if data.is_virtual or data.chunks is None or data.compression is None:
        return 0.0
    place = (0, sample // data.chunks[1] * data.chunks[1])
    stored = data.id.get_chunk_info_by_coord(place).size
    return float(stored / (data.chunks[0] * data.chunks[1] * data.dtype.itemsize))


def find_swec(root: Path) -> list[Source]:
    """Recordings of a release, or of one folder of it.

    Args:
        root: Folder that holds the folders IDnn, or one of them.
    """
    found: dict[str, Path] = {}
    folders = [root, *sorted(path for path in root.glob("*") if path.is_dir())]
    for folder in folders:
        for path in sorted(folder.iterdir()):
            total, part = TOTAL.match(path.name), PART.match(path.name)
            if total:
                found[total[1]] = path
            elif part:
                # A folder without a total is read from its parts.
                found.setdefault(part[1], path)
    return [Source(id, id, path, "swec") for id, path in sorted(found.items())]


def open_swec(source: Source, options: ReadOptions) -> Recording:
    """A recording of the release.

    Args:
        source: What was found: the total, or one of the parts where there is no total.
        options: How to read it.

    Raises:
        DataError: Something is missing in the file, or parts of it are.
    """
    if not source.path.is_file():
        raise DataError(f"{source.id}: no file {source.path.name}; check that it was copied")
    notes: tuple[str, ...] = ()
    if PART.match(source.path.name):
        files, length = own_parts(source.path), None
        notes = ("no total file: read from the parts",)
    else:
        with h5py.File(source.path, "r") as file:
            data = _signal(file, source.id)
            length = data.shape[1]
            broken = missing_sources(data, source.path)
        files = [source.path]
        if broken:
            files, notes = _instead(source, broken)
    blocks, count, rate = _blocks(source.id, files)
    samples = blocks[-1].start + blocks[-1].length
    if length not in (None, samples):
        raise DataError(
            f"{source.id}: the parts hold {samples} samples and the index names {length}; "
            "parts are missing, copy them all"
        )
    seizures = _seizures(source, files, samples / rate)
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=unique([""] * count),
        rate=rate,
        samples=samples,
        seizures=seizures.seizures,
        named=False,
        notes=(*notes, *seizures.notes),
    )
    factor = (microvolts(options.units) or 1.0) if options.units != "auto" else 1.0
    return treat_silence(Hdf5Recording(info, files, factor, blocks), options.zeros)


def missing_sources(data: h5py.Dataset, path: Path) -> list[str]:
    """Part files that a virtual data set names and that are not the recording's own.

    HDF5 reads zeros in their place, or takes a file of the same name from the working directory.

    Args:
        data: The data set.
        path: Its file.
    """
    if not data.is_virtual:
        return []
    own, found = TOTAL.match(path.name), []
    for entry in data.virtual_sources():
        if entry.file_name == ".":
            continue
        part = PART.match(Path(entry.file_name).name)
        foreign = bool(own and part and part[1].lower() != own[1].lower())
        if foreign or not _holds(path.parent / entry.file_name, entry.dset_name):
            found.append(Path(entry.file_name).name)
    return sorted(set(found))


def own_parts(path: Path) -> list[Path]:
    """Part files beside a file that carry its number, in order of theirs."""
    own = TOTAL.match(path.name) or PART.match(path.name)
    parts = [(PART.match(other.name), other) for other in path.parent.iterdir()]
    mine = [
        (int(match[2]), other)
        for match, other in parts
        if match and own and match[1].lower() == own[1].lower()
    ]
    return [other for _, other in sorted(mine)]


def _holds(path: Path, name: str) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return name in file
    except OSError:
        return False


def _instead(source: Source, broken: list[str]) -> tuple[list[Path], tuple[str, ...]]:
    """The recording's own parts where its index names others."""
    parts = own_parts(source.path)
    if not parts:
        raise DataError(
            f"{source.id}: {source.path.name} is an index of part files, and {len(broken)} of them "
            f"are missing, first {broken[0]}; put the parts beside it, or they read as zeros"
        )
    note = f"the index names {broken[0]}: read from the {len(parts)} parts of the folder instead"
    return parts, (note,)


def _blocks(id: str, files: Sequence[Path]) -> tuple[list[Block], int, float]:
    """Blocks, channels and rate of files that follow each other."""
    blocks: list[Block] = []
    count, rate, end = 0, 0.0, 0
    for number, path in enumerate(files):
        with h5py.File(path, "r") as file:
            data = _signal(file, id)
            own = _rate(file, path, id, rate)
            if number and (data.shape[0], own) != (count, rate):
                raise DataError(
                    f"{id}: {path.name} has {data.shape[0]} channels at {own:g} Hz, the parts "
                    f"before have {count} at {rate:g} Hz; they are not of one recording"
                )
            count, rate = int(data.shape[0]), own
            blocks.append(Block(end, 0, int(data.shape[1]), number))
            end += int(data.shape[1])
    return blocks, count, rate


def _signal(file: h5py.File, id: str) -> h5py.Dataset:
    data = file.get(SIGNAL)
    if not isinstance(data, h5py.Dataset) or data.ndim != 2 or 0 in data.shape:
        raise DataError(
            f"{id}: the file has no {SIGNAL} of channels x samples; see the SWEC layout in the docs"
        )
    return data


def _rate(file: h5py.File, path: Path, id: str, known: float) -> float:
    for holder in (file, file.get("data"), file.get(SIGNAL)):
        if holder is not None and RATE in holder.attrs:
            return float(np.asarray(holder.attrs[RATE]).reshape(-1)[0])
    total = next((p for p in path.parent.glob("*_total.h5") if p != path), None)
    if known:
        return known
    if PART.match(path.name) and total is not None:
        with h5py.File(total, "r") as whole:
            return _rate(whole, total, id, known)
    raise DataError(f"{id}: {path.name} has no attribute {RATE}; add it to the file, in Hz")


def _seizures(source: Source, files: Sequence[Path], duration: float) -> Found:
    """Seizures of the total file, or of the first file that has the table."""
    for path in (source.path, *files):
        with h5py.File(path, "r") as file:
            if SEIZURES not in file:
                continue
            table = file[SEIZURES][()]
            names = table.dtype.names or ()
            if not {"onsets", "offsets"} <= set(names):
                raise DataError(
                    f"{source.id}: {SEIZURES} has no fields onsets and offsets; correct the table"
                )
            rows = np.atleast_1d(table)
            pairs = zip(rows["onsets"].astype(float), rows["offsets"].astype(float), strict=True)
            return inside(source.id, pairs, duration)
    return Found(None, (f"no table {SEIZURES}: no seizures known",))
