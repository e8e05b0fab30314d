"""TIFF-based slides read in Python, where OpenSlide is missing or refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiffslide

from manyhead.acmil.slides.resolution import mpp_of
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead_core.errors import DataError


class TiffSlideReader(Slide):
    """A slide opened with tiffslide.

    Args:
        path: The file.
        mpp: µm per pixel of level 0 instead of what the file says.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        try:
            self._slide = tiffslide.TiffSlide(path)
        except Exception as err:
            raise DataError(f"{path.name}: tiffslide cannot read it ({err})") from err
        try:
            dimensions = self._slide.level_dimensions
            properties = {name: str(value) for name, value in self._slide.properties.items()}
        except Exception as err:
            self._slide.close()
            raise DataError(f"{path.name}: tiffslide cannot read it ({err})") from err
        super().__init__(path, dimensions, mpp or mpp_of(properties))

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """As `Slide.read_rgba`."""
        try:
            rgb = np.asarray(self._slide.read_region(level0_xy, level, size).convert("RGBA"))
        except Exception as err:
            raise DataError(f"{self.path.name}: damaged at {level0_xy}, level {level}") from err
        return _outside_black(rgb, level0_xy, self.downsamples[level], self.level_dimensions[level])

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _outside_black(
    pixels: Pixels,
    level0_xy: tuple[int, int],
    downsample: tuple[float, float],
    dimensions: tuple[int, int],
) -> Pixels:
    """Transparent black outside the slide, as OpenSlide has it."""
    found = pixels.copy()
    for axis in (0, 1):  # x, y
        start = round(level0_xy[axis] / downsample[axis])
        place = np.arange(pixels.shape[1 - axis]) + start
        outside = (place < 0) | (place >= dimensions[axis])
        if axis == 0:
            found[:, outside] = 0
        else:
            found[outside] = 0
    return found
