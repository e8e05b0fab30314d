"""Scores of patches drawn over their slide, step by step as the authors' code draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from scipy.stats import rankdata

from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead.acmil.tissue import Tissue
from manyhead_core.errors import ConfigError

Floats = npt.NDArray[np.float64]
Point = tuple[int, int]
OUTLINE_COLOUR, OUTLINE_WIDTH = (0, 71, 171), 4


@dataclass(frozen=True, kw_only=True)
class HeatmapOptions:
    """How a heat map looks.

    Args:
        level: Level of the slide that is drawn on; -1 is the one for a downsample of 32.
        patch_size_level0: Side of a patch in level-0 pixels.
        region: Top-left and bottom-right corner in level-0 pixels; None is the whole slide.
        percentiles: Draw the rank of a score among the drawn ones instead of the score.
        colormap: Name of a matplotlib colour map; scores of 0 and 1 are its ends.
        alpha: Weight of the colour over the slide.
        threshold: Scores below stay uncoloured.
        blur: Smooth the scores over neighbouring patches.
        overlap: Share by which patches overlap, for the size of the blur.
        white: Draw on white instead of on the slide.
    """

    level: int = -1
    patch_size_level0: int = 512
    region: tuple[Point, Point] | None = None
    percentiles: bool = False
    colormap: str = "jet"
    alpha: float = 0.4
    threshold: float = 0.0
    blur: bool = False
    overlap: float = 0.0
    white: bool = False

    def __post_init__(self) -> None:
        """Check what would fail late."""
        if self.colormap not in colormaps:
            raise ConfigError(f"colormap: matplotlib has no {self.colormap!r}; jet is one")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha: must be in [0, 1], got {self.alpha}")


def draw_heatmap(
    slide: Slide,
    coords: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    options: HeatmapOptions,
    *,
    outlines: Sequence[npt.NDArray[Any]] = (),
    tissue: Tissue | None = None,
) -> Pixels:
    """A picture of the slide with the scores over it, `(height, width, 3)`.

    Args:
        slide: The slide.
        coords: Top-left corners of the patches in level-0 pixels, `(patches, 2)`.
        scores: One per patch; attention times the number of patches is 1 on average.
        options: How it looks.
        outlines: Annotations to draw over it, each `(corners, 2)` in level-0 pixels.
        tissue: Colour nothing outside of it.
    """
    level = slide.best_level(32) if options.level < 0 else options.level
    scale = 1 / np.asarray(slide.downsamples[level])
    corner, size = _canvas_place(slide, level, scale, options.region)
    corners = np.asarray(coords, np.float64)
    values = np.asarray(scores, np.float64).reshape(-1)
    if options.region is not None:
        low, high = (np.asarray(point) for point in options.region)
        kept = ((corners >= low) & (corners <= high)).all(1)
        corners, values = corners[kept] - low, values[kept]
    if options.percentiles and len(values):
        values = rankdata(values, "average") / len(values)
    box = np.ceil(options.patch_size_level0 * scale).astype(int)
    places = np.ceil(corners * scale).astype(int)
    pixels = _overlaid(places, values, box, size, options)
    base = np.full((size[1], size[0], 3), 255, np.uint8)
    if not options.white:
        base = slide.read(corner, level, size)
    coloured = _coloured(base, places, values, box, pixels, options)
    if tissue is not None:
        inside = _inside(tissue, corner, scale, size)
        coloured[~inside] = base[~inside]
    blended = cv2.addWeighted(coloured, options.alpha, base, 1 - options.alpha, 0)
    drawn = [((np.asarray(o) - corner) * scale).astype(np.int32) for o in outlines]
    picture: Pixels = np.asarray(
        cv2.drawContours(blended, drawn, -1, OUTLINE_COLOUR, OUTLINE_WIDTH), np.uint8
    )
    return picture


def _canvas_place(
    slide: Slide, level: int, scale: Floats, region: tuple[Point, Point] | None
) -> tuple[Point, Point]:
    if region is None:
        return (0, 0), slide.level_dimensions[level]
    low, high = ((np.asarray(point) * scale).astype(int) for point in region)
    width, height = (high - low).tolist()
    if width < 1 or height < 1:
        raise ConfigError(f"region: {region} is empty at level {level}; name two corners")
    return region[0], (width, height)


def _overlaid(
    places: npt.NDArray[np.int64],
    scores: Floats,
    box: npt.NDArray[np.int64],
    size: Point,
    options: HeatmapOptions,
) -> Floats:
    """Mean score of the patches over each pixel, `(height, width)`."""
    total = np.zeros((size[1], size[0]))
    count = np.zeros((size[1], size[0]), np.int64)
    wide, high = box.tolist()
    for (x, y), score in zip(places.tolist(), scores.tolist(), strict=True):
        total[y : y + high, x : x + wide] += score
        count[y : y + high, x : x + wide] += 1
    covered = count > 0
    total[covered] /= count[covered]
    if options.blur:
        widths = [2 * int(side * (1 - options.overlap)) + 1 for side in box]
        total = np.asarray(cv2.GaussianBlur(total, widths, 0))
    return total


def _coloured(
    base: Pixels,
    places: npt.NDArray[np.int64],
    scores: Floats,
    box: npt.NDArray[np.int64],
    pixels: Floats,
    options: HeatmapOptions,
) -> Pixels:
    found = base.copy()
    chosen = np.zeros(pixels.shape, bool)
    wide, high = box.tolist()
    for x, y in places[scores >= options.threshold].tolist():
        chosen[y : y + high, x : x + wide] = True
    # Every pixel once: a hundred thousand patches overlap at this scale. Truncated, not rounded,
    # as the reference does.
    found[chosen] = (colormaps[options.colormap](pixels[chosen])[:, :3] * 255).astype(np.uint8)
    return found


def _inside(tissue: Tissue, corner: Point, scale: Floats, size: Point) -> npt.NDArray[np.bool_]:
    mask = np.zeros((size[1], size[0]), np.uint8)
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        for border, value in [(contour, 1), *((hole, 0) for hole in holes)]:
            shifted = ((border - corner) * scale).astype(np.int32)
            cv2.drawContours(mask, [shifted], -1, value, cv2.FILLED)
    return mask.astype(bool)
