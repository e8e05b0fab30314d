"""Pixels of the patches of a slide, read ahead by threads, in batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from manyhead.acmil.coordinates import Coordinates, Patches
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead_core.errors import DataError

# Patches that one thread reads in a row: neighbours share tiles of the file, which stay cached.
RUN = 16
# Batches that are read ahead of the one in use.
AHEAD = 2


@dataclass
class Damage:
    """What could not be read as asked.

    Args:
        retried: Patches read from the next coarser level instead.
        lost: Top-left corners of patches that no level gave.
    """

    retried: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)


class TileReader:
    """Reads the patches of one slide.

    Args:
        open_slide: Opens the slide; every thread has its own handle.
        patches: Where the patches are and how they are read.
        workers: Threads.
    """

    def __init__(self, open_slide: Callable[[], Slide], patches: Patches, workers: int = 1) -> None:
        self._open, self.patches, self.workers = open_slide, patches, workers
        self.damage = Damage()
        self._own = threading.local()
        self._slides: list[Slide] = []
        self._lock = threading.Lock()

    def batches(self, size: int) -> Iterator[tuple[Pixels, Coordinates]]:
        """Tiles `(tiles, patch_size, patch_size, 3)` with their corners `(tiles, 2)`, in order.

        Patches that cannot be read are left out and listed in `damage`.

        Args:
            size: Patches in a batch.

        Raises:
            DataError: The slide cannot be opened.
        """
        corners = self.patches.coords
        starts = deque(range(0, len(corners), size))
        waiting: deque[list[Future[tuple[Pixels, npt.NDArray[np.bool_]]]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for start in range(0, len(corners), size):
                    while starts and len(waiting) <= AHEAD:
                        first = starts.popleft()
                        waiting.append(self._submit(pool, corners[first : first + size]))
                    parts = [future.result() for future in waiting.popleft()]
                    tiles, read = (np.concatenate(part) for part in zip(*parts, strict=True))
                    yield tiles, corners[start : start + size][read]
            finally:
                pool.shutdown(cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, corners: Coordinates
    ) -> list[Future[tuple[Pixels, npt.NDArray[np.bool_]]]]:
        runs = range(0, len(corners), RUN)
        return [pool.submit(self._read_run, corners[start : start + RUN]) for start in runs]

    def _read_run(self, corners: Coordinates) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        side = self.patches.patch_size
        found = [self._read((int(x), int(y))) for x, y in corners]
        tiles = [tile for tile in found if tile is not None]
        stacked = np.stack(tiles) if tiles else np.empty((0, side, side, 3), np.uint8)
        return stacked, np.array([tile is not None for tile in found], bool)

    def _read(self, corner: tuple[int, int]) -> Pixels | None:
        """A patch; None when neither its level nor the next coarser one can be read."""
        patches = self.patches
        try:
            return self._sized(corner, patches.level, patches.read_size)
        except DataError:
            self._reopen()
        levels = self._slide().downsamples
        if patches.level + 1 < len(levels):
            size = max(1, round(patches.size_level0 / levels[patches.level + 1][0]))
            try:
                tile = self._sized(corner, patches.level + 1, size)
            except DataError:
                self._reopen()
            else:
                with self._lock:
                    self.damage.retried += 1
                return tile
        with self._lock:
            self.damage.lost.append(corner)
        return None

    def _sized(self, corner: tuple[int, int], level: int, size: int) -> Pixels:
        return resized(self._slide().read(corner, level, (size, size)), self.patches.patch_size)

    def _slide(self) -> Slide:
        slide: Slide | None = getattr(self._own, "slide", None)
        if slide is None:
            slide = self._own.slide = self._open()
            with self._lock:
                self._slides.append(slide)
        return slide

    def _reopen(self) -> None:
        """OpenSlide answers nothing more on a handle that has met an error."""
        slide = self._slide()
        with self._lock:
            self._slides.remove(slide)
        slide.close()
        self._own.slide = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for slide in self._slides:
            slide.close()
        self._slides.clear()


def resized(tile: Pixels, size: int) -> Pixels:
    """The tile with sides of `size` pixels; as it is when it has them already."""
    if tile.shape[:2] == (size, size):
        return tile
    way = cv2.INTER_AREA if tile.shape[0] > size else cv2.INTER_CUBIC
    changed: Pixels = cv2.resize(tile, (size, size), interpolation=way).astype(np.uint8)
    return changed
