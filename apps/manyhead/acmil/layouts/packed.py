"""A packed cache: the features of all slides in one array that is mapped into memory.

A folder with `packed.json` (slides, rows, metadata), `features.npy` `(patches of all, width)` and
`coords.npy`. Random rows cost no more than their bytes, and nothing is read that is not asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.acmil.layouts.feature_file import FeatureFile
from manyhead_core.errors import DataError

INDEX, FORMAT = "packed.json", 1
FEATURES, COORDS = "features.npy", "coords.npy"


class PackedFeatures(FeatureFile):
    """The rows of one slide in a packed cache.

    Args:
        path: The file `packed.json`.
        slide_id: The slide; may be left out when there is only one.
        mpp: µm per level-0 pixel, for coordinates that are stored in µm.
    """

    def __init__(self, path: Path, slide_id: str | None = None, mpp: float | None = None) -> None:
        slides = packed_slides(path)
        if slide_id is None and len(slides) == 1:
            slide_id = next(iter(slides))
        if slide_id is None or slide_id not in slides:
            raise DataError(f"features: {path.parent} holds {len(slides)} slides, not {slide_id}")
        row = slides[slide_id]
        self._start, count = int(row["start"]), int(row["count"])
        self._unit, self._mpp = row["unit"], mpp or row["metadata"].get("mpp")
        shape = (count, int(_index(path)["feature_dim"]))
        super().__init__(path, slide_id, "packed", shape, row["patch_size_level0"], row["metadata"])

    def _features(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        # A copy, since the mapping is not writable and torch wants what it can write to.
        own = _mapped(self.path, FEATURES)[self._start : self._start + self.num_patches]
        return np.array(own[rows])

    def coords(self) -> npt.NDArray[np.int64] | None:
        """As `FeatureFile.coords`."""
        stored = self.stored_coords()
        if stored is None or stored[1] == "px":
            return None if stored is None else stored[0].astype(np.int64)
        if not self._mpp:
            raise DataError(
                f"{self.slide_id}: coordinates are in µm; pass mpp, the µm per level-0 pixel"
            )
        return np.rint(stored[0] / self._mpp).astype(np.int64)

    def stored_coords(self) -> tuple[npt.NDArray[Any], str] | None:
        """As `FeatureFile.stored_coords`."""
        if self._unit == "none":
            return None
        table = _mapped(self.path, COORDS)
        return np.array(table[self._start : self._start + self.num_patches]), self._unit


def packed_slides(path: Path) -> dict[str, dict[str, Any]]:
    """What a packed cache says of its slides, by id.

    Raises:
        DataError: The cache is damaged or newer than this version.
    """
    slides: dict[str, dict[str, Any]] = _index(path)["slides"]
    return slides


def write_packed(files: Sequence[FeatureFile], out: Path, dtype: npt.DTypeLike) -> int:
    """Write the features of slides into one cache; the folder appears when it is complete.

    Args:
        files: The slides, all of one width.
        out: Folder to make.
        dtype: Type of the features.

    Returns:
        Number of patches.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        total = sum(file.num_patches for file in files)
        width = max((file.feature_dim for file in files), default=0)
        slides = _fill(files, partial, (total, width), np.dtype(dtype))
        content = {"format": FORMAT, "feature_dim": width, "slides": slides}
        (partial / INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return total


def _fill(
    files: Iterable[FeatureFile], folder: Path, shape: tuple[int, int], dtype: np.dtype[Any]
) -> Mapping[str, Any]:
    features = np.lib.format.open_memmap(folder / FEATURES, "w+", dtype, shape)
    coords = np.lib.format.open_memmap(folder / COORDS, "w+", np.float64, (shape[0], 2))
    slides, start = {}, 0
    for file in files:
        end = start + file.num_patches
        if file.num_patches:
            features[start:end] = file.features()
        stored = file.stored_coords()
        if stored is not None:
            coords[start:end] = stored[0]
        slides[file.slide_id] = {
            "start": start,
            "count": file.num_patches,
            "unit": "none" if stored is None else stored[1],
            "patch_size_level0": file.patch_size_level0,
            "metadata": file.metadata,
        }
        start = end
    features.flush()
    coords.flush()
    return slides


def _index(path: Path) -> dict[str, Any]:
    try:
        return _read_index(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as err:
        raise DataError(f"features: {path} is no index of a packed cache") from err


@lru_cache(maxsize=8)
def _read_index(path: Path, modified: int) -> dict[str, Any]:  # noqa: ARG001
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise DataError(f"features: {path} has format {content.get('format')}, not {FORMAT}")
    return content


def _mapped(path: Path, name: str) -> npt.NDArray[Any]:
    try:
        return _map(path.parent / name, path.stat().st_mtime_ns)
    except (OSError, ValueError) as err:
        raise DataError(f"features: {path.parent / name} is damaged ({err})") from err


@lru_cache(maxsize=16)
def _map(path: Path, modified: int) -> npt.NDArray[Any]:  # noqa: ARG001
    found: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return found
