"""The command `tile`: find the tissue of slides and lay a grid of patches over it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from manyhead.acmil.annotations import (
    find_outlines,
    labels_of,
    read_outlines,
    tissue_geojson,
    write_geojson,
)
from manyhead.acmil.batch import Batch, Outcome
from manyhead.acmil.coordinates import (
    ContourTest,
    GridOptions,
    Patches,
    patch_coordinates,
    reading,
)
from manyhead.acmil.coordinates_file import read_coordinates, write_coordinates
from manyhead.acmil.slide_list import SlideEntry, list_slides
from manyhead.acmil.slides import Slide, open_slide
from manyhead.acmil.slides.opening import Reader, plausible
from manyhead.acmil.slides.resolution import mpp_of_magnification
from manyhead.acmil.thumbnail import draw_thumbnail, write_image
from manyhead.acmil.tissue import (
    PRESETS,
    UNIT,
    Mode,
    SegmentationOptions,
    Tissue,
    segment,
)
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError, UserError

Preset = Literal["default", "tcga", "bwh_biopsy", "bwh_resection"]
PATCHES, CONTOURS, THUMBNAILS, OPTIONS = "patches", "contours", "thumbnails", "options.json"
RESEARCH_ONLY = "research use only, not a medical device"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TileSlide:
    """Tiles one slide; the file of its patches is written last and marks it as complete.

    Args:
        out: Folder of the results.
        grid: Size and place of the patches.
        preset: Segmentation preset of slides that name none.
        segmentation: Options that replace those of the preset, by name.
        mode: As `segment` and `patch_coordinates` take it.
        mpp: µm per level-0 pixel of slides that name none.
        reader: What reads the slides.
        annotations: Folder of ASAP or GeoJSON files named as the slides, or None.
        keep: Numbers of the pieces of tissue to keep; empty keeps all.
        exclude: Numbers of those to drop.
        thumbnails: Whether a picture is written.
        geojson: Whether the contours are written.
    """

    out: Path
    grid: GridOptions
    preset: str = "default"
    segmentation: Mapping[str, Any]
    mode: Mode = "default"
    mpp: float | None = None
    reader: Reader = "auto"
    annotations: Path | None = None
    keep: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    thumbnails: bool = True
    geojson: bool = True

    def __call__(self, entry: SlideEntry) -> Outcome:
        """Write the files of a slide."""
        cv2.setNumThreads(1)  # several slides at a time use the cores better
        target = self.out / PATCHES / f"{entry.id}.h5"
        if target.exists():
            raise DataError(
                f"{target.name} was made with other options; delete it or choose another folder"
            )
        with open_slide(entry.path, self.reader, entry.mpp or self.mpp) as slide:
            slide.id = entry.id
            reading(slide, self.grid)  # fails early when the resolution is unknown
            options = self.options(entry)
            tissue = segment(slide, options, self.mode)
            numbers = self._chosen(len(tissue.contours))
            tissue = tissue.only(numbers)
            patches = patch_coordinates(slide, tissue, self.grid, self.mode)
            share = tissue.area / (slide.dimensions[0] * slide.dimensions[1])
            labels = self._labels(entry, patches)
            self._show(slide, tissue, patches, labels, numbers)
            if not len(patches.coords):
                return Outcome("no tissue", 0, share, error=self._why(slide, tissue, options))
            write_coordinates(target, slide, patches, labels=labels, settings=self.settings(entry))
            return Outcome("ok", len(patches.coords), share, error=_enlarged(patches))

    def options(self, entry: SlideEntry) -> SegmentationOptions:
        """How the tissue of a slide is found.

        Raises:
            ConfigError: There is no such preset.
        """
        name = entry.preset or self.preset
        if name not in PRESETS:
            raise ConfigError(f"preset: {name!r} is unknown; use {', '.join(PRESETS)}")
        return replace(PRESETS[name], **self.segmentation)

    def settings(self, entry: SlideEntry) -> dict[str, Any]:
        """What the patches of a slide depend on, as plain values."""
        found = asdict(self.grid) | {"mode": self.mode, "mpp": entry.mpp or self.mpp}
        found["annotations"] = self.annotations is not None
        found |= {"keep_contours": list(self.keep), "exclude_contours": list(self.exclude)}
        return found | asdict(self.options(entry))

    def done(self, entry: SlideEntry) -> bool:
        """Whether the patches of a slide are there, made with these options."""
        path = self.out / PATCHES / f"{entry.id}.h5"
        try:
            return path.exists() and read_coordinates(path).settings == self.settings(entry)
        except UserError:
            return False

    def _chosen(self, count: int) -> list[int]:
        """Numbers of the pieces of tissue that are used."""
        if wrong := [n for n in (*self.keep, *self.exclude) if not 0 <= n < count]:
            raise ConfigError(
                f"keep_contours, exclude_contours: there is no piece {wrong[0]}; the slide has "
                f"{count}, counted from 0 as on the thumbnail"
            )
        return [n for n in (self.keep or range(count)) if n not in self.exclude]

    def _labels(self, entry: SlideEntry, patches: Patches) -> npt.NDArray[np.bool_] | None:
        if self.annotations is None:
            return None
        path = find_outlines(self.annotations, entry.id)
        if path is None:
            return None
        return labels_of(read_outlines(path), patches, self.mode)

    def _show(
        self,
        slide: Slide,
        tissue: Tissue,
        patches: Patches,
        labels: npt.NDArray[np.bool_] | None,
        numbers: list[int],
    ) -> None:
        if self.geojson:
            path = self.out / CONTOURS / f"{slide.id}.geojson"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_geojson(path, tissue_geojson(tissue))
        if self.thumbnails:
            picture = draw_thumbnail(slide, tissue, patches, labels, numbers)
            write_image(self.out / THUMBNAILS / f"{slide.id}.jpg", picture)

    def _why(self, slide: Slide, tissue: Tissue, options: SegmentationOptions) -> str:
        """What to change so that there are patches."""
        if tissue.contours:
            return (
                f"there is tissue, but no patch of {self.grid.patch_size} pixels fits into it; try "
                "a smaller --patch_size or another --contour_fn"
            )
        every = segment(slide, replace(options, a_t=0.0, a_h=0.0), "reference")
        largest = max((cv2.contourArea(contour) for contour in every.contours), default=0) / UNIT
        if largest == 0:
            return (
                f"nothing is more saturated than --sthresh {options.sthresh}; if there is tissue, "
                "try a smaller one or --use_otsu true"
            )
        return (
            f"no tissue larger than --a_t {options.a_t:g} (units of 512 x 512 pixels); the largest "
            f"piece has {largest:.2g}; try --a_t {largest / 4:.1g} --a_h {largest / 25:.1g}"
        )


def tile(
    slides: Path,
    out: Path,
    /,
    preset: Preset = "default",
    seg_level: int | None = None,
    sthresh: int | None = None,
    mthresh: int | None = None,
    close: int | None = None,
    use_otsu: bool | None = None,
    a_t: float | None = None,
    a_h: float | None = None,
    max_n_holes: int | None = None,
    mode: Mode = "default",
    patch_size: int = 256,
    step_size: int | None = None,
    magnification: float | None = None,
    target_mpp: float | None = None,
    patch_level: int | None = None,
    contour_fn: ContourTest = "four_pt",
    use_padding: bool = True,
    mpp: float | None = None,
    reader: Reader = "auto",
    root: Path | None = None,
    annotations: Path | None = None,
    keep_contours: list[int] | None = None,
    exclude_contours: list[int] | None = None,
    thumbnails: bool = True,
    geojson: bool = True,
    jobs: int = 1,
    strict: bool = False,
) -> int:
    """Find the tissue of slides and write the coordinates of its patches.

    A second start skips slides that are complete. A slide that fails is listed in report.csv and
    the others go on. The files in OUT/patches are read by CLAM as well.

    Args:
        slides: Folder of slides, one slide, or a CSV file with the column slide_id or path, and
            optionally mpp and preset.
        out: Folder of the results: patches, contours, thumbnails, report.csv, options.json.
        preset: Segmentation options to start from; those below replace single ones.
        seg_level: Level that is segmented; -1 is the one for a downsample of 64.
        sthresh: Saturation, 0 to 255, above which a pixel is tissue.
        mthresh: Side of the median filter in pixels, odd.
        close: Side of the square that closes gaps, in pixels; 0 closes none.
        use_otsu: Find the threshold by Otsu's method instead of sthresh.
        a_t: Smallest area of a piece of tissue, in units of 512 x 512 level-0 pixels.
        a_h: Smallest area of a hole, in the same units.
        max_n_holes: Holes of a piece that are looked at, the largest first.
        mode: `reference` takes a_t as it stands and drops pieces with a single patch, as the
            published code does; `default` lowers a_t for small slides.
        patch_size: Side of a patch in pixels.
        step_size: Distance of two patches in pixels; default: patch_size.
        magnification: Magnification of the patches, as 20; needs the resolution of the slides.
        target_mpp: The same in µm per pixel, as 0.5.
        patch_level: The same as a level of the slide; default: level 0.
        contour_fn: When a patch is in the tissue: one of four points around its centre is
            (four_pt), all are (four_pt_hard), its centre is (center), its corner is (basic).
        use_padding: Whether patches may reach over the edge of the slide.
        mpp: µm per pixel of level 0, for slides that do not tell.
        reader: What reads the slides; auto tries one after the other.
        root: Folder that the slides of a CSV file lie in; default: its own.
        annotations: Folder of ASAP .xml or .geojson files named as the slides; the patches in them
            get the label 1.
        keep_contours: Numbers of the pieces of tissue to keep, as on the thumbnail; one slide only.
        exclude_contours: Numbers of the pieces of tissue to drop; one slide only.
        thumbnails: Write a small picture of every slide with its tissue and patches.
        geojson: Write the contours as QuPath reads them.
        jobs: Slides at the same time, each in a process of its own.
        strict: Exit with code 2 when one slide failed.
    """
    named = {
        "seg_level": seg_level, "sthresh": sthresh, "mthresh": mthresh, "close": close,
        "use_otsu": use_otsu, "a_t": a_t, "a_h": a_h, "max_n_holes": max_n_holes,
    }  # fmt: skip
    work = TileSlide(
        out=out,
        grid=GridOptions(
            patch_size=patch_size,
            step_size=step_size,
            target_mpp=_target(magnification, target_mpp, patch_level),
            patch_level=patch_level or 0,
            contour_fn=contour_fn,
            use_padding=use_padding,
        ),
        preset=preset,
        segmentation={name: value for name, value in named.items() if value is not None},
        mode=mode,
        mpp=plausible(mpp) if mpp is not None else None,
        reader=reader,
        annotations=annotations,
        keep=tuple(keep_contours or ()),
        exclude=tuple(exclude_contours or ()),
        thumbnails=thumbnails,
        geojson=geojson,
    )
    return tile_slides(list_slides(slides, root), work, jobs=jobs, strict=strict)


def tile_slides(
    entries: Mapping[str, SlideEntry], work: TileSlide, *, jobs: int = 1, strict: bool = False
) -> int:
    """Tile slides into one folder.

    Args:
        entries: Slides by id.
        work: How.
        jobs: Processes.
        strict: Whether one failure is enough for exit code 2.

    Returns:
        Exit code.
    """
    if (work.keep or work.exclude) and len(entries) > 1:
        raise ConfigError(
            f"keep_contours, exclude_contours: numbers belong to one slide, and these are "
            f"{len(entries)}; pass a single slide"
        )
    if work.annotations is not None and not work.annotations.is_dir():
        raise DataError(f"annotations: no folder {work.annotations}")
    if work.annotations and not any(find_outlines(work.annotations, name) for name in entries):
        raise DataError(
            f"annotations: no file in {work.annotations} is named as a slide; "
            f"{next(iter(entries))}.xml or .geojson would be"
        )
    for entry in entries.values():
        work.options(entry)
    batch = Batch(work, work.out, "tiling slides", lambda name: work.done(entries[name]), jobs)
    claim(work)
    code = batch.run(entries, strict=strict)
    console.say(RESEARCH_ONLY)
    return code


def claim(work: TileSlide) -> None:
    """Make the folder one of these options.

    Raises:
        UserError: It holds patches of others.
    """
    path = work.out / OPTIONS
    wanted = {"format": FORMAT, **asdict(work.grid), "preset": work.preset, "mode": work.mode}
    wanted |= {**work.segmentation, "mpp": work.mpp, "reader": work.reader}
    wanted["annotations"] = work.annotations is not None
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as err:
            raise UserError(f"out: {path} is damaged ({err}); choose another folder") from err
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"out: {work.out} was made with {name} {found.get(name)}, not "
                    f"{wanted.get(name)}; choose another folder"
                )
        return
    if work.out.exists() and not work.out.is_dir():
        raise UserError(f"out: {work.out} is a file; choose a folder")
    work.out.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _target(
    magnification: float | None, target_mpp: float | None, patch_level: int | None
) -> float | None:
    given = {
        name: value
        for name, value in (
            ("magnification", magnification),
            ("target_mpp", target_mpp),
            ("patch_level", patch_level),
        )
        if value is not None
    }
    if len(given) > 1:
        raise ConfigError(f"{', '.join(given)}: say the resolution once")
    return mpp_of_magnification(magnification) if magnification is not None else target_mpp


def _enlarged(patches: Patches) -> str:
    """A remark when a slide has fewer pixels than asked for."""
    if patches.patch_size <= 1.05 * patches.read_size:
        return ""
    return (
        f"note: patches are enlarged from {patches.read_size} to {patches.patch_size} pixels; the "
        "slide has no finer level"
    )
