"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, VMS, BIF, DICOM, tiled TIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide

from manyhead.acmil.slides.resolution import mpp_of
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead_core.errors import DataError


class OpenSlideReader(Slide):
    """A slide opened with OpenSlide.

    Args:
        path: The file.
        mpp: µm per pixel of level 0 instead of what the file says.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as err:
            raise DataError(f"{path.name}: OpenSlide cannot read it ({err})") from err
        known = mpp or mpp_of(self._slide.properties)
        super().__init__(path, self._slide.level_dimensions, known)

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """As `Slide.read_rgba`."""
        try:
            return np.asarray(self._slide.read_region(level0_xy, level, size))
        except openslide.OpenSlideError as err:
            # After an error OpenSlide refuses every call; other places may well be readable.
            self._slide.close()
            self._slide = openslide.OpenSlide(self.path)
            raise DataError(
                f"{self.path.name}: damaged at {level0_xy}, level {level} ({err})"
            ) from err

    def close(self) -> None:
        """Release the file."""
        self._slide.close()
