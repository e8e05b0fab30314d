"""Where the tissue of a slide is: contours with holes, by the saturation of its colours.

The recipe is CLAM's (Lu et al. 2021, arXiv:2004.09666), step by step; areas are counted in units of
512 x 512 level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead_core.errors import ConfigError, DataError

Contour = npt.NDArray[np.int32]
Mode = Literal["default", "reference"]

MOST_PIXELS = 10**8
UNIT = 512**2
# By default a piece of tissue counts from this share of the largest piece, if that is less than
# the preset asks for (26 million pixels, the usual preset, is more than a biopsy has), and the
# largest from this share of the slide: less is dust.
SHARE_OF_LARGEST, SHARE_OF_SLIDE = 0.05, 0.0005


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """How tissue is told from glass.

    Args:
        seg_level: Level that is segmented; -1 is the one for a downsample of 64.
        sthresh: Saturation, 0 to 255, above which a pixel is tissue.
        mthresh: Side of the median filter in pixels, odd.
        close: Side of the square that closes gaps, in pixels; 0 closes none.
        use_otsu: Find the threshold by Otsu's method instead of `sthresh`.
        a_t: Smallest area of a piece of tissue without its holes, in units.
        a_h: Smallest area of a hole, in units.
        max_n_holes: Of a piece's holes only so many, the largest, are looked at.
    """

    seg_level: int = -1
    sthresh: int = 8
    mthresh: int = 7
    close: int = 4
    use_otsu: bool = False
    a_t: float = 100.0
    a_h: float = 16.0
    max_n_holes: int = 8

    def __post_init__(self) -> None:
        """Check what OpenCV would refuse with a riddle."""
        if self.mthresh < 1 or self.mthresh % 2 == 0:
            raise ConfigError(f"mthresh: needs an odd number of pixels, got {self.mthresh}")
        if not 0 <= self.sthresh <= 255:
            raise ConfigError(f"sthresh: must be between 0 and 255, got {self.sthresh}")
        if min(self.close, self.a_t, self.a_h, self.max_n_holes) < 0:
            raise ConfigError("close, a_t, a_h, max_n_holes: must be 0 or more")


PRESETS = {
    "default": SegmentationOptions(),
    "tcga": SegmentationOptions(a_t=16, a_h=4),
    "bwh_biopsy": SegmentationOptions(sthresh=15, mthresh=11, close=2, a_t=1, a_h=1, max_n_holes=2),
    "bwh_resection": SegmentationOptions(sthresh=15, mthresh=11),
}


@dataclass(frozen=True)
class Tissue:
    """Tissue of a slide, in level-0 pixels.

    Args:
        contours: Outer borders, x and y, each `(corners, 2)`.
        holes: Borders of the holes of each contour.
        level: Level that was segmented.
    """

    contours: list[Contour]
    holes: list[list[Contour]]
    level: int

    @property
    def area(self) -> float:
        """Tissue without its holes in level-0 pixels."""
        outer = sum(cv2.contourArea(contour) for contour in self.contours)
        return float(outer - sum(cv2.contourArea(hole) for holes in self.holes for hole in holes))

    def only(self, numbers: Sequence[int]) -> Tissue:
        """Some of the pieces of tissue, by number."""
        return Tissue(
            [self.contours[n] for n in numbers], [self.holes[n] for n in numbers], self.level
        )


def segment(
    slide: Slide, options: SegmentationOptions | None = None, mode: Mode = "default"
) -> Tissue:
    """Find the tissue of a slide.

    Args:
        slide: The slide.
        options: How; None is the preset `default`.
        mode: `reference` takes the smallest areas as they stand, so that a small slide may have
            no tissue at all, and reads one level only; `default` lowers them to a share of the
            largest piece, and takes another level when one is damaged or too large.

    Raises:
        DataError: The level is too large, or cannot be read.
    """
    options = options or PRESETS["default"]
    if mode == "reference":
        level = tissue_level(slide, options.seg_level)
        mask = tissue_mask(median_saturation(slide, level, options.mthresh), options)
        return contours_of(mask, slide.downsamples[level], level, options)
    pixels, level = readable(slide, options.seg_level)
    mask = tissue_mask(saturation_of(pixels, options.mthresh), options)
    width, height = slide.dimensions
    downsample = (width / pixels.shape[1], height / pixels.shape[0])
    return contours_of(mask, downsample, level, relaxed(options, mask, downsample))


def readable(slide: Slide, level: int = -1) -> tuple[Pixels, int]:
    """Pixels to segment, `(height, width, 3)`, and the level that they are of.

    A level that is damaged is replaced by another, and one that is too large is read in strips and
    made smaller: a slide without a pyramid has no other.

    Raises:
        DataError: No level can be read.
    """
    _check_level(slide, level)
    levels = slide.levels_for(64)
    if level >= 0:
        levels = [level, *(other for other in levels if other != level)]
    errors = []
    for candidate in levels:
        width, height = slide.level_dimensions[candidate]
        try:
            if width * height <= MOST_PIXELS:
                return slide.read((0, 0), candidate, (width, height)), candidate
            whole_width, whole_height = slide.dimensions
            size = (max(1, whole_width // 64), max(1, whole_height // 64))
            return np.ascontiguousarray(slide.shrunk(candidate, size)[..., :3]), candidate
        except DataError as err:
            errors.append(err)
    raise errors[0]


def relaxed(
    options: SegmentationOptions, mask: Pixels, downsample: tuple[float, float]
) -> SegmentationOptions:
    """Options whose smallest areas fit the tissue that a mask shows."""
    outer, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max((cv2.contourArea(contour) for contour in outer), default=0.0)
    least = max(SHARE_OF_LARGEST * largest, SHARE_OF_SLIDE * mask.size)
    units = least * downsample[0] * downsample[1] / UNIT
    if units >= options.a_t:
        return options
    return replace(options, a_t=units, a_h=options.a_h * units / options.a_t)


def tissue_level(slide: Slide, level: int = -1) -> int:
    """The level to segment.

    Raises:
        DataError: It has too many pixels.
    """
    if level < 0:
        level = slide.best_level(64)
    _check_level(slide, level)
    width, height = slide.level_dimensions[level]
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{slide.id}: level {level} has {width} x {height} pixels, too many to segment; "
            "choose a coarser seg_level"
        )
    return level


def _check_level(slide: Slide, level: int) -> None:
    count = len(slide.level_dimensions)
    if level >= count:
        raise ConfigError(f"seg_level: {slide.id} has the levels 0 to {count - 1}, not {level}")


def median_saturation(slide: Slide, level: int, mthresh: int) -> Pixels:
    """Saturation of a level after the median filter, `(height, width)`."""
    return saturation_of(slide.read((0, 0), level, slide.level_dimensions[level]), mthresh)


def saturation_of(pixels: Pixels, mthresh: int) -> Pixels:
    """Saturation of pixels after the median filter, `(height, width)`."""
    saturation = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1]
    return np.asarray(cv2.medianBlur(saturation, mthresh), np.uint8)


def tissue_mask(saturation: Pixels, options: SegmentationOptions) -> Pixels:
    """255 where there is tissue, `(height, width)`."""
    method = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if options.use_otsu else 0)
    threshold = 0 if options.use_otsu else options.sthresh
    _, mask = cv2.threshold(saturation, threshold, 255, method)
    if options.close > 0:
        square = np.ones((options.close, options.close), np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, square)
    return np.asarray(mask, np.uint8)


def contours_of(
    mask: Pixels,
    downsample: tuple[float, float],
    level: int,
    options: SegmentationOptions,
) -> Tissue:
    """Contours that are large enough, with the holes that count, scaled to level 0."""
    found, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return Tissue([], [], level)
    parents = hierarchy[0][:, 3]
    unit = int(UNIT / (downsample[0] * downsample[1]))
    contours, holes = [], []
    for number in np.flatnonzero(parents == -1).tolist():
        inner = [found[child] for child in np.flatnonzero(parents == number).tolist()]
        area = cv2.contourArea(found[number]) - sum(cv2.contourArea(hole) for hole in inner)
        if area == 0 or area <= options.a_t * unit:
            continue
        inner = sorted(inner, key=cv2.contourArea, reverse=True)
        largest = inner[: options.max_n_holes]
        kept = [hole for hole in largest if cv2.contourArea(hole) > options.a_h * unit]
        contours.append(_scaled(found[number], downsample))
        holes.append([_scaled(hole, downsample) for hole in kept])
    return Tissue(contours, holes, level)


def _scaled(contour: npt.NDArray[np.int32], downsample: tuple[float, float]) -> Contour:
    scaled: Contour = (contour.reshape(-1, 2) * downsample).astype(np.int32)
    return scaled
