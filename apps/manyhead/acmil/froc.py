"""How well marked points find the lesions of a set of slides: the FROC curve.

A point inside a lesion finds it, a point outside of all is a false positive. The curve shows the
share of lesions found against the false positives per slide; the summary is its mean at 1/4, 1/2,
1, 2, 4 and 8 of them, as in the CAMELYON16 challenge (Ehteshami Bejnordi et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from manyhead.acmil.annotations import Outline, read_outlines
from manyhead.acmil.polygons import locate
from manyhead_core.cli import console
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.files import replace_json
from manyhead_core.evaluate.intervals import MIN_GROUPS, Estimate, bootstrap, percentiles

Array = npt.NDArray[Any]

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MIN_SIZE = 200.0
# Names under which CAMELYON16 keeps normal tissue that is cut out of a lesion.
EXCLUDED = ("_2", "exclusion")
COLUMNS = ("slide_id", "x", "y", "score")


@dataclass(frozen=True)
class MarkedSlide:
    """Points on a slide and what there is to find.

    Args:
        points: x and y in level-0 pixels, `(points, 2)`.
        scores: Larger is more suspicious, `(points,)`.
        lesions: Outlines in level-0 pixels.
        mpp: µm per level-0 pixel.
    """

    points: Array
    scores: Array
    lesions: Sequence[Outline]
    mpp: float


@dataclass(frozen=True)
class Froc:
    """Sensitivity to lesions, with 95 % intervals over slides.

    Args:
        mean: Mean of the sensitivities at the rates.
        sensitivity: At each rate.
        rates: False positives per slide.
        num_slides: All slides, with lesions and without.
        num_lesions: Lesions that count.
        num_ignored: Lesions that are too small to count.
    """

    mean: Estimate
    sensitivity: list[Estimate]
    rates: tuple[float, ...]
    num_slides: int
    num_lesions: int
    num_ignored: int


@dataclass(frozen=True)
class _Found:
    """Best score inside each lesion that counts, and the scores of the false positives."""

    hits: Array
    alarms: Array
    ignored: int


def froc(
    slides: Sequence[MarkedSlide],
    *,
    min_size: float = MIN_SIZE,
    draws: int = 2000,
    seed: int = 0,
) -> Froc:
    """Lesion sensitivity at 1/4 to 8 false positives per slide.

    The sensitivity at a rate is that of the lowest threshold with no more false positives; nothing
    is interpolated. Points in a lesion that is too small neither find nor disturb. Points in a hole
    of a lesion, or in an outline named as excluded, are outside of it.

    Args:
        slides: All slides of the test, those without lesions too.
        min_size: Lesions whose longest extent in µm is less do not count.
        draws: Bootstrap resamples of slides; below 10 slides there are no intervals.
        seed: Seed of the resamples.

    Raises:
        DataError: There is no lesion that counts.
    """
    found = [_search(slide, min_size) for slide in slides]
    lesions = sum(len(entry.hits) for entry in found)
    ignored = sum(entry.ignored for entry in found)
    if not lesions:
        raise DataError(
            f"annotations: no lesion of {min_size:g} µm or more in {len(slides)} slides "
            f"({ignored} smaller ones)"
        )
    statistic = _Curve(found)
    values = statistic(np.ones((1, len(slides))))[0]
    limits: list[tuple[float | None, float | None]] = [(None, None)] * len(values)
    if len(slides) >= MIN_GROUPS:
        resamples = bootstrap(statistic, np.arange(len(slides)), draws, seed)
        limits = [percentiles(column) for column in resamples.T]
    estimates = [Estimate(float(v), *limit) for v, limit in zip(values, limits, strict=True)]
    return Froc(estimates[0], estimates[1:], RATES, len(slides), lesions, ignored)


class _Curve:
    """Mean sensitivity, and that at each rate, as a function of the multiplicity of slides.

    The sensitivity changes only at the scores of lesions, so no other threshold is looked at.
    """

    def __init__(self, found: Sequence[_Found]) -> None:
        every = np.concatenate([entry.hits for entry in found])
        thresholds = np.unique(every[np.isfinite(every)])
        self._hits = np.stack([_at_least(entry.hits, thresholds) for entry in found])
        self._alarms = np.stack([_at_least(entry.alarms, thresholds) for entry in found])
        self._lesions = np.array([len(entry.hits) for entry in found], float)

    def __call__(self, weights: Array) -> Array:
        total, lesions = weights.sum(axis=1, keepdims=True), weights @ self._lesions
        alarms = (weights @ self._alarms) / total
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (weights @ self._hits) / lesions[:, None]
        columns = [np.where(alarms <= rate, share, 0).max(axis=1, initial=0) for rate in RATES]
        values = np.stack(columns, axis=1)
        values[lesions == 0] = np.nan
        return np.concatenate([values.mean(axis=1, keepdims=True), values], axis=1)


def _at_least(scores: Array, thresholds: Array) -> Array:
    count: Array = len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
    return count.astype(float)


def _search(slide: MarkedSlide, min_size: float) -> _Found:
    excluded = [outline for outline in slide.lesions if _is_excluded(outline)]
    cut = np.zeros(len(slide.points), bool)
    for outline in excluded:
        cut |= inside(outline, slide.points)
    taken = np.zeros(len(slide.points), bool)
    hits, ignored = [], 0
    for outline in slide.lesions:
        if _is_excluded(outline):
            continue
        within = inside(outline, slide.points) & ~cut
        taken |= within
        if extent(outline.polygon) * slide.mpp < min_size:
            ignored += 1
        else:
            hits.append(slide.scores[within].max(initial=-np.inf))
    return _Found(np.array(hits, float), np.asarray(slide.scores)[~taken], ignored)


def _is_excluded(outline: Outline) -> bool:
    return outline.name.strip().lower() in EXCLUDED


def inside(outline: Outline, points: Array) -> npt.NDArray[np.bool_]:
    """Whether points lie in an outline, its border included, and in none of its holes.

    Args:
        outline: Corners in level-0 pixels.
        points: x and y in level-0 pixels, to half a pixel, `(points, 2)`.
    """
    # Doubled, because the centre of an odd patch lies between pixels.
    places = np.rint(2 * np.asarray(points, np.float64)).astype(np.int64).reshape(-1, 2)
    rings = [np.rint(2 * ring).astype(np.int64) for ring in (outline.polygon, *outline.holes)]
    found = locate(rings[0], places) >= 0
    for hole in rings[1:]:
        found &= locate(hole, places) <= 0
    return found


def extent(polygon: Array) -> float:
    """Longest extent of a polygon in its own unit, at most 0.004 % too short."""
    angles = np.deg2rad(np.arange(180))
    along = np.asarray(polygon, np.float64) @ np.stack([np.cos(angles), np.sin(angles)])
    return float(np.ptp(along, axis=0).max())


def suppress(points: Array, scores: Array, radius: float) -> npt.NDArray[np.int64]:
    """Local maxima: points with no higher one within a distance that is itself kept.

    Neighbouring patches of one lesion, or of one artefact, would else count many times.

    Args:
        points: x and y, `(points, 2)`.
        scores: `(points,)`.
        radius: In the unit of the points; 0 keeps all.

    Returns:
        Numbers of the points that are kept, the highest first.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    if radius <= 0 or not len(order):
        return order
    tree = cKDTree(points)
    alive = np.ones(len(order), bool)
    kept = []
    for number in order:
        if alive[number]:
            kept.append(number)
            alive[tree.query_ball_point(points[number], radius)] = False
    return np.array(kept, np.int64)


def froc_command(
    candidates: Path,
    annotations: Path,
    /,
    mpp: float | None = None,
    slides: Path | None = None,
    radius: float = 0.0,
    min_size: float = MIN_SIZE,
    out: Path | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> None:
    """Lesion sensitivity of marked points (FROC), with intervals over slides.

    Args:
        candidates: CSV with slide_id, x, y (level-0 pixels) and score.
        annotations: Folder with an ASAP .xml or .geojson of each slide that has lesions.
        mpp: µm per level-0 pixel, for slides that have none in `slides`.
        slides: CSV with slide_id of all slides of the test, and where known mpp; without it the
            slides are those that have a point or annotations, and slides with neither are missing.
        radius: Points closer than so many µm to a higher one are dropped; 0 keeps all.
        min_size: Lesions whose longest extent in µm is less do not count.
        out: JSON file for the result.
        draws: Bootstrap resamples of slides.
        seed: Seed of the resamples.
    """
    if out is not None and out.exists():
        raise UserError(f"--out: {out} exists; choose another name")
    points = _read_points(candidates)
    files = _annotation_files(annotations)
    sizes = _sizes(slides, {*points["slide_id"], *files}, mpp)
    unknown = sorted({*points["slide_id"], *files} - set(sizes))
    if unknown:
        console.say(f"{len(unknown)} slides are not in --slides and left out, as {unknown[0]}")
    parts = dict(list(points.groupby("slide_id")))
    marked = [
        _marked(parts.get(name, points[:0]), files.get(name), size, radius)
        for name, size in sizes.items()
    ]
    result = froc(marked, min_size=min_size, draws=draws, seed=seed)
    _show(result)
    if out is not None:
        replace_json(out, {"format": 1, "kind": "froc", **asdict(result)})
        console.say(f"written: {out}")


def _marked(points: pd.DataFrame, file: Path | None, mpp: float, radius: float) -> MarkedSlide:
    places, scores = points[["x", "y"]].to_numpy(float), points["score"].to_numpy(float)
    kept = suppress(places, scores, radius / mpp)
    lesions = [] if file is None else read_outlines(file)
    return MarkedSlide(places[kept], scores[kept], lesions, mpp)


def _read_points(path: Path) -> pd.DataFrame:
    table = _table(path, "candidates", COLUMNS)
    for name in COLUMNS[1:]:
        values = pd.to_numeric(table[name], errors="coerce")
        if not np.isfinite(values.to_numpy(float)).all():
            row = int(np.flatnonzero(~np.isfinite(values.to_numpy(float)))[0])
            raise DataError(
                f"candidates: {name} is {table[name].iloc[row]!r} in row {row + 1} of "
                f"{path.name}; a number is needed"
            )
        table[name] = values
    return table


def _annotation_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"annotations: no folder {folder}")
    kinds = (".xml", ".geojson")
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in kinds]
    if not files:
        raise DataError(f"annotations: {folder} holds no .xml and no .geojson file")
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DataError(f"annotations: {file.stem} has two files; keep one of them")
        found[file.stem] = file
    return found


def _sizes(path: Path | None, names: set[str], mpp: float | None) -> dict[str, float]:
    """µm per pixel of every slide of the test."""
    sizes: dict[str, Any] = dict.fromkeys(sorted(names), mpp)
    if path is not None:
        table = _table(path, "--slides", ("slide_id",))
        given = pd.to_numeric(table["mpp"], errors="coerce") if "mpp" in table else None
        own = [mpp] * len(table) if given is None else given.fillna(mpp or np.nan).tolist()
        sizes = dict(zip(table["slide_id"], own, strict=True))
    for name, size in sizes.items():
        if size is None or not size > 0:
            raise UserError(
                f"--mpp: slide {name} has no µm per pixel; pass --mpp or a column mpp in --slides"
            )
    return sizes


def _table(path: Path, option: str, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{option}: no file {path}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as err:
        raise DataError(f"{option}: {path} is no CSV file ({err})") from err
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{option}: {path.name} has no column {missing[0]}")
    return table


def _show(result: Froc) -> None:
    names = ["mean", *(f"at {rate:g}" for rate in result.rates)]
    rows = [
        (name, *("" if v is None else f"{v:.4f}" for v in (entry.value, entry.low, entry.high)))
        for name, entry in zip(names, [result.mean, *result.sensitivity], strict=True)
    ]
    title = (
        f"lesion sensitivity: {result.num_lesions} lesions in {result.num_slides} slides, "
        f"{result.num_ignored} smaller lesions ignored"
    )
    console.table(title, ("false positives per slide", "value", "95 % low", "95 % high"), rows)
    if result.num_slides < MIN_GROUPS:
        console.say(f"no intervals: {result.num_slides} slides are too few")
    console.result("research use only, not a medical device")
