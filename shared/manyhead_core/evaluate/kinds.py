"""The kinds of predictions that results can hold, and what each is read and compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from manyhead_core.app import App
from manyhead_core.errors import DataError
from manyhead_core.evaluate.binary import BinaryStatistics, binary_rows
from manyhead_core.evaluate.evaluation import Build
from manyhead_core.evaluate.multiclass import ClassStatistics, class_rows
from manyhead_core.evaluate.predictions import Results
from manyhead_core.evaluate.regression import NumberStatistics, number_rows
from manyhead_core.evaluate.survival import TimeStatistics, time_rows

if TYPE_CHECKING:
    from manyhead_core.evaluate.html import Page


@dataclass(frozen=True)
class Kind:
    """One kind of predictions.

    Args:
        name: As metrics.json has it.
        rows: From the table of predictions to what can be scored.
        statistics: Metrics of those rows.
        shown: Metrics that a comparison shows unless told otherwise, the main one first.
        sections: Adds the sections of a report page for these rows and the content of
            metrics.json, the groups among them; only an app's own kind has it.
        meaning: What its metrics mean, by name, where the core does not know them.
    """

    name: str
    rows: Callable[[pd.DataFrame], Any]
    statistics: Build
    shown: tuple[str, ...]
    sections: Callable[[Page, Any, Mapping[str, Any]], None] | None = None
    meaning: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "binary",
            binary_rows,
            BinaryStatistics,
            ("auroc", "average_precision", "logloss", "brier", "expected_calibration_error"),
        ),
        Kind(
            "classes",
            class_rows,
            ClassStatistics,
            ("auroc", "macro_f1", "balanced_accuracy", "accuracy", "kappa", "logloss", "brier"),
        ),
        Kind(
            "regression",
            number_rows,
            NumberStatistics,
            ("mae", "rmse", "r2", "pearson", "spearman"),
        ),
        Kind("survival", time_rows, TimeStatistics, ("concordance",)),
    )
}


def kind_of(results: Results, app: App | None = None) -> Kind:
    """What the results of a run are about; results without a word about it are binary.

    Args:
        results: What the run has left.
        app: Row of its app, for an app that has a kind of its own.

    Raises:
        DataError: The kind is unknown, as that of a newer version.
    """
    name = str(results.metrics.get("kind", "binary"))
    if name in KINDS:
        return KINDS[name]
    if app is not None and app.kind:
        own: Kind = app.load("kind")
        if own.name == name:
            return own
    raise DataError(f"{results.folder}: holds {name} results, which this version cannot read")
