"""The patches of a slide: a grid over each piece of tissue, the corners in level-0 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from manyhead.acmil.polygons import locate
from manyhead.acmil.slides.resolution import magnification_of
from manyhead.acmil.slides.slide import Slide
from manyhead.acmil.tissue import Contour, Mode, Tissue
from manyhead_core.errors import ConfigError, DataError

Coordinates = npt.NDArray[np.int64]
ContourTest = Literal["four_pt", "four_pt_hard", "center", "basic"]

# A level that is a little coarser than asked for is the one that is meant: 40x is 0.2528 µm per
# pixel on one scanner and 0.2462 on another.
TOLERANCE = 1.03


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Size and place of the patches.

    Args:
        patch_size: Side of a patch in pixels, as an encoder will see it.
        step_size: Distance of two patches in the same pixels; None is `patch_size`.
        target_mpp: µm per pixel of the patches, 0.5 for 20x; None takes the pixels of
            `patch_level`.
        patch_level: Level whose pixels are meant, without `target_mpp`.
        contour_fn: When a patch is in the tissue: `four_pt`, one of four points around its centre
            is; `four_pt_hard`, all are; `center`; `basic`, its corner.
        use_padding: Whether patches may reach over the edge of the slide.
    """

    patch_size: int = 256
    step_size: int | None = None
    target_mpp: float | None = None
    patch_level: int = 0
    contour_fn: ContourTest = "four_pt"
    use_padding: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.patch_size < 1 or (self.step_size is not None and self.step_size < 1):
            raise ConfigError(
                f"patch_size, step_size: must be at least 1 pixel, got {self.patch_size} and "
                f"{self.step_size}"
            )
        if self.target_mpp is not None and self.target_mpp <= 0:
            raise ConfigError(f"target_mpp: must be positive, got {self.target_mpp}")


@dataclass(frozen=True)
class Patches:
    """Where the patches of a slide are and how they are read.

    Args:
        coords: Top-left corners, x and y, in level-0 pixels, `(patches, 2)`.
        size_level0: Side of a patch in level-0 pixels.
        level: Level that patches are read from.
        read_size: Side in pixels of that level.
        patch_size: Side in pixels after resizing.
        mpp: µm per level-0 pixel, or None.
    """

    coords: Coordinates
    size_level0: int
    level: int
    read_size: int
    patch_size: int
    mpp: float | None

    @property
    def magnification(self) -> int | None:
        """Usual name of the resolution of the patches, as 20."""
        if self.mpp is None:
            return None
        return magnification_of(self.mpp * self.size_level0 / self.patch_size)


def patch_coordinates(
    slide: Slide, tissue: Tissue, options: GridOptions, mode: Mode = "default"
) -> Patches:
    """The patches of the tissue, piece by piece, column by column.

    Args:
        slide: The slide.
        tissue: As from `segment`.
        options: Size and place.
        mode: `reference` drops a piece of tissue that holds a single patch. By default, tissue
            that is smaller than a patch everywhere gets a patch in the middle of each piece, where
            the grid would leave the slide empty; `four_pt_hard` asks for more and gets none.

    Raises:
        DataError: A resolution is asked for and the slide does not tell its own.
    """
    patches = reading(slide, options)
    step = patches.size_level0
    if options.step_size is not None:
        step = max(1, round(options.step_size * patches.size_level0 / options.patch_size))
    parts = [
        _of_piece(contour, holes, slide.dimensions, patches.size_level0, step, options)
        for contour, holes in zip(tissue.contours, tissue.holes, strict=True)
    ]
    if mode == "reference":
        parts = [part for part in parts if len(part) > 1]
    coords = np.concatenate(parts) if parts else np.empty((0, 2), np.int64)
    if mode == "default" and not len(coords) and options.contour_fn != "four_pt_hard":
        coords = _in_the_middle(tissue, slide.dimensions, patches.size_level0, options)
    return Patches(
        coords, patches.size_level0, patches.level, patches.read_size, patches.patch_size, slide.mpp
    )


def reading(slide: Slide, options: GridOptions) -> Patches:
    """How patches of these options are read from a slide; without coordinates."""
    none = np.empty((0, 2), np.int64)
    size = options.patch_size
    if options.target_mpp is None:
        if not 0 <= options.patch_level < len(slide.level_dimensions):
            raise ConfigError(
                f"patch_level: {slide.id} has the levels 0 to {len(slide.level_dimensions) - 1}, "
                f"not {options.patch_level}"
            )
        # Truncated, as the reference does: a factor of 2.0005 steps by 2.
        factor = int(slide.downsamples[options.patch_level][0])
        return Patches(none, size * factor, options.patch_level, size, size, slide.mpp)
    if slide.mpp is None:
        raise DataError(
            f"{slide.id}: the file does not tell its µm per pixel; pass it with --mpp or a column "
            "mpp in the slide list"
        )
    factor0 = options.target_mpp / slide.mpp
    level = slide.best_level(factor0 * TOLERANCE)
    size_level0 = max(1, round(size * factor0))
    read_size = max(1, round(size_level0 / slide.downsamples[level][0]))
    return Patches(none, size_level0, level, read_size, size, slide.mpp)


def _of_piece(
    contour: Contour,
    holes: list[Contour],
    dimensions: tuple[int, int],
    size: int,
    step: int,
    options: GridOptions,
) -> Coordinates:
    low, high = contour.min(0).astype(int), contour.max(0).astype(int) + 1
    ends = [
        high[axis] if options.use_padding else min(high[axis], dimensions[axis] - size + 1)
        for axis in (0, 1)
    ]
    columns, rows = (np.arange(low[axis], ends[axis], step) for axis in (0, 1))
    # x is the outer loop.
    grid = np.stack(np.meshgrid(columns, rows, indexing="ij"), -1).reshape(-1, 2).astype(np.int64)
    kept = grid[_in_tissue(contour, grid, size, options.contour_fn)]
    if not len(kept):
        return kept
    # Doubled, because the centre of an odd patch lies between pixels.
    centres = 2 * kept + size
    in_hole = np.zeros(len(kept), bool)
    for hole in holes:
        in_hole |= locate(2 * hole, centres) > 0
    return kept[~in_hole]


def _in_the_middle(
    tissue: Tissue, dimensions: tuple[int, int], size: int, options: GridOptions
) -> Coordinates:
    """One patch on each piece of tissue that is smaller than a patch."""
    room = np.array(dimensions) - size
    if not options.use_padding and room.min() < 0:
        return np.empty((0, 2), np.int64)
    boxes = [(contour.min(0), contour.max(0)) for contour in tissue.contours]
    corners = [(low + high - size) // 2 for low, high in boxes if (high - low).max() < size]
    found = np.array(corners, np.int64).reshape(-1, 2)
    return np.asarray(np.clip(found, 0, np.maximum(room, 0)), np.int64)


def _in_tissue(
    contour: Contour, corners: Coordinates, size: int, test: ContourTest
) -> npt.NDArray[np.bool_]:
    centre, shift = corners + size // 2, int(size // 2 * 0.5)
    if test == "basic":
        return locate(contour, corners) >= 0
    if test == "center" or (test == "four_pt" and shift == 0):
        return locate(contour, centre) >= 0
    if test not in ("four_pt", "four_pt_hard"):
        raise ConfigError(
            f"contour_fn: {test!r} is unknown; use four_pt, four_pt_hard, center or basic"
        )
    moves = [(a * shift, b * shift) for a in (-1, 1) for b in (-1, 1)]
    count = sum((locate(contour, centre + move) >= 0).astype(np.int64) for move in moves)
    return np.asarray(count >= (1 if test == "four_pt" else len(moves)))
