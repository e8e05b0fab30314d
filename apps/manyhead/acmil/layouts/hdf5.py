"""HDF5 files: CLAM, TRIDENT, STAMP, ACMIL's one file for all slides, and our own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from manyhead.acmil.layouts.feature_file import WHOLE, FeatureFile, two_dimensional
from manyhead_core.errors import DataError

# Names of the features in a file, and who writes them.
FEATURES = {"features": "clam", "feats": "stamp", "feat": "acmil"}
# Rows between wanted ones that are read along.
BLOCK_ROWS = 256
# Attributes that say where somebody's files lie or who they are.
PRIVATE = ("savetodir", "save_path", "name")


class Hdf5Features(FeatureFile):
    """Features in a file or a group of it.

    Args:
        path: The file.
        slide_id: Slide, which in a file of many slides is the name of the group.
        group: Group of the file; empty is the file itself.
        mpp: µm per level-0 pixel, for coordinates that are stored in µm.
        opened: The file, if it is open already; it is not kept.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        group: str = "",
        mpp: float | None = None,
        opened: h5py.File | None = None,
    ) -> None:
        with nullcontext(opened) if opened else _open(path) as file:
            place = file[group] if group else file
            name = next((name for name in FEATURES if name in place), None)
            if name is None:
                held = ", ".join(list(place)[:4]) or "nothing"
                raise DataError(
                    f"{slide_id}: {path.name} holds {held}, no features; "
                    "known names are features, feats and feat"
                )
            layout, size, about = _describe(place, name)
            if layout == "stamp" and mpp and about.get("tile_size_um"):
                size = round(float(about["tile_size_um"]) / mpp)
            shape = two_dimensional(place[name].shape, slide_id)
            self.chunk_rows = place[name].chunks[-2] if place[name].chunks else None
        super().__init__(path, slide_id, layout, shape, size, about)
        self.group, self.name, self.mpp = group, name, mpp

    def _features(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        with _open(self.path) as file:
            data = self._place(file)[self.name]
            if data.ndim == 1:
                return np.empty((0, 0), np.float32)
            if not isinstance(rows, slice) and data.ndim == 2:
                return _pick(data, np.asarray(rows))
            return np.asarray(data[0, rows] if data.ndim == 3 else data[rows])

    def coords(self) -> npt.NDArray[np.int64] | None:
        """As `FeatureFile.coords`; µm become pixels.

        Raises:
            DataError: They are in µm and nobody knows the size of a pixel.
        """
        found = self._corners()
        if found is None or self.metadata.get("unit") != "um":
            return None if found is None else found.astype(np.int64)
        mpp = self.mpp or self._own_mpp()
        if mpp is None:
            raise DataError(
                f"{self.slide_id}: coordinates of {self.path.name} are in µm; pass mpp, the µm "
                "per level-0 pixel of the slide"
            )
        return np.rint(found / mpp).astype(np.int64)

    def stored_coords(self) -> tuple[npt.NDArray[Any], str] | None:
        """As `FeatureFile.stored_coords`; µm stay µm while nobody knows the size of a pixel."""
        if self.metadata.get("unit") == "um" and not (self.mpp or self._own_mpp()):
            found = self._corners()
            return None if found is None else (found, "um")
        return super().stored_coords()

    def _corners(self) -> npt.NDArray[Any] | None:
        with _open(self.path) as file:
            place = self._place(file)
            if "coords" not in place:
                return None
            return np.asarray(place["coords"][WHOLE]).reshape(-1, 2)

    def _own_mpp(self) -> float | None:
        found = self.metadata.get("mpp")
        return float(found) if found else None

    def _place(self, file: h5py.File) -> Any:
        return file[self.group] if self.group else file


def open_hdf5(path: Path, slide_id: str | None, mpp: float | None) -> Hdf5Features:
    """The features of a slide in a file of one slide or of many.

    Raises:
        DataError: The file holds many slides, and not this one.
    """
    with _open(path) as file:
        slides = _groups(file)
        if not slides:
            return Hdf5Features(path, slide_id or path.stem, "", mpp, file)
        if slide_id is None and len(slides) == 1:
            slide_id = slides[0]
        if slide_id not in slides:
            raise DataError(f"features: {path.name} holds {len(slides)} slides, none is {slide_id}")
        return Hdf5Features(path, slide_id, slide_id, mpp, file)


def groups_in(path: Path) -> list[str]:
    """Slides of a file with one group for each; empty for other files."""
    with _open(path) as file:
        return _groups(file)


def _groups(file: h5py.File) -> list[str]:
    if any(name in file for name in (*FEATURES, "coords")):
        return []
    return [
        name
        for name, entry in file.items()
        if isinstance(entry, h5py.Group) and any(known in entry for known in FEATURES)
    ]


def _pick(data: Any, rows: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """Some rows, in rising order: a block at a time from the first to the last that is wanted.

    A list of rows costs HDF5 0.1 ms a row, which is more than to read their neighbours as well.
    """
    if rows.size and not 0 <= rows[0] <= rows[-1] < len(data):
        raise ValueError(f"rows {rows[0]} to {rows[-1]} of {len(data)}")
    found = np.empty((rows.size, *data.shape[1:]), data.dtype)
    step = max(BLOCK_ROWS, data.chunks[0] if data.chunks else 0)
    start = 0
    while start < rows.size:
        end = int(np.searchsorted(rows, (rows[start] // step + 1) * step))
        low, high = int(rows[start]), int(rows[end - 1]) + 1
        found[start:end] = data[low:high][rows[start:end] - low]
        start = end
    return found


def _describe(place: Any, name: str) -> tuple[str, int | None, dict[str, Any]]:
    """Layout, size of a patch in level-0 pixels, and metadata."""
    layout = FEATURES[name]
    corners = place["coords"].attrs if "coords" in place else {}
    about = _plain(place.attrs) | _plain(corners) | _plain(place[name].attrs)
    if "patch_size_level0" in corners and "format" not in place.attrs:
        return "trident", int(corners["patch_size_level0"]), about
    if "format" in place.attrs:
        size = about.get("patch_size_level0")
        return "manyhead", None if size is None else int(size), about
    if "patch_size" in corners:
        factor = float(np.ravel(corners.get("downsample", 1.0))[0])
        return layout, int(int(corners["patch_size"]) * int(factor)), about
    return layout, None, about


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in attributes.items()
        if name not in PRIVATE
    }


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"{path.name}: is no readable HDF5 file ({err})") from err
