"""Older MATLAB forms of the Bern recordings: hours of long ones, and one file per seizure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers import matlab
from manyhead.mvpformer.readers.annotations import Found, inside
from manyhead.mvpformer.readers.channels import unique
from manyhead.mvpformer.readers.files import ArrayRecording, Block, FileRecording, gaps_between
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import microvolts
from manyhead.mvpformer.recording import Recording, RecordingInfo
from manyhead_core.errors import DataError

HOUR = re.compile(r"(?i)^(ID\d+)_(\d+)h\.mat$")
SHORT = re.compile(r"(?i)^Sz\d+\.mat$")
PATIENT = re.compile(r"(?i)^(ID|P|pat)_?\d+$")
# Of files of one seizure: rate, and what precedes and follows the seizure.
SHORT_RATE, AROUND_S = 512.0, 180.0


class HourRecording(FileRecording):
    """A recording in hourly MATLAB files; one of them is in memory.

    Args:
        info: What is known of it.
        files: Hours in order.
        factor: µV per stored number.
        blocks: Where the samples lie.
    """

    def __init__(
        self, info: RecordingInfo, files: Sequence[Path], factor: float, blocks: Sequence[Block]
    ) -> None:
        super().__init__(info, blocks)
        self.files, self.factor = tuple(files), np.float32(factor)

    def _open(self, file: int) -> Any:
        return np.asarray(matlab.load(self.files[file], self.info.id)["EEG"], np.float32)

    def _stored(self, opened: Any, start: int, stop: int) -> npt.NDArray[Any]:
        return np.asarray(opened[:, start:stop] * self.factor)


def find_swec_mat(root: Path) -> list[Source]:
    """Long recordings and single seizures of a folder.

    Args:
        root: Folder of folders IDn, or one of them.
    """
    long: dict[str, Source] = {}
    short = []
    for folder in (root, *sorted(path for path in root.glob("*") if path.is_dir())):
        for path in sorted(folder.glob("*.mat")):
            hour = HOUR.match(path.name)
            if hour:
                long.setdefault(hour[1], Source(hour[1], hour[1], folder, "swec_mat"))
            elif SHORT.match(path.name) and PATIENT.match(folder.name):
                id = f"{folder.name}_{path.stem}"
                short.append(Source(id, folder.name, path, "swec_mat"))
    return [*long.values(), *short]


def open_swec_mat(source: Source, options: ReadOptions) -> Recording:
    """A long recording, or the surroundings of one seizure.

    Args:
        source: What was found.
        options: How to read it.

    Raises:
        DataError: A variable or file is missing.
    """
    factor = (microvolts(options.units) or 1.0) if options.units != "auto" else 1.0
    if source.path.is_dir():
        return _long(source, factor)
    return _short(source, factor)


def _short(source: Source, factor: float) -> Recording:
    held = matlab.load(source.path, source.id)
    _needs(held, ("EEG",), source.path, source.id)
    signal = np.asarray(held["EEG"], np.float32).T
    rate = float(np.ravel(held["fs"])[0]) if "fs" in held else SHORT_RATE
    duration = signal.shape[1] / rate
    if duration <= 2 * AROUND_S:
        raise DataError(
            f"{source.id}: {duration:.0f} s leave no seizure between 3 min before and 3 min after; "
            "name the times with the option seizures"
        )
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=unique([""] * len(signal)),
        rate=rate,
        samples=signal.shape[1],
        seizures=inside(source.id, [(AROUND_S, duration - AROUND_S)], duration).seizures,
        named=False,
    )
    return ArrayRecording(info, signal * np.float32(factor))


def _long(source: Source, factor: float) -> HourRecording:
    files = _hours(source)
    about = matlab.load(source.path / f"{source.id}_info.mat", source.id)
    _needs(about, ("fs",), source.path / f"{source.id}_info.mat", source.id)
    rate = float(np.ravel(about["fs"])[0])
    blocks, count = _blocks(source.id, files, rate)
    samples = blocks[-1].start + blocks[-1].length
    found = _seizures(about, source.id, samples / rate)
    gaps = gaps_between([Block(0, 0, 0), *blocks], rate)
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=unique([""] * count),
        rate=rate,
        samples=samples,
        seizures=found.seizures,
        gaps=gaps,
        named=False,
        notes=(*found.notes, *([f"{len(gaps)} stretches of missing hours"] if gaps else [])),
    )
    return HourRecording(info, [files[hour] for hour in sorted(files)], factor, blocks)


def _hours(source: Source) -> dict[int, Path]:
    names = [(HOUR.match(path.name), path) for path in source.path.glob("*.mat")]
    return {int(name[2]): path for name, path in names if name and name[1] == source.id}


def _blocks(id: str, files: dict[int, Path], rate: float) -> tuple[list[Block], int]:
    """Blocks of the hours and the number of channels; a missing hour lasts an hour."""
    blocks: list[Block] = []
    count, end, expected = 0, 0, 1
    for number, hour in enumerate(sorted(files)):
        shapes = matlab.shapes(files[hour], id)
        _needs(shapes, ("EEG",), files[hour], id)
        channels, length = shapes["EEG"]
        if count not in (0, channels):
            raise DataError(
                f"{id}: {files[hour].name} has {channels} channels, the hours before {count}; "
                "they are not of one recording"
            )
        end += round((hour - expected) * 3600 * rate)
        blocks.append(Block(end, 0, length, number))
        count, end, expected = channels, end + length, hour + 1
    return blocks, count


def _seizures(about: dict[str, Any], id: str, duration: float) -> Found:
    if not {"seizure_begin", "seizure_end"} <= set(about):
        return Found(None, ("the info file names no seizures: none are known",))
    begins, ends = (
        np.ravel(about[name]).astype(float) for name in ("seizure_begin", "seizure_end")
    )
    if len(begins) != len(ends):
        raise DataError(f"{id}: {len(begins)} seizures begin and {len(ends)} end; correct the file")
    return inside(id, zip(begins.tolist(), ends.tolist(), strict=True), duration)


def _needs(held: Any, names: Sequence[str], path: Path, id: str) -> None:
    for name in names:
        if name not in held:
            raise DataError(
                f"{id}: {path.name} holds {', '.join(list(held)[:5]) or 'nothing'}, no {name}"
            )
