"""Metrics by segment: one column `segment_<name>` of the predictions a question."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manyhead_core.evaluate.calibration import log_loss
from manyhead_core.evaluate.intervals import delong, delong_interval

Array = NDArray[Any]

PREFIX = "segment_"
MAX_VALUES = 50
RANKED_FROM = 20


def segment_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the segment columns."""
    return [name for name in map(str, frame) if name.startswith(PREFIX)]


def segment_masks(frame: pd.DataFrame) -> dict[str, list[tuple[str, Array]]]:
    """By segment, its most frequent values in order, each with True where a row has it.

    The sites are a segment too, when there are two or more.

    Args:
        frame: Table with the segment columns.
    """
    named = {column.removeprefix(PREFIX): frame[column] for column in segment_columns(frame)}
    if "site" in frame:
        sites = frame["site"].fillna("").astype(str)
        if sites[sites != ""].nunique() > 1:
            named["site"] = sites
    found = {}
    for name, column in named.items():
        values = column.astype(str)
        most = values.value_counts().index[:MAX_VALUES]
        found[name] = [(value, (values == value).to_numpy()) for value in sorted(most)]
    return found


def binary_segments(
    frame: pd.DataFrame, labels: Array, scores: Array, units: Array | None
) -> dict[str, list[dict[str, Any]]]:
    """Size, area under the ROC curve, log loss and calibration of every segment value.

    The interval of the area is DeLong's, clustered by group when there are groups. Segments under
    20 rows, or of one class, have no interval.

    Args:
        frame: Table with the segment columns.
        labels: 0 or 1, `(rows,)`.
        scores: Probabilities, `(rows,)`.
        units: Group of each row, or None.
    """
    return {
        name: [
            one_segment(
                value, labels[chosen], scores[chosen], None if units is None else units[chosen]
            )
            for value, chosen in parts
        ]
        for name, parts in segment_masks(frame).items()
    }


def one_segment(name: str, labels: Array, scores: Array, units: Array | None) -> dict[str, Any]:
    """Metrics of the rows of one segment, as metrics.json has them."""
    positives = int((labels > 0.5).sum())
    entry: dict[str, Any] = {
        "value": name,
        "n": len(labels),
        "positives": positives,
        "groups": None if units is None else len(np.unique(units)),
        "auroc": None,
        "auroc_low": None,
        "auroc_high": None,
        "logloss": log_loss(labels, scores),
        "calibration": float(scores.mean() / labels.mean()) if positives else None,
    }
    if 0 < positives < len(labels):
        codes = None if units is None else np.unique(units, return_inverse=True)[1]
        area = delong(labels, scores, codes)
        entry["auroc"] = area.value
        if len(labels) >= RANKED_FROM:
            entry["auroc_low"], entry["auroc_high"] = delong_interval(area)
    return entry
