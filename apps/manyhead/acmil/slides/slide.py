"""What a slide can do, whatever reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from manyhead_core.errors import DataError

Pixels = npt.NDArray[np.uint8]
# Pixels of a level that are read at once: 200 MB.
STRIP_PIXELS = 5 * 10**7


class Slide(ABC):
    """A pyramid of levels; level 0 is the finest, and places are always given in its pixels.

    Args:
        path: The file.
        dimensions: Width and height of every level in pixels, finest first.
        mpp: µm per pixel of level 0, or None when nobody knows.

    Attributes:
        id: Name of the file without its last suffix.
    """

    def __init__(
        self, path: Path, dimensions: Sequence[tuple[int, int]], mpp: float | None
    ) -> None:
        self.path = path
        self.id = path.stem
        self.level_dimensions = tuple((int(width), int(height)) for width, height in dimensions)
        self.mpp = mpp

    @abstractmethod
    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """Pixels of a rectangle, `(height, width, 4)`; transparent black outside the slide.

        Args:
            level0_xy: Its top-left corner in level-0 pixels.
            level: Level to read.
            size: Width and height in pixels of that level.

        Raises:
            DataError: The file is damaged there.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        return self.level_dimensions[0]

    @property
    def downsamples(self) -> tuple[tuple[float, float], ...]:
        """Level-0 pixels per pixel of each level, by axis; not always a whole number."""
        width, height = self.dimensions
        return tuple((width / w, height / h) for w, h in self.level_dimensions)

    def best_level(self, downsample: float) -> int:
        """Coarsest level that is at least as fine as `downsample` asks for."""
        fine = [n for n, (x, y) in enumerate(self.downsamples) if (x + y) / 2 <= downsample]
        return fine[-1] if fine else 0

    def read(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """As `read_rgba` without the last channel, `(height, width, 3)`."""
        return np.ascontiguousarray(self.read_rgba(level0_xy, level, size)[..., :3])

    def thumbnail(self, longest: int = 1024) -> Pixels:
        """The whole slide without the last channel, no side longer than `longest` pixels."""
        return np.ascontiguousarray(self.thumbnail_rgba(longest)[..., :3])

    def thumbnail_rgba(self, longest: int = 1024) -> Pixels:
        """The whole slide, no side longer than `longest` pixels, `(height, width, 4)`.

        Raises:
            DataError: No level can be read.
        """
        width, height = self.dimensions
        factor = max(1.0, max(width, height) / longest)
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        errors = []
        for level in self.levels_for(factor):
            try:
                return self.shrunk(level, size)
            except DataError as err:
                errors.append(err)
        raise errors[0]

    def levels_for(self, downsample: float) -> list[int]:
        """All levels, the best for `downsample` first, then finer ones, then coarser ones."""
        best = self.best_level(downsample)
        return [*range(best, -1, -1), *range(best + 1, len(self.level_dimensions))]

    def shrunk(self, level: int, size: tuple[int, int]) -> Pixels:
        """A whole level at another size, `(height, width, 4)`; never in memory as a whole.

        Args:
            level: Level to read.
            size: Width and height of the result in pixels.
        """
        width, height = self.level_dimensions[level]
        parts = max(1, min(size[1], -(-width * height // STRIP_PIXELS)))
        rows = [round(size[1] * n / parts) for n in range(parts + 1)]
        strips = []
        for first, last in pairwise(rows):
            top, bottom = (round(row * height / size[1]) for row in (first, last))
            corner = (0, round(top * self.downsamples[level][1]))
            strip = self.read_rgba(corner, level, (width, bottom - top))
            small = cv2.resize(strip, (size[0], last - first), interpolation=cv2.INTER_AREA)
            strips.append(small.astype(np.uint8))
        return np.concatenate(strips)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
