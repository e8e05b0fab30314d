"""The pictures of one slide: maps over it, galleries of patches, curves of the attention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from manyhead.acmil.annotations import Outline
from manyhead.acmil.explain import overlay
from manyhead.acmil.explain.concentration import figure_of
from manyhead.acmil.explain.gallery import draw_gallery
from manyhead.acmil.explain.heatmap import HeatmapOptions, Point
from manyhead.acmil.explain.overlay import Scale, Shading, shade, with_bar
from manyhead.acmil.explain.scores import Floats, SlideScores
from manyhead.acmil.slides import Slide
from manyhead.acmil.slides.opening import Reader
from manyhead.acmil.slides.slide import Pixels
from manyhead.acmil.thumbnail import write_image
from manyhead_core.evaluate.files import replace as replace_file

Ints = npt.NDArray[np.int64]
QUALITY = 92
CURVE = "concentration.png"


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What is made for each slide.

    Args:
        maps: Names of the maps to draw; empty draws all but single heads.
        region: Corners of a region to draw at full detail, or None.
        scores: `attention`, or `percentile` among the patches of the slide.
        colormap: Colours of attention.
        alpha: Weight of the colours over the slide.
        saturation: Attention in multiples of the average at which the colours end.
        level: Level that is drawn on; -1 takes a picture of handy size.
        patch_size_level0: Side of a patch in level-0 pixels, where the features do not tell.
        mpp: µm per level-0 pixel, where the slide does not tell.
        annotations: Folder of outlines named as the slides, or None.
        top: Patches in a gallery.
        geojson: Whether objects for QuPath are written.
        reader: What reads the slides.
    """

    maps: tuple[str, ...] = ()
    region: tuple[Point, Point] | None = None
    scores: Shading = "attention"
    colormap: str = "jet"
    alpha: float = 0.4
    saturation: float = 1.0
    level: int = -1
    patch_size_level0: int | None = None
    mpp: float | None = None
    annotations: Path | None = None
    top: int = 16
    geojson: bool = True
    reader: Reader = "auto"


@dataclass(frozen=True)
class Place:
    """Where the patches of a slide are, and what they are drawn on.

    Args:
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        size: Side of a patch in level-0 pixels.
        slide: The slide, or None.
        overview: The slide in small, or white paper.
        outlines: Annotations.
    """

    coords: Ints
    size: int
    slide: Slide | None
    overview: overlay.Overview
    outlines: Sequence[Outline] = ()


def draw_maps(
    folder: Path, place: Place, scores: SlideScores, options: ExplainOptions
) -> dict[str, str]:
    """Write the maps, and the region if there is one.

    Args:
        folder: Folder of the slide.
        place: Where the patches are.
        scores: Of the patches.
        options: Which maps, and how they look.

    Returns:
        Names of the files by name of the map.
    """
    found = {}
    for name, file in file_names(options.maps or tuple(scores.maps())).items():
        values, kind = scores.map(name)
        shading = {"colormap": options.colormap, "saturation": options.saturation}
        unit, scale = shade(values, kind, options.scores, **shading)  # type: ignore[arg-type]
        found[name] = f"map-{file}.jpg"
        title = name.replace(":", " ")
        picture = _drawn(place, unit, scale, options)
        write_image(folder / found[name], with_bar(picture, scale, title), QUALITY)
        if options.region is not None:
            region = f"{name}, region"
            found[region] = f"region-{file}.jpg"
            picture = _drawn(place, unit, scale, options, options.region)
            write_image(folder / found[region], with_bar(picture, scale, title), QUALITY)
    return found


def _drawn(
    place: Place,
    unit: Floats,
    scale: Scale,
    options: ExplainOptions,
    region: tuple[Point, Point] | None = None,
) -> Pixels:
    on_white = place.slide is None
    look = HeatmapOptions(
        level=-1 if on_white else options.level,
        patch_size_level0=place.size,
        region=region,
        colormap=scale.colormap,
        # Nothing lies under the colours then, and they are those of the bar.
        alpha=1.0 if on_white else options.alpha,
        white=on_white,
    )
    outlines = [np.asarray(outline.polygon) for outline in place.outlines]
    if region is not None:
        near = place.overview if place.slide is None else place.slide
        return overlay.draw_region(near, place.coords, unit, look, outlines)
    on: Slide = place.overview
    if place.slide is not None and options.level >= 0:
        on = place.slide
    return overlay.draw_whole(on, place.coords, unit, look, outlines)


def draw_galleries(
    folder: Path, place: Place, scores: SlideScores, options: ExplainOptions
) -> dict[str, str]:
    """Write the galleries; none without the slide. Arguments and result as `draw_maps`."""
    if place.slide is None or not options.top:
        return {}
    found = {}
    for name, file in file_names(options.maps or tuple(scores.maps())).items():
        values, kind = scores.map(name)
        picture = draw_gallery(place.slide, place.coords, values, place.size, options.top, kind)
        found[f"gallery {name}"] = f"gallery-{file}.jpg"
        write_image(folder / f"gallery-{file}.jpg", picture, QUALITY)
    return found


def draw_curve(folder: Path, scores: SlideScores) -> dict[str, str]:
    """Write the curves of the cumulative attention."""
    figure = figure_of(attention_maps(scores))
    replace_file(
        folder / CURVE,
        lambda at: figure.savefig(at, format="png", dpi=160, facecolor="white"),
    )
    return {"curve": CURVE}


def attention_maps(scores: SlideScores) -> dict[str, Floats]:
    """Attention by name, each `(patches,)`: the mean, and the branches."""
    names = [name for name in scores.maps() if not name.startswith("class:")]
    return {name.replace(":", " "): scores.map(name)[0] for name in names}


def file_names(maps: Sequence[str]) -> Mapping[str, str]:
    """Names of files for names of maps; a class may be called anything."""
    found: dict[str, str] = {}
    for name in maps:
        plain = re.sub(r"[^\w.+-]+", "-", name.replace(":", "-")).strip("-.") or "map"
        taken = {other.lower() for other in found.values()}
        number = 2
        unique = plain
        while unique.lower() in taken:
            unique, number = f"{plain}-{number}", number + 1
        found[name] = unique
    return found
