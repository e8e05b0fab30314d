"""Sections of the report page for several classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manyhead_core.evaluate import figures
from manyhead_core.evaluate.calibration import (
    Temperature,
    calibration_error,
    reliability,
    top_reliability,
)
from manyhead_core.evaluate.html import Page
from manyhead_core.evaluate.multiclass import PER_CLASS, ClassRows, confusion

# More curves in one panel cannot be told apart.
MOST_CURVES = 12


def class_sections(page: Page, rows: ClassRows, metrics: Mapping[str, Any]) -> None:
    """Table of the classes, confusion matrix, ROC and precision-recall curves."""
    page.section("Classes")
    _table(page, metrics.get("classes") or [])
    matrix = confusion(rows)
    page.figure(
        "Confusion matrix: number of samples by true and predicted class; the colour is the share "
        "of the true class.",
        figures.confusion(matrix, rows.names),
    )
    numbers = [[name, *counts] for name, counts in zip(rows.names, matrix, strict=True)]
    page.table("The same as numbers (rows: true class)", ["class", *rows.names], numbers)
    curves = _curves(rows)
    if curves:
        page.section("Ranking")
        which = "each class against the rest" if len(rows.names) > 2 else rows.names[1]
        page.figure(f"ROC curves, {which}; the dashed diagonal is chance.", figures.roc(curves))
        page.figure(
            f"Precision against recall, {which}; a dot at recall 1 marks the share of the class, "
            "which is the precision of chance.",
            figures.precision_recall(curves),
        )
        if len(rows.names) > MOST_CURVES:
            page.paragraph(f"Drawn for the {MOST_CURVES} most frequent classes.")


def class_calibration(page: Page, rows: ClassRows, fitted: Temperature | None) -> None:
    """Reliability of the largest probability, and of each class."""
    page.section("Calibration")
    bins = top_reliability(rows.labels, rows.scores)
    curves = {"model": bins}
    if fitted is not None:
        curves["with temperature"] = top_reliability(rows.labels, fitted.apply(rows.scores))
        page.paragraph(
            f"A temperature of {fitted.temperature:.3f}, fitted on the validation samples, moves "
            f"the expected calibration error from {calibration_error(bins):.4f} to "
            f"{calibration_error(curves['with temperature']):.4f}."
        )
    page.figure(
        "How often the predicted class is right against its probability, in 15 bins of equal "
        "width. On the dashed diagonal both agree; a larger point stands for more samples.",
        figures.reliability(curves),
    )
    table = [
        [f"{b.low:.3f} to {b.high:.3f}", f"{b.count:,}", f"{b.predicted:.4f}", f"{b.observed:.4f}"]
        for b in bins
    ]
    page.table("The same as numbers", ["bin", "samples", "predicted", "observed"], table)
    errors = [
        [name, f"{calibration_error(reliability(rows.codes == k, rows.scores[:, k])):.4f}"]
        for k, name in enumerate(rows.names)
    ]
    page.table("Calibration error by class", ["class", "expected calibration error"], errors)


def _curves(rows: ClassRows) -> dict[str, tuple[Any, Any]]:
    counts = np.bincount(rows.codes, minlength=len(rows.names))
    if len(rows.names) == 2:
        drawn = [1] if counts.min() else []
    else:
        most = np.argsort(-counts, kind="stable")[:MOST_CURVES]
        drawn = sorted(int(k) for k in most if 0 < counts[k] < len(rows.labels))
    return {rows.names[k]: (rows.codes == k, rows.scores[:, k]) for k in drawn}


def _table(page: Page, classes: list[Mapping[str, Any]]) -> None:
    header = ["class", "samples", "predicted", *(name.replace("_", " ") for name in PER_CLASS)]
    rows = [
        [entry["class"], f"{entry['support']:,}", f"{entry['predicted']:,}"]
        + [_range(entry[name]) for name in PER_CLASS]
        for entry in classes
    ]
    page.table("Each class against the rest, with 95 % intervals", header, rows)


def _range(entry: Mapping[str, float | None]) -> str:
    if entry["value"] is None:
        return ""
    if entry["low"] is None or entry["high"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"
