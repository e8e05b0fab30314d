"""Simulated slides in raw form: pyramids with planted lesions, labels, outlines and features."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from manyhead.acmil.annotations import collection, feature, write_geojson
from manyhead.acmil.coordinates import GridOptions
from manyhead.acmil.features import features as compute_features
from manyhead.acmil.landscape import Landscape, Polygon, landscape
from manyhead.acmil.pyramid import write_pyramid
from manyhead.acmil.slide_list import list_slides
from manyhead.acmil.texture import USUAL, Stain, render
from manyhead.acmil.tile import PATCHES, TileSlide, tile_slides
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError

FORMAT = 1
MPP = 0.5
PATCH_SIZE = 64
SITES = ("site-a", "site-b", "site-c")
# Part of the tissue that is lesion in a positive slide.
LESION_RANGE = (0.02, 0.08)
# Deviation of the stain between hospitals and between the slides of one.
SITE_STAIN, SLIDE_STAIN = 0.09, 0.055
LEAST_SIZE, MOST_SIZE = 384, 16384
CLASSES = ("negative", "positive")


@dataclass(frozen=True)
class SlidePlan:
    """One slide before it is drawn.

    Args:
        slide_id: Its name.
        case_id: Patient.
        label: `negative` or `positive`.
        site: Hospital that stained it.
        lesion_share: Part of the tissue that is to be lesion.
    """

    slide_id: str
    case_id: str
    label: str
    site: str
    lesion_share: float


def simulate(
    app: App,  # noqa: ARG001  the command line gives it to every command
    out: Path,
    /,
    slides: int = 40,
    patients: int = 32,
    lesion_share: float = 0.5,
    size: int = 1536,
    levels: int = 3,
    features: bool = True,
    patch_size: int = PATCH_SIZE,
    jobs: int = 0,
    seed: int = 0,
) -> int:
    """Write slides with planted lesions: pyramids, labels.csv, outlines, truth.json, features.

    Half of the slides have lesions of large dark nuclei on 2 to 8 % of their tissue. Folds, blood,
    blurred areas, dense small nuclei and other stains occur in both classes.

    Args:
        app: Row of the app.
        out: New folder: slides, lesions, labels.csv, truth.json, and with features also tiles and
            features.
        slides: Number of slides.
        patients: Number of patients; those in excess of the slides are left out.
        lesion_share: Share of the patients whose slides have lesions.
        size: Width and height of a slide in pixels of 0.5 µm.
        levels: Levels of the pyramid.
        features: Also tile the slides and encode the patches with handcrafted32.
        patch_size: Side of these patches in pixels.
        jobs: Slides drawn at the same time; 0 takes the number of cores.
        seed: Seed; the same seed writes the same pixels.
    """
    check(slides, patients, lesion_share, size, levels)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; name a new folder")
    plans = plan(slides, patients, lesion_share, seed)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(plans, partial, size=size, levels=levels, seed=seed, jobs=jobs)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if features and (code := encode(out, patch_size, jobs=1)):
        return code
    positive = sum(one.label == CLASSES[1] for one in plans)
    cases = len({one.case_id for one in plans})
    console.result(f"{slides} slides of {cases} patients, {positive} with lesions: {out}")
    return 0


def check(slides: int, patients: int, lesion_share: float, size: int, levels: int) -> None:
    """Refuse numbers that make no slides.

    Raises:
        ConfigError: One is out of range.
    """
    if slides < 2:
        raise ConfigError(f"--slides: is {slides}; two classes need 2 or more")
    if patients < 2:
        raise ConfigError(f"--patients: is {patients}; two classes need 2 or more")
    if not 0 <= lesion_share <= 1:
        raise ConfigError(f"--lesion_share: is {lesion_share}; choose a share from 0 to 1")
    if not LEAST_SIZE <= size <= MOST_SIZE:
        raise ConfigError(f"--size: is {size}; choose {LEAST_SIZE} to {MOST_SIZE} pixels")
    if levels < 1 or size >> (levels - 1) < 64:
        raise ConfigError(
            f"--levels: is {levels}; the coarsest level of {size} pixels must keep 64"
        )


def plan(slides: int, patients: int, lesion_share: float, seed: int) -> list[SlidePlan]:
    """What each slide is; patients take turns, so that some have several slides.

    Args:
        slides: Number of slides.
        patients: Number of patients.
        lesion_share: Share of the patients with lesions.
        seed: Seed.
    """
    patients = min(patients, slides)
    rng = np.random.default_rng((seed, 0))
    positive = rng.permutation(patients) < round(lesion_share * patients)
    by_class = np.argsort(positive, kind="stable")
    site = np.empty(patients, int)
    # Every hospital sends both classes, as evenly as the numbers allow.
    site[by_class] = np.arange(patients) % len(SITES)
    # So do the patients with several slides.
    again = by_class[np.linspace(0, patients, slides - patients, endpoint=False).astype(int)]
    found = []
    for number, patient in enumerate([*range(patients), *again.tolist()]):
        share = float(rng.uniform(*LESION_RANGE))
        found.append(
            SlidePlan(
                f"slide-{number:03d}",
                f"patient-{patient:03d}",
                CLASSES[int(positive[patient])],
                SITES[int(site[patient])],
                share if positive[patient] else 0.0,
            )
        )
    return found


def draw(one: SlidePlan, number: int, size: int, seed: int) -> tuple[np.ndarray, Landscape]:
    """Pixels `(size, size, 3)` of a slide and what was planted.

    Args:
        one: What it is.
        number: Its number.
        size: Width and height in pixels.
        seed: Seed of the whole set.
    """
    place = landscape(np.random.default_rng((seed, 1, number)), size, one.lesion_share)
    rng = np.random.default_rng((seed, 2, number))
    return render(rng, place, stain_of(one.site, seed).varied(rng, SLIDE_STAIN)), place


def stain_of(site: str, seed: int) -> Stain:
    """Stain of a hospital."""
    return USUAL.varied(np.random.default_rng((seed, 3, SITES.index(site))), SITE_STAIN)


def write(
    plans: list[SlidePlan], folder: Path, *, size: int, levels: int, seed: int, jobs: int = 0
) -> None:
    """Write slides, outlines, labels and truth into a folder.

    Args:
        plans: What the slides are.
        folder: Where to.
        size: Width and height in pixels.
        levels: Levels of the pyramids.
        seed: Seed.
        jobs: Slides at the same time; 0 takes the number of cores.
    """
    for name in ("slides", "lesions"):
        (folder / name).mkdir(parents=True, exist_ok=True)

    asap = [k for k, one in enumerate(plans) if one.lesion_share][::3]

    def one(number: int) -> dict[str, Any]:
        pixels, place = draw(plans[number], number, size, seed)
        slide = plans[number].slide_id
        write_pyramid(folder / "slides" / f"{slide}.tif", pixels, MPP, levels)
        if place.lesions:
            write_outlines(folder / "lesions", slide, place.lesions, asap=number in asap)
        shares = {
            name: float(area.sum() / place.tissue.sum()) for name, area in place.areas.items()
        }
        about = asdict(plans[number]) | {"lesion_share": place.lesion_share if place.lesions else 0}
        return about | {"tissue_share": float(place.tissue.mean()), "areas": shares}

    rows = list(console.progress(_parallel(one, len(plans), jobs), "drawing slides", len(plans)))
    columns = ["slide_id", "case_id", "label", "site"]
    pd.DataFrame(rows)[columns].to_csv(folder / "labels.csv", index=False, lineterminator="\n")
    truth = {"format": FORMAT, "seed": seed, "size": size, "mpp": MPP, "slides": rows}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def _parallel(work: Any, count: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Results in order; the libraries that draw let other threads run."""
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        yield from pool.map(work, range(count))


def write_outlines(folder: Path, slide_id: str, lesions: list[Polygon], *, asap: bool) -> None:
    """Write lesions as QuPath reads them, and as ASAP does where `asap` is set."""
    content = collection(feature([lesion], "Tumor", (200, 0, 0)) for lesion in lesions)
    write_geojson(folder / f"{slide_id}.geojson", content)
    if asap:
        (folder / f"{slide_id}.xml").write_text(asap_xml(lesions), encoding="utf-8")


def asap_xml(lesions: list[Polygon]) -> str:
    """Outlines in the form of ASAP, as CAMELYON has them."""
    parts = []
    for number, lesion in enumerate(lesions):
        points = "".join(
            f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(lesion.tolist())
        )
        parts.append(
            f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="_0" '
            f'Color="#F4FA58"><Coordinates>{points}</Coordinates></Annotation>'
        )
    inner = "\n".join(parts)
    return (
        '<?xml version="1.0"?>\n'
        f"<ASAP_Annotations><Annotations>\n{inner}\n</Annotations></ASAP_Annotations>\n"
    )


def encode(folder: Path, patch_size: int = PATCH_SIZE, jobs: int = 1) -> int:
    """Tile the slides of a simulated set and compute features of the patches.

    Args:
        folder: As `write` has left it.
        patch_size: Side of a patch in pixels.
        jobs: Slides at the same time.

    Returns:
        Exit code.
    """
    slides = folder / "slides"
    work = TileSlide(
        out=folder / "tiles",
        grid=GridOptions(patch_size=patch_size, contour_fn="center"),
        segmentation={},
        annotations=folder / "lesions",
    )
    if code := tile_slides(list_slides(slides), work, jobs=jobs, strict=True):
        return code
    return compute_features(
        folder / "tiles" / PATCHES, folder / "features", slides=slides, workers=1, strict=True
    )
