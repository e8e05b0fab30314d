"""HDF5 files: CLAM, TRIDENT, STAMP, ACMIL's one file for all slides, and our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from manyhead.acmil.layouts.feature_file import WHOLE, FeatureFile, two_dimensional
from manyhead_core.errors import DataError

# Names of the features in a file, and who writes them.
FEATURES = {"features": "clam", "feats": "stamp", "feat": "acmil"}
# Attributes that say where somebody's files lie or who they are.
PRIVATE = ("savetodir", "save_path", "name")


class Hdf5Features(FeatureFile):
    """Features in a file or a group of it.

    Args:
        path: The file.
        slide_id: Slide, which in a file of many slides is the name of the group.
        group: Group of the file; empty is the file itself.
        mpp: µm per level-0 pixel, for coordinates that are stored in µm.
    """

    def __init__(
        self, path: Path, slide_id: str, group: str = "", mpp: float | None = None
    ) -> None:
        with _open(path) as file:
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
            return np.asarray(data[0, rows] if data.ndim == 3 else data[rows])

    def coords(self) -> npt.NDArray[np.int64] | None:
        """As `FeatureFile.coords`; µm become pixels.

        Raises:
            DataError: They are in µm and nobody knows the size of a pixel.
        """
        with _open(self.path) as file:
            place = self._place(file)
            if "coords" not in place:
                return None
            found = np.asarray(place["coords"][WHOLE]).reshape(-1, 2)
        if self.metadata.get("unit") != "um":
            return found.astype(np.int64)
        mpp = self.mpp or self._own_mpp()
        if mpp is None:
            raise DataError(
                f"{self.slide_id}: coordinates of {self.path.name} are in µm; pass mpp, the µm "
                "per level-0 pixel of the slide"
            )
        return np.rint(found / mpp).astype(np.int64)

    def _own_mpp(self) -> float | None:
        found = self.metadata.get("mpp")
        return float(found) if found else None

    def _place(self, file: h5py.File) -> Any:
        return file[self.group] if self.group else file


def groups_in(path: Path) -> list[str]:
    """Slides of a file with one group for each; empty for other files."""
    with _open(path) as file:
        if any(isinstance(entry, h5py.Dataset) for entry in file.values()):
            return []
        return [name for name, entry in file.items() if any(known in entry for known in FEATURES)]


def _describe(place: Any, name: str) -> tuple[str, int | None, dict[str, Any]]:
    """Layout, size of a patch in level-0 pixels, and metadata."""
    layout = FEATURES[name]
    corners = place["coords"].attrs if "coords" in place else {}
    about = _plain(place.attrs) | _plain(corners) | _plain(place[name].attrs)
    if "patch_size_level0" in corners and "format" not in place.attrs:
        return "trident", int(corners["patch_size_level0"]), about
    if "format" in place.attrs:
        return "manyhead", int(place.attrs["patch_size_level0"]), about
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
