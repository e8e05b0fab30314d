"""Our own feature files: read fast, and readable by what reads CLAM's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import numpy.typing as npt

from manyhead_core.errors import DataError

FORMAT = 1
# A chunk is read as a whole: one row at a time costs 20-fold on a full read, and chunks of many
# more rows cost memory when few rows are wanted.
CHUNK_ROWS = 1024
Dtype = Literal["float16", "float32"]


class FeatureWriter:
    """Writes the features of a slide piece by piece; the file appears when it is complete.

    Args:
        path: File ending in .h5.
        num_patches: Patches at most.
        feature_dim: Width of a feature.
        dtype: `float16` or `float32`.
        attributes: Plain values to write beside; None is left out.
        coords_dtype: Type of the corners; None writes none.
    """

    def __init__(
        self,
        path: Path,
        num_patches: int,
        feature_dim: int,
        dtype: Dtype = "float16",
        attributes: Mapping[str, Any] | None = None,
        coords_dtype: npt.DTypeLike | None = np.int64,
    ) -> None:
        self.path, self.dtype, self.rows = path, np.dtype(dtype), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.partial")
        self._partial.unlink(missing_ok=True)
        self._file = h5py.File(self._partial, "w")
        self._features = self._table("features", num_patches, feature_dim, self.dtype)
        self._coords: Any = None
        if coords_dtype is not None:
            self._coords = self._table("coords", num_patches, 2, coords_dtype)
        for name, value in ({"format": FORMAT} | dict(attributes or {})).items():
            if value is not None:
                self._file.attrs[name] = value

    def append(self, features: npt.NDArray[Any], coords: npt.NDArray[Any] | None) -> None:
        """Write some patches.

        Args:
            features: `(patches, feature_dim)`.
            coords: Top-left corners, x and y, `(patches, 2)`; None in a file without.

        Raises:
            DataError: A value is not finite, or does not fit into float16.
        """
        end = self.rows + len(features)
        self._features[self.rows : end] = self._narrowed(features)
        if self._coords is not None:
            self._coords[self.rows : end] = coords
        self.rows = end

    def note(self, name: str, value: Any) -> None:
        """Write one more attribute."""
        self._file.attrs[name] = value

    def _narrowed(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not np.isfinite(features).all():
            bad = int((~np.isfinite(features).all(1)).sum())
            raise DataError(f"{self.path.stem}: {bad} features are not finite; check the encoder")
        if self.dtype == np.float16 and features.size and np.abs(features).max() > 65504:
            raise DataError(
                f"{self.path.stem}: features reach {np.abs(features).max():.3g}, more than float16 "
                "holds; pass --dtype float32"
            )
        return features.astype(self.dtype)

    def _table(self, name: str, rows: int, width: int, dtype: npt.DTypeLike) -> Any:
        if not rows or not width:
            return self._file.create_dataset(name, (rows, width), dtype)
        chunk = (min(rows, CHUNK_ROWS), width)
        return self._file.create_dataset(
            name, (rows, width), dtype, chunks=chunk, maxshape=(rows, width)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._file.close()
            self._partial.unlink(missing_ok=True)
            return
        for table in (self._features, self._coords):
            if table is not None and len(table) != self.rows:
                table.resize(self.rows, 0)
        self._file.close()
        self._partial.replace(self.path)
