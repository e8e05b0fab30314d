"""A small picture of a slide with its tissue and its patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from manyhead.acmil.coordinates import Patches
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead.acmil.tissue import Tissue

TISSUE, HOLE, PATCH, ANNOTATION = (0, 160, 60), (30, 30, 30), (0, 90, 200), (200, 0, 120)
LONGEST = 2048
# Share of the colour of a patch in its place.
TINT = 0.15
# Patches smaller than this on the picture get no outline: it would hide them.
LEAST_OUTLINED = 6


def draw_thumbnail(
    slide: Slide,
    tissue: Tissue,
    patches: Patches | None = None,
    labels: npt.NDArray[np.bool_] | None = None,
    numbers: Sequence[int] = (),
    longest: int = LONGEST,
) -> Pixels:
    """The slide with its tissue in green, holes in dark grey and patches in blue.

    Args:
        slide: The slide.
        tissue: As from `segment`.
        patches: As from `patch_coordinates`.
        labels: Whether a patch lies in an annotation; such are pink.
        numbers: Written on the pieces of tissue; empty writes none.
        longest: Length of the longer side in pixels, at most.
    """
    picture = white_outside(slide, longest)
    scale = np.array(picture.shape[1::-1]) / slide.dimensions
    if patches is not None and len(patches.coords):
        _draw_patches(picture, patches, labels, scale)
    width = max(2, max(picture.shape) // 500)
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        _draw_border(picture, contour, scale, TISSUE, width)
        for hole in holes:
            _draw_border(picture, hole, scale, HOLE, width)
    for contour, number in zip(tissue.contours, numbers, strict=bool(numbers)):
        corner = np.rint(contour[contour[:, 1].argmin()] * scale).astype(int)
        place = (int(corner[0]), max(30, int(corner[1]) - 4))
        cv2.putText(picture, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 1.0, TISSUE, 2)
    return picture


def white_outside(slide: Slide, longest: int) -> Pixels:
    """The small picture, white where the scanner has recorded nothing."""
    picture = slide.thumbnail_rgba(longest)
    alpha = picture[..., 3:].astype(np.float32) / 255
    mixed = picture[..., :3] * alpha + 255 * (1 - alpha)
    return np.ascontiguousarray(np.rint(mixed).astype(np.uint8))


def write_image(path: Path, picture: Pixels, quality: int = 85) -> None:
    """Write a JPEG or PNG; the file appears when it is complete, and holds pixels only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    Image.fromarray(picture).save(partial, quality=quality, subsampling=0)
    partial.replace(path)


def _draw_patches(
    picture: Pixels,
    patches: Patches,
    labels: npt.NDArray[np.bool_] | None,
    scale: npt.NDArray[np.float64],
) -> None:
    low = np.rint(patches.coords * scale).astype(int)
    high = np.maximum(low + 1, np.rint((patches.coords + patches.size_level0) * scale).astype(int))
    marked = np.zeros(len(low), bool) if labels is None else labels
    tint = picture.copy()
    outlined = (high - low).min() >= LEAST_OUTLINED
    for corner, end, mark in zip(low.tolist(), high.tolist(), marked.tolist(), strict=True):
        colour = ANNOTATION if mark else PATCH
        cv2.rectangle(tint, corner, [end[0] - 1, end[1] - 1], colour, -1)
        if outlined:
            cv2.rectangle(picture, corner, [end[0] - 1, end[1] - 1], colour, 1)
    cv2.addWeighted(tint, TINT, picture, 1 - TINT, 0, dst=picture)


def _draw_border(
    picture: Pixels,
    border: npt.NDArray[np.int32],
    scale: npt.NDArray[np.float64],
    colour: tuple[int, int, int],
    width: int,
) -> None:
    points = np.rint(border * scale).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(picture, [points], True, colour, width)
