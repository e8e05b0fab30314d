"""Maps over pictures: the whole slide in small, a region at full detail, and the colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from manyhead.acmil.explain.heatmap import HeatmapOptions, Point, draw_heatmap
from manyhead.acmil.explain.scores import Floats, Kind, percentiles
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead.acmil.thumbnail import white_outside
from manyhead_core.errors import ConfigError, DataError

Shading = Literal["attention", "percentile"]
LONGEST = 2048
# More pixels than this in one picture are a mistake in --level.
MOST_PIXELS = 10**8
SIGNED = "bwr"
# Evidence beyond this percentile of its size gets the last colour: one patch would else hide all.
CLIPPED = 95.0
RESEARCH_ONLY = "research use only, not a medical device"


@dataclass(frozen=True)
class Scale:
    """What the colours of a map mean.

    Args:
        label: What is drawn, in words.
        low: Value of the first colour.
        high: Value of the last colour.
        colormap: Name of a matplotlib colour map.
        open_ended: Whether higher values have the last colour too.
        both_ends: Whether lower values have the first colour too.
    """

    label: str
    low: float
    high: float
    colormap: str
    open_ended: bool = False
    both_ends: bool = False


def shade(
    values: npt.NDArray[np.floating[Any]],
    kind: Kind,
    shading: Shading = "attention",
    *,
    colormap: str = "jet",
    saturation: float = 1.0,
) -> tuple[Floats, Scale]:
    """Values between 0 and 1, the ends of the colour map, and what they mean.

    Args:
        values: Of a map, `(patches,)`.
        kind: Attention that sums to one, or signed evidence.
        shading: `attention` draws the value, `percentile` its rank among the slide's patches.
        colormap: Colours of attention; evidence has blue and red.
        saturation: Attention in multiples of the average at which the colours end.
    """
    colours = colormap if kind == "attention" else SIGNED
    if shading == "percentile":
        what = "attention" if kind == "attention" else "evidence for the class"
        label = f"percentile of the {what} in the slide"
        return percentiles(values), Scale(label, 0, 100, colours)
    times = np.asarray(values, np.float64) * len(values)
    if kind == "attention":
        label = "attention, 1 = average of the slide"
        return np.clip(times / saturation, 0, 1), Scale(label, 0, saturation, colours, True)
    limit = float(np.percentile(np.abs(times), CLIPPED)) or 1.0
    label = "evidence in logits, x number of patches"
    unit = np.clip(0.5 + 0.5 * times / limit, 0, 1)
    return unit, Scale(label, -limit, limit, colours, True, True)


class Overview(Slide):
    """A slide whose second level is a small picture in memory.

    A slide may have no level of a handy size: the picture is made once and drawn on many times.

    Args:
        picture: `(height, width, 3)`.
        dimensions: Width and height of level 0.
        path: Of the slide.
        mpp: µm per level-0 pixel, or None.
    """

    LEVEL = 1

    def __init__(
        self,
        picture: Pixels,
        dimensions: Point,
        path: Path = Path("blank"),
        mpp: float | None = None,
    ) -> None:
        self.picture = picture
        super().__init__(path, [dimensions, (picture.shape[1], picture.shape[0])], mpp)

    def read_rgba(self, level0_xy: Point, level: int, size: Point) -> Pixels:  # noqa: ARG002
        """As `Slide.read_rgba`, of the picture."""
        x, y = (int(v / d) for v, d in zip(level0_xy, self.downsamples[self.LEVEL], strict=True))
        part = self.picture[y : y + size[1], x : x + size[0]]
        return np.dstack([part, np.full(part.shape[:2], 255, np.uint8)])

    def close(self) -> None:
        """Nothing is open."""


def overview_of(slide: Slide, longest: int = LONGEST) -> Overview:
    """The slide in small, white where the scanner has recorded nothing."""
    return Overview(white_outside(slide, longest), slide.dimensions, slide.path, slide.mpp)


def blank(
    coords: npt.NDArray[np.integer[Any]], size_level0: int, longest: int = LONGEST
) -> Overview:
    """White paper that holds the patches, for when there is no slide.

    Args:
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        size_level0: Side of a patch in level-0 pixels.
        longest: Longer side of the picture in pixels, at most.
    """
    width, height = (int(v) for v in coords.max(0) + size_level0)
    factor = max(1.0, max(width, height) / longest)
    shape = (max(1, round(height / factor)), max(1, round(width / factor)), 3)
    return Overview(np.full(shape, 255, np.uint8), (width, height))


def draw_whole(
    slide: Slide,
    coords: npt.NDArray[np.integer[Any]],
    unit: Floats,
    options: HeatmapOptions,
    outlines: Sequence[npt.NDArray[Any]] = (),
) -> Pixels:
    """A map over the whole slide, `(height, width, 3)`.

    Args:
        slide: An overview, which is drawn on unless `options.level` names another level.
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        unit: Values between 0 and 1, `(patches,)`.
        options: How it looks.
        outlines: Annotations to draw over it.
    """
    if isinstance(slide, Overview):
        options = replace(options, level=Overview.LEVEL)
    width, height = slide.level_dimensions[_level(slide, options.level)]
    _check_size(width, height)
    return draw_heatmap(slide, coords, unit, options, outlines=outlines)


def draw_region(
    slide: Slide,
    coords: npt.NDArray[np.integer[Any]],
    unit: Floats,
    options: HeatmapOptions,
    outlines: Sequence[npt.NDArray[Any]] = (),
) -> Pixels:
    """A map over `options.region` with the patches that reach into it from outside as well.

    Args:
        slide: The slide.
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        unit: Values between 0 and 1, `(patches,)`.
        options: How it looks; a level of -1 is the one that gives a picture of handy size.
        outlines: Annotations to draw over it.
    """
    assert options.region is not None  # noqa: S101
    (left, top), corner = options.region
    right, bottom = (min(at, end) for at, end in zip(corner, slide.dimensions, strict=True))
    if right <= left or bottom <= top:
        raise DataError(
            f"region: ({left}, {top}) is outside of {slide.id}, which has {slide.dimensions[0]} x "
            f"{slide.dimensions[1]} pixels"
        )
    level = _level(slide, options.level)
    if options.level < 0:
        level = slide.best_level(max(1.0, max(right - left, bottom - top) / LONGEST))
    factor = np.asarray(slide.downsamples[level])
    # Only patches whose corner lies in the region are drawn: so draw more, and cut.
    margin = np.ceil(options.patch_size_level0 / factor).astype(int)
    low = np.floor((left, top) / factor).astype(int) - margin
    x, y = np.floor(low * factor).astype(int).tolist()
    size = np.maximum(1, np.round((right - left, bottom - top) / factor)).astype(int)
    _check_size(*size.tolist())
    wide = replace(options, level=level, region=((x, y), (right + 1, bottom + 1)))
    picture = draw_heatmap(slide, coords, unit, wide, outlines=outlines)
    return np.ascontiguousarray(picture[margin[1] :, margin[0] :][: size[1], : size[0]])


def parse_region(text: str) -> tuple[Point, Point]:
    """A region from `x0,y0,x1,y1` in level-0 pixels.

    Raises:
        ConfigError: It is none.
    """
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError as err:
        raise ConfigError(f"region: {text!r} is not x0,y0,x1,y1 in level-0 pixels") from err
    if left < 0 or top < 0 or right <= left or bottom <= top:
        raise ConfigError(f"region: {text} is empty; x0,y0 is its top-left, x1,y1 its bottom-right")
    return (left, top), (right, bottom)


def with_bar(picture: Pixels, scale: Scale, title: str = "") -> Pixels:
    """The picture with its colour bar, title and the line on its use below; no pixel is lost.

    Args:
        picture: `(height, width, 3)`.
        scale: What the colours mean.
        title: What is shown.
    """
    width = max(picture.shape[1], 480)
    # Text grows with the picture, so that it is read at any zoom.
    dpi = float(np.clip(width / 8, 72, 200))
    figure = Figure(figsize=(width / dpi, 0.95), dpi=dpi, facecolor="white")
    panel = figure.add_axes((0.06, 0.52, 0.88, 0.16))
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.colormap)
    extend = "both" if scale.both_ends else "max" if scale.open_ended else "neither"
    bar = figure.colorbar(colours, cax=panel, orientation="horizontal", extend=extend)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_linewidth(0.4)
    panel.set_title(f"{title}: {scale.label}" if title else scale.label, fontsize=8, pad=4)
    figure.text(0.5, 0.05, RESEARCH_ONLY, ha="center", fontsize=6.5, color="#5b6774")
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    strip = np.asarray(canvas.buffer_rgba())[..., :3]
    wide = np.full((picture.shape[0], strip.shape[1], 3), 255, np.uint8)
    wide[:, : picture.shape[1]] = picture[:, : wide.shape[1]]
    return np.concatenate([wide, strip])


def shrunk(picture: Pixels, longest: int) -> Pixels:
    """The picture with no side longer than `longest` pixels."""
    factor = max(picture.shape[:2]) / longest
    if factor <= 1:
        return picture
    size = [max(1, round(side / factor)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _level(slide: Slide, level: int) -> int:
    if level >= len(slide.level_dimensions):
        raise ConfigError(
            f"level: {slide.id} has no level {level}; it has {len(slide.level_dimensions)}, from 0"
        )
    return max(level, 0)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        factor = math.ceil(math.sqrt(width * height / MOST_PIXELS))
        raise ConfigError(
            f"level: a picture of {width} x {height} pixels is too large; use a level {factor} "
            "times as coarse, or a smaller --region"
        )
