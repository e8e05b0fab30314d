"""Files of patch coordinates: written so that CLAM reads them; also CLAM's and TRIDENT's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from manyhead.acmil.coordinates import TOLERANCE, Coordinates, Patches
from manyhead.acmil.slides.slide import Slide
from manyhead_core.errors import DataError

FORMAT = 1
# Names that tools give to the patches of a slide, beside its id.
ENDINGS = ("_patches",)


@dataclass(frozen=True)
class CoordinatesFile:
    """The patches of a slide as a file has them.

    Args:
        slide_id: Slide that they belong to.
        coords: Top-left corners, x and y, in level-0 pixels, `(patches, 2)`.
        patch_size: Side of a patch in pixels, as an encoder will see it.
        size_level0: Side of a patch in level-0 pixels.
        level: Level that patches are read from, or None to choose the best.
        read_size: Side in pixels of that level, or None.
        mpp: µm per level-0 pixel, or None.
        target_mpp: µm per pixel of a patch, or None.
        labels: 1 for patches whose centre lies in an annotation, `(patches,)`, or None.
        layout: Who wrote it: `manyhead`, `clam` or `trident`.
        settings: Options that our own files were made with.
    """

    slide_id: str
    coords: Coordinates
    patch_size: int
    size_level0: int
    level: int | None = None
    read_size: int | None = None
    mpp: float | None = None
    target_mpp: float | None = None
    labels: npt.NDArray[np.int64] | None = None
    layout: str = "manyhead"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def patches(self, slide: Slide) -> Patches:
        """How the patches are read from the slide; files of others leave the level open."""
        level, read_size = self.level, self.read_size
        if level is None or level >= len(slide.level_dimensions):
            level = slide.best_level(self.size_level0 / self.patch_size * TOLERANCE)
            read_size = None
        if read_size is None:
            read_size = max(1, round(self.size_level0 / slide.downsamples[level][0]))
        mpp = self.mpp or slide.mpp
        return Patches(self.coords, self.size_level0, level, read_size, self.patch_size, mpp)


def slide_id_of(path: Path) -> str:
    """The slide that a file of patches belongs to, by its name."""
    stem = path.stem
    for ending in ENDINGS:
        stem = stem.removesuffix(ending)
    return stem


def write_coordinates(
    path: Path,
    slide: Slide,
    patches: Patches,
    *,
    labels: npt.NDArray[np.bool_] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the patches of a slide; the file appears when it is complete.

    Args:
        path: File ending in .h5.
        slide: The slide.
        patches: As from `patch_coordinates`.
        labels: Whether a patch lies in an annotation.
        settings: Options that they were made with, to recognise them later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with h5py.File(partial, "w") as file:
        data = file.create_dataset("coords", data=np.asarray(patches.coords, np.int64))
        for name, value in _attributes(slide, patches).items():
            data.attrs[name] = value
        data.attrs["settings"] = json.dumps(dict(settings or {}), sort_keys=True)
        if labels is not None:
            file.create_dataset("labels", data=np.asarray(labels, np.int64))
    partial.replace(path)


def _attributes(slide: Slide, patches: Patches) -> dict[str, Any]:
    level = patches.level
    found: dict[str, Any] = {
        # CLAM multiplies patch_size by the downsample and reads so many pixels of patch_level.
        "patch_size": patches.read_size,
        "patch_level": level,
        "downsample": np.array(slide.downsamples[level], np.float64),
        "level_dim": np.array(slide.level_dimensions[0], np.int64),
        "downsampled_level_dim": np.array(slide.level_dimensions[level], np.int64),
        "name": slide.id,
        "format": FORMAT,
        "patch_size_level0": patches.size_level0,
        "read_size": patches.read_size,
        "target_size": patches.patch_size,
    }
    if patches.mpp is not None:
        found["mpp"] = patches.mpp
        found["target_mpp"] = patches.mpp * patches.size_level0 / patches.patch_size
    return found


def read_coordinates(path: Path) -> CoordinatesFile:
    """Read the patches of a slide, whoever wrote them.

    Raises:
        DataError: The file is missing, damaged or holds no coordinates.
    """
    if not path.is_file():
        raise DataError(f"coordinates: no file {path.name}")
    try:
        with h5py.File(path, "r") as file:
            if "coords" not in file:
                held = ", ".join(list(file)[:4]) or "nothing"
                raise DataError(f"{path.name}: holds {held}, no coords")
            coords = np.asarray(file["coords"][...]).reshape(-1, 2)
            labels = np.asarray(file["labels"][...], np.int64) if "labels" in file else None
            unit = file.attrs.get("unit")
            about = dict(file["coords"].attrs)
    except (OSError, KeyError, ValueError) as err:
        raise DataError(f"{path.name}: is no readable HDF5 file ({err})") from err
    if unit == "um":
        raise DataError(f"{path.name}: coordinates are in µm; only features of STAMP hold such")
    if labels is not None and len(labels) != len(coords):
        raise DataError(f"{path.name}: {len(labels)} labels for {len(coords)} patches")
    return _described(path, coords.astype(np.int64), labels, about)


def _described(
    path: Path,
    coords: Coordinates,
    labels: npt.NDArray[np.int64] | None,
    about: Mapping[str, Any],
) -> CoordinatesFile:
    if "patch_size" not in about:
        raise DataError(f"{path.name}: coords have no attribute patch_size; tile the slide again")
    slide_id, size = slide_id_of(path), int(about["patch_size"])
    if "format" in about:
        return _own(path, coords, labels, about)
    if "patch_size_level0" in about:
        return CoordinatesFile(
            slide_id, coords, size, int(about["patch_size_level0"]), labels=labels, layout="trident"
        )
    level = int(about.get("patch_level", 0))
    if "downsample" not in about and level > 0:
        raise DataError(f"{path.name}: level {level} without downsample; tile the slide again")
    # Truncated, as CLAM does: a factor of 2.0005 steps by 2.
    factor = int(float(np.ravel(about.get("downsample", 1.0))[0]))
    return CoordinatesFile(
        slide_id, coords, size, size * factor, level, size, labels=labels, layout="clam"
    )


def _own(
    path: Path,
    coords: Coordinates,
    labels: npt.NDArray[np.int64] | None,
    about: Mapping[str, Any],
) -> CoordinatesFile:
    if int(about["format"]) > FORMAT:
        raise DataError(
            f"{path.name}: format {int(about['format'])} is newer than this version reads "
            f"({FORMAT}); update manyhead"
        )
    return CoordinatesFile(
        slide_id_of(path),
        coords,
        int(about["target_size"]),
        int(about["patch_size_level0"]),
        int(about["patch_level"]),
        int(about["read_size"]),
        float(about["mpp"]) if "mpp" in about else None,
        float(about["target_mpp"]) if "target_mpp" in about else None,
        labels,
        settings=json.loads(about.get("settings", "{}")),
    )
