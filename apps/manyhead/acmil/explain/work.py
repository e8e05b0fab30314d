"""Explain one slide from the features that lie on disk: pictures, tables, objects for QuPath."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.acmil.annotations import Outline, find_outlines, labels_of, read_outlines
from manyhead.acmil.batch import Outcome
from manyhead.acmil.coordinates import Patches
from manyhead.acmil.coordinates_file import read_coordinates
from manyhead.acmil.explain import overlay
from manyhead.acmil.explain.concentration import concentration
from manyhead.acmil.explain.export import score_table, top_table, write_patches, write_table
from manyhead.acmil.explain.pictures import (
    ExplainOptions,
    Place,
    attention_maps,
    draw_curve,
    draw_galleries,
    draw_maps,
)
from manyhead.acmil.explain.scores import Explainer, SlideScores
from manyhead.acmil.explain.summary import (
    SUMMARY,
    Summary,
    folder_of,
    read_summary,
    write_summary,
    write_vectors,
)
from manyhead.acmil.layouts import FeatureFile, open_features
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.scores import score_columns
from manyhead.acmil.slide_list import SlideEntry
from manyhead.acmil.slides import Slide, open_slide
from manyhead_core.errors import DataError, UserError

Ints = npt.NDArray[np.int64]
SCORES, TOP, OBJECTS = "scores.csv", "top.csv", "patches.geojson"


@dataclass(frozen=True)
class Source:
    """Where the parts of a slide lie.

    Args:
        slide_id: Its name.
        features: File of its features.
        coords: File of its coordinates, where the features have none.
        slide: The slide itself, or None.
    """

    slide_id: str
    features: Path
    coords: Path | None = None
    slide: SlideEntry | None = None


@dataclass(frozen=True, kw_only=True)
class ExplainSlide:
    """Explains one slide; its summary is written last and marks it as complete.

    Args:
        out: Folder of the results.
        explainer: The network.
        preprocessor: Brings features into the form that the network was trained with.
        options: What is made.
        device: Where the network runs.
    """

    out: Path
    explainer: Explainer
    preprocessor: BagPreprocessor
    options: ExplainOptions = field(default_factory=ExplainOptions)
    device: str = "cpu"

    def __call__(self, source: Source) -> Outcome:
        """Write the files of a slide."""
        with ExitStack() as stack:
            slide = self._slide(source)
            if slide is not None:
                stack.enter_context(slide)
            known = self.options.mpp or (slide.mpp if slide is not None else None)
            features = open_features(source.features, source.slide_id, known)
            if not features.num_patches:
                return Outcome("no tissue", 0, error="its features hold no patch")
            place = self._place(source, features, slide)
            raw = self.preprocessor.features(features.features(), source.slide_id)
            scores = self._scaled(self.explainer(raw.to(self.device)))
            self._write(source.slide_id, place, scores)
            return Outcome("ok", features.num_patches)

    def done(self, slide_id: str) -> bool:
        """Whether an earlier start has explained a slide."""
        folder = folder_of(self.out, slide_id)
        if not (folder / SUMMARY).is_file():
            return False
        try:
            read_summary(folder)
        except UserError:
            return False
        return True

    def _slide(self, source: Source) -> Slide | None:
        if source.slide is None:
            return None
        mpp = source.slide.mpp or self.options.mpp
        slide = open_slide(source.slide.path, self.options.reader, mpp)
        slide.id = source.slide_id
        return slide

    def _place(self, source: Source, features: FeatureFile, slide: Slide | None) -> Place:
        coords, size = self._patches(source, features)
        if slide is not None and (coords >= slide.dimensions).any():
            x, y = coords.max(0).tolist()
            raise DataError(
                f"{source.slide_id}: a patch starts at ({x}, {y}), the slide has "
                f"{slide.dimensions[0]} x {slide.dimensions[1]} pixels; check --slides and --mpp"
            )
        longest = overlay.LONGEST
        overview = (
            overlay.blank(coords, size, longest)
            if slide is None
            else overlay.overview_of(slide, longest)
        )
        return Place(coords, size, slide, overview, self._outlines(source.slide_id))

    def _patches(self, source: Source, features: FeatureFile) -> tuple[Ints, int]:
        coords, size = features.coords(), features.patch_size_level0
        if source.coords is not None and (coords is None or size is None):
            read = read_coordinates(source.coords)
            if coords is not None and not np.array_equal(coords, read.coords):
                raise DataError(
                    f"{source.slide_id}: {source.coords.name} has other patches than "
                    f"{features.path.name}; pass the coordinates that the features were made from"
                )
            coords, size = read.coords, read.size_level0
        if coords is None:
            raise DataError(
                f"{source.slide_id}: {features.path.name} holds no coordinates; pass --coords with "
                "the folder that tile wrote"
            )
        if len(coords) != features.num_patches:
            raise DataError(
                f"{source.slide_id}: {len(coords)} coordinates for {features.num_patches} "
                "features; extract them again"
            )
        size = self.options.patch_size_level0 or size
        if size is None:
            raise DataError(
                f"{source.slide_id}: {features.path.name} does not tell the size of a patch; pass "
                f"--patch_size_level0{_guess(coords)}"
            )
        return coords, size

    def _outlines(self, slide_id: str) -> list[Outline]:
        if self.options.annotations is None:
            return []
        path = find_outlines(self.options.annotations, slide_id)
        return [] if path is None else read_outlines(path)

    def _scaled(self, scores: SlideScores) -> SlideScores:
        """Evidence for a number in the units of its label."""
        if self.preprocessor.target != "regression" or scores.evidence is None:
            return scores
        scale, mean = self.preprocessor.label_scale, self.preprocessor.label_mean
        return replace(
            scores,
            evidence=scores.evidence * scale,
            constant=scores.constant * scale + mean,
            logits=scores.logits * scale + mean,
            raw_logits=scores.raw_logits * scale + mean,
        )

    def _write(self, slide_id: str, place: Place, scores: SlideScores) -> None:
        folder = folder_of(self.out, slide_id)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.options.maps:
            scores.map(name)  # a wrong name fails before anything is drawn
        pictures = draw_maps(folder, place, scores, self.options)
        pictures |= draw_galleries(folder, place, scores, self.options)
        table = score_table(place.coords, scores)
        write_table(folder / SCORES, table)
        write_table(folder / TOP, top_table(place.coords, scores, self.options.top))
        if self.options.geojson:
            write_patches(folder / OBJECTS, table, place.size, self.options.colormap)
        write_vectors(folder, scores.slide_vector, scores.branch_vectors)
        pictures |= draw_curve(folder, scores)
        write_summary(folder, self._summary(slide_id, place, scores, pictures))

    def _summary(
        self, slide_id: str, place: Place, scores: SlideScores, pictures: dict[str, str]
    ) -> Summary:
        maps = attention_maps(scores)
        notes = [] if place.slide is not None else ["Drawn on white: the slide was not given."]
        return Summary(
            slide_id=slide_id,
            patches=len(place.coords),
            patch_size_level0=place.size,
            prediction=self._prediction(scores),
            evidence=_evidence(scores),
            how=scores.how,
            concentration={name: concentration(values).row() for name, values in maps.items()},
            pictures=pictures,
            inside=_inside(place, scores),
            notes=notes,
        )

    def _prediction(self, scores: SlideScores) -> dict[str, float]:
        names = self.preprocessor.class_names or tuple(
            str(k) for k in range(self.explainer.config.num_classes)
        )
        found = score_columns(scores.raw_logits[None], self.explainer.config, names)
        return {name.removeprefix("score_"): float(value[0]) for name, value in found.items()}


def _evidence(scores: SlideScores) -> dict[str, dict[str, float]]:
    if scores.evidence is None:
        return {}
    rows = zip(scores.names, scores.constant, scores.evidence.sum(0), scores.logits, strict=True)
    return {
        name: {"constant": float(constant), "patches": float(total), "logit": float(logit)}
        for name, constant, total, logit in rows
    }


def _inside(place: Place, scores: SlideScores) -> dict[str, float]:
    if not place.outlines:
        return {}
    mpp = place.slide.mpp if place.slide is not None else None
    inside = labels_of(
        place.outlines, Patches(place.coords, place.size, 0, place.size, place.size, mpp)
    )
    return {
        "attention in the annotation": float(scores.mean[inside].sum()),
        "patches in the annotation": float(inside.mean()),
    }


def _guess(coords: Ints) -> str:
    """What the distance of the patches suggests."""
    steps: list[Any] = [np.diff(np.unique(axis)) for axis in coords.T]
    smallest = [int(step.min()) for step in steps if len(step)]
    return f", perhaps {max(smallest)}, as far as they lie apart" if smallest else ""
