"""The patches with the highest attention or evidence, side by side."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from manyhead.acmil.explain.scores import Kind
from manyhead.acmil.slides.slide import Pixels, Slide

Ints = npt.NDArray[np.int64]
TILE, GAP, CAPTION, COLUMNS = 192, 10, 34, 4
INK, MUTED = (29, 39, 51), (91, 103, 116)


def top_patches(values: npt.NDArray[np.floating], count: int) -> Ints:
    """Numbers of the highest patches, highest first; equal ones in the order of the file.

    Args:
        values: One per patch.
        count: How many, at most.
    """
    return np.argsort(-np.asarray(values, np.float64), kind="stable")[:count]


def draw_gallery(
    slide: Slide,
    coords: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating],
    size_level0: int,
    count: int = 16,
    kind: Kind = "attention",
) -> Pixels:
    """Pictures of the patches with the highest values, with rank, value and place.

    Args:
        slide: The slide.
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        weights: Of a map, `(patches,)`; attention sums to one.
        size_level0: Side of a patch in level-0 pixels.
        count: How many, at most.
        kind: What the values are.
    """
    chosen = top_patches(weights, count)
    columns = max(1, min(COLUMNS, len(chosen)))
    rows = max(1, math.ceil(len(chosen) / columns))
    width, height = columns * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw, big, small = ImageDraw.Draw(canvas), _font(13), _font(11)
    for rank, number in enumerate(chosen.tolist()):
        x, y = (int(value) for value in coords[number])
        left = GAP + rank % columns * (TILE + GAP)
        top = GAP + rank // columns * (TILE + CAPTION + GAP)
        canvas.paste(Image.fromarray(read_tile(slide, (x, y), size_level0)), (left, top))
        value = _value(float(weights[number]), len(weights), kind)
        draw.text((left, top + TILE + 3), f"#{rank + 1}   {value}", fill=INK, font=big)
        draw.text((left, top + TILE + 19), f"x {x}  y {y}", fill=MUTED, font=small)
    return np.asarray(canvas)


def read_tile(
    slide: Slide, level0_xy: tuple[int, int], size_level0: int, side: int = TILE
) -> Pixels:
    """A patch as a picture of `side` pixels, read from the level that fits; white outside.

    Args:
        slide: The slide.
        level0_xy: Top-left corner in level-0 pixels.
        size_level0: Side of the patch in level-0 pixels.
        side: Side of the picture.
    """
    level = slide.best_level(max(1.0, size_level0 / side))
    size = [max(1, round(size_level0 / factor)) for factor in slide.downsamples[level]]
    found = slide.read_rgba(level0_xy, level, (size[0], size[1])).astype(np.float32)
    alpha = found[..., 3:] / 255
    mixed = np.rint(found[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    way = cv2.INTER_AREA if size[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(mixed, (side, side), interpolation=way), np.uint8)


def _value(value: float, patches: int, kind: Kind) -> str:
    if kind == "evidence":
        return f"{value:+.3g} logits"
    return f"{100 * value:.3g} %   {value * patches:.3g} x average"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
