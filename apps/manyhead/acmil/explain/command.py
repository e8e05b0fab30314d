"""The command `explain`: why a network said what it said, from features that are there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyhead.acmil.batch import REPORT, Batch, read_report
from manyhead.acmil.coordinates_file import slide_id_of
from manyhead.acmil.explain.embedding import Method, check_method
from manyhead.acmil.explain.heatmap import HeatmapOptions
from manyhead.acmil.explain.overlay import RESEARCH_ONLY, Shading, parse_region
from manyhead.acmil.explain.pictures import ExplainOptions
from manyhead.acmil.explain.report import write_report
from manyhead.acmil.explain.scores import Explainer
from manyhead.acmil.explain.work import ExplainSlide, Source
from manyhead.acmil.layouts import slides_in
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.slide_list import list_slides
from manyhead.acmil.slides.opening import Reader, plausible
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError, UserError
from manyhead_core.evaluate.files import read_json, replace_json
from manyhead_core.hub.loading import Loaded, load_weights
from manyhead_core.hub.network import check_device, weights_digest

OPTIONS, FORMAT = "options.json", 1


def explain(
    app: App,
    weights: str,
    features: Path,
    out: Path,
    /,
    slides: Path | None = None,
    slide: str | list[str] | None = None,
    map: str | list[str] | None = None,
    region: str | None = None,
    scores: Shading = "attention",
    colormap: str = "jet",
    alpha: float = 0.4,
    saturation: float = 1.0,
    level: int = -1,
    patch_size_level0: int | None = None,
    mpp: float | None = None,
    coords: Path | None = None,
    annotations: Path | None = None,
    top: int = 16,
    embedding: Method = "pca",
    geojson: bool = True,
    reader: Reader = "auto",
    device: str = "cpu",
    strict: bool = False,
) -> int:
    """Show where a network looked and what it took for evidence, from existing features.

    Writes for each slide maps over the slide, galleries of the patches with the highest attention,
    their scores as a table and as objects for QuPath; and one page over all slides, explain.html.
    Nothing is extracted again. A second start goes on where the first was stopped.

    Args:
        app: The app.
        weights: Weights folder, run folder or checkpoint file.
        features: Folder of feature files, or one file, in the layout of any known tool.
        out: Folder of the results.
        slides: Folder of slides, one slide, or a CSV file with slide_id, path and mpp; without it
            maps are drawn on white and there are no galleries.
        slide: Slides to explain, by id; default: all that have features.
        map: Maps to draw: mean, branch:K, head:K or class:NAME; default: all but single heads.
        region: x0,y0,x1,y1 in level-0 pixels, drawn at full detail as well.
        scores: Draw the `attention` itself, or its `percentile` among the patches of the slide.
        colormap: Colours of attention, a name of matplotlib.
        alpha: Weight of the colours over the slide, 0 to 1.
        saturation: Attention in multiples of the average at which the colours end.
        level: Level of the slide that is drawn on; default: a picture of handy size.
        patch_size_level0: Side of a patch in level-0 pixels, where the features do not tell.
        mpp: µm per level-0 pixel, where the slides do not tell.
        coords: Folder of coordinate files, for features without coordinates (.pt, .npy).
        annotations: Folder of ASAP .xml or .geojson files named as the slides, to draw over it.
        top: Patches in a gallery.
        embedding: How slides become points of a picture: `pca`, or `umap` if it is installed.
        geojson: Write the patches for QuPath.
        reader: `auto`, `openslide`, `tiffslide` or `image`.
        device: `cpu`, `cuda` or `cuda:1`.
        strict: Exit with code 2 when one slide failed.
    """
    check_method(embedding)
    options = ExplainOptions(
        maps=tuple(_listed(map)), region=None if region is None else parse_region(region),
        scores=scores, colormap=colormap, alpha=alpha, saturation=saturation, level=level,
        patch_size_level0=patch_size_level0, mpp=None if mpp is None else plausible(mpp),
        annotations=annotations, top=top, geojson=geojson, reader=reader,
    )  # fmt: skip
    check_options(options)
    sources = find_sources(features, slides, coords, _listed(slide))
    loaded = load_weights(app, weights)
    check_device(device)
    work = open_work(loaded, out, options, device)
    claim(out, loaded.net, options)
    code = Batch(work, out, "explaining slides", work.done).run(sources, strict=strict)
    # Slides of earlier starts stay on the page.
    names = dict.fromkeys([*sources, *read_report(out / REPORT)])
    write_report(out, list(names), embedding)
    console.say(RESEARCH_ONLY)
    return code


def check_options(options: ExplainOptions) -> None:
    """Refuse values that make no picture.

    Raises:
        ConfigError: One does not.
    """
    HeatmapOptions(colormap=options.colormap, alpha=options.alpha)
    for name, value, least in (
        ("saturation", options.saturation, 1e-3),
        ("top", options.top, 0),
        ("patch_size_level0", options.patch_size_level0, 1),
        ("level", options.level, -1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name}: must be at least {least}, got {value}")
    if options.annotations is not None and not options.annotations.is_dir():
        raise DataError(f"annotations: no folder {options.annotations}")


def find_sources(
    features: Path, slides: Path | None, coords: Path | None = None, chosen: Sequence[str] = ()
) -> dict[str, Source]:
    """What belongs to each slide, by its id.

    Args:
        features: Folder or file of features.
        slides: Slides, or None.
        coords: Folder or file of coordinates, or None.
        chosen: Slides that are meant; empty means all.

    Raises:
        DataError: Something is missing.
    """
    where = slides_in(features)
    unknown = [name for name in chosen if name not in where]
    if unknown:
        raise DataError(
            f"slide: {unknown[0]} has no features in {features}; it holds "
            f"{', '.join(sorted(where)[:3])}"
        )
    entries = {} if slides is None else list_slides(slides)
    places = {} if coords is None else _coordinates_in(coords)
    names = list(chosen or where)
    missing = [name for name in names if slides is not None and name not in entries]
    if missing and len(missing) == len(names):
        raise DataError(
            f"slides: {slides} holds none of the {len(names)} slides with features, such as "
            f"{names[0]}; it holds {', '.join(sorted(entries)[:3])}"
        )
    if missing:
        console.say(
            f"{len(missing)} slides are not in {slides}, first {missing[0]}: drawn on white"
        )
    return {name: Source(name, where[name], places.get(name), entries.get(name)) for name in names}


def open_work(
    loaded: Loaded, out: Path, options: ExplainOptions, device: str = "cpu"
) -> ExplainSlide:
    """What explains the slides.

    Args:
        loaded: Network, with its preprocessor where it has one.
        out: Folder of the results.
        options: What is made.
        device: Where the network runs.

    Raises:
        ConfigError: The network shows nothing, or a map that it does not have is asked for.
    """
    config: Any = loaded.net.config
    if loaded.preprocessor is None:
        console.say("note: the weights carry no class names; classes are numbered")
        names = tuple(str(k) for k in range(config.num_classes))
        fitted = BagPreprocessor(config.feature_dim, names, config.target)
    else:
        fitted = BagPreprocessor.from_state(*loaded.preprocessor)
    explainer = Explainer(loaded.net.to(device), fitted.class_names)
    # One patch shows which maps the network has, before a slide is opened.
    probe = explainer(torch.zeros(1, config.feature_dim, device=device))
    for name in options.maps:
        probe.map(name)
    return ExplainSlide(
        out=out, explainer=explainer, preprocessor=fitted, options=options, device=device
    )


def claim(out: Path, net: nn.Module, options: ExplainOptions) -> None:
    """Make the folder one of these weights and options.

    Raises:
        UserError: It holds results of others.
    """
    path = out / OPTIONS
    # The path of the annotations may hold a name; whether there are some is enough.
    settings = asdict(options) | {"annotations": options.annotations is not None}
    settings = json.loads(json.dumps(settings, default=str))
    wanted = {"format": FORMAT, "weights_sha256": weights_digest(net), **settings}
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; choose a folder")
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        replace_json(path, wanted)
        return
    found = read_json(path)
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"out: {out} was made with {name} {_short(found.get(name))}, not "
                f"{_short(wanted.get(name))}; choose another folder"
            )


def _coordinates_in(source: Path) -> dict[str, Path]:
    if source.is_file():
        return {slide_id_of(source): source}
    if not source.is_dir():
        raise DataError(f"coords: no folder {source}")
    return {slide_id_of(path): path for path in sorted(source.rglob("*.h5"))}


def _listed(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:8]}..."
