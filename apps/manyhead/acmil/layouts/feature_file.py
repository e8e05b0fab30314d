"""The features of one slide, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead_core.errors import DataError

Rows = slice | npt.NDArray[np.integer] | None
WHOLE = slice(None)
# Rows that are checked at a time; what they need stays in the cache of the processor.
CHECKED = 64


class FeatureFile(ABC):
    """Features of the patches of a slide; nothing is read before it is asked for.

    Args:
        path: The file.
        slide_id: Slide that the features belong to.
        layout: Name of the tool that writes such files.
        shape: Patches and width of a feature.
        patch_size_level0: Side of a patch in level-0 pixels, or None.
        metadata: What else the file says, plain values.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        layout: str,
        shape: tuple[int, int],
        patch_size_level0: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.slide_id, self.layout = path, slide_id, layout
        self.num_patches, self.feature_dim = shape
        self.patch_size_level0 = patch_size_level0
        self.metadata = dict(metadata or {})

    @abstractmethod
    def _features(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Some rows as they are stored."""

    @abstractmethod
    def coords(self) -> npt.NDArray[np.int64] | None:
        """Top-left corners, x and y in level-0 pixels, `(patches, 2)`, or None."""

    def stored_coords(self) -> tuple[npt.NDArray[Any], str] | None:
        """Corners as they are stored, with their unit, `px` of level 0 or `um`; or None."""
        corners = self.coords()
        return None if corners is None else (corners, "px")

    def features(self, rows: Rows = None) -> npt.NDArray[Any]:
        """Features, `(patches, feature_dim)`, float16 or float32.

        Args:
            rows: Which patches, in rising order; None is all.

        Raises:
            DataError: The file is damaged or holds values that are not finite.
        """
        try:
            found = self._features(WHOLE if rows is None else rows)
        except (OSError, KeyError, ValueError) as err:
            raise DataError(f"{self.slide_id}: {self.path.name} is damaged ({err})") from err
        if found.dtype not in (np.float16, np.float32):
            found = found.astype(np.float32)
        if not all_finite(found):
            bad = int((~np.isfinite(found).all(1)).sum())
            raise DataError(
                f"{self.slide_id}: {bad} of {len(found)} features in {self.path.name} are not "
                "finite; extract them again"
            )
        return found


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # NumPy asks half-precision numbers one by one, which costs more than reading them. Their five
    # exponent bits are all set when they are not finite.
    bits = values.view(np.uint16)
    return not any(
        ((bits[start : start + CHECKED] & 0x7C00) == 0x7C00).any()
        for start in range(0, len(bits), CHECKED)
    )


def two_dimensional(shape: tuple[int, ...], slide_id: str) -> tuple[int, int]:
    """Patches and width of stored features; some tools put a batch of one around them.

    Raises:
        DataError: The shape is no table.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if shape == (0,):
        return 0, 0  # a slide without tissue
    if len(shape) != 2:
        raise DataError(f"{slide_id}: features have the shape {shape}, not (patches, width)")
    return int(shape[0]), int(shape[1])
