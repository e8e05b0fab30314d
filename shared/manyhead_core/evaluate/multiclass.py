"""Evaluation of a classifier that gives a probability for each of several classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manyhead_core.errors import DataError
from manyhead_core.evaluate.binary import affordable, delong_name
from manyhead_core.evaluate.calibration import (
    NUM_BINS,
    bin_index,
    calibration_json,
    class_losses,
    reliability,
    top_reliability,
)
from manyhead_core.evaluate.confusion import counts_of, defined_mean
from manyhead_core.evaluate.evaluation import (
    Evaluation,
    Limits,
    each_group,
    estimates,
    resampled,
    segments_of,
    values_of,
)
from manyhead_core.evaluate.intervals import Estimate, delong, delong_interval
from manyhead_core.evaluate.ranking import Ranking, Sensitivity
from manyhead_core.evaluate.rows import Rows, check, group_codes, kept_rows, numbers, row_notes

__all__ = ["ClassRows", "ClassStatistics", "class_columns", "class_rows", "evaluate_multiclass"]

Array = NDArray[Any]

PREFIX = "score_"
# Probabilities written with few digits miss 1 by a little.
SUM_TOLERANCE = 1e-3
SPECIFICITIES = {"sensitivity_at_specificity_90": 0.90, "sensitivity_at_specificity_95": 0.95}
SHOWN = (
    "auroc", "average_precision", "macro_f1", "macro_f1_declared", "accuracy", "balanced_accuracy",
    "kappa", "quadratic_kappa", "logloss", "brier", "expected_calibration_error",
    "classwise_calibration_error",
)  # fmt: skip
IN_SEGMENTS = ("auroc", "macro_f1", "balanced_accuracy", "accuracy", "logloss")
# A resample repeats rows, and that alone moves observed shares away from predicted ones: the
# percentiles would lie above the estimate.
CALIBRATION_ERRORS = ("expected_calibration_error", "classwise_calibration_error")
PER_CLASS = ("auroc", "average_precision", "sensitivity", "specificity", "precision", "f1")


@dataclass(frozen=True, kw_only=True)
class ClassRows(Rows):
    """The rows of a predictions table that can be scored.

    Labels are class numbers, `(rows,)`; scores are probabilities, `(rows, classes)`.

    Args:
        names: Of the classes, in the order of their columns.
    """

    names: tuple[str, ...]

    @property
    def codes(self) -> Array:
        """Class numbers as integers, `(rows,)`."""
        return self.labels.astype(np.int64)


class ClassStatistics:
    """All metrics as a function of row multiplicities, for the estimate and for every draw.

    Classes without a row, or with all rows, have no area and stay out of its mean.

    Args:
        rows: What is evaluated.
    """

    def __init__(self, rows: ClassRows) -> None:
        self._number = len(rows.names)
        two = self._number == 2
        extra = tuple(SPECIFICITIES) if two else ()
        shown = tuple(name for name in SHOWN if not (two and name == "quadratic_kappa"))
        self.headline = shown + extra
        each = tuple(f"{name}:{known}" for name in PER_CLASS for known in rows.names)
        self.names = self.headline + each
        label, scores = rows.codes, rows.scores
        truth = label[:, None] == np.arange(self._number)
        predicted = scores.argmax(axis=1)
        self._cells = _one_hot(label * self._number + predicted, self._number**2)
        self._rankings = [Ranking(truth[:, k], scores[:, k]) for k in range(self._number)]
        self._sensitivity = Sensitivity(truth[:, 1], scores[:, 1]) if two else None
        squares = ((scores - truth) ** 2).sum(axis=1) / (2 if two else 1)
        self._sums = np.stack([np.ones(len(label)), class_losses(label, scores), squares], axis=1)
        top = scores.max(axis=1)
        self._top_gap = _gaps(top, predicted == label)
        self._class_gap = [_gaps(scores[:, k], truth[:, k]) for k in range(self._number)]

    def __call__(self, weights: Array) -> Array:
        """Values `(draws, metrics)` in the order of `names`.

        Args:
            weights: Multiplicities, `(draws, rows)`.
        """
        areas = [ranking.areas(np.take(weights, ranking.order, 1)) for ranking in self._rankings]
        auroc, precision = (np.stack(values, axis=1) for values in zip(*areas, strict=True))
        matrix = (weights @ self._cells).reshape(len(weights), self._number, self._number)
        counts = counts_of(matrix)
        count, loss, squares = (weights @ self._sums).T
        total = weights.sum(axis=1)
        classwise = np.stack([_error(weights, gap, total) for gap in self._class_gap], axis=1)
        two = self._number == 2
        found = counts.overall | {
            "auroc": defined_mean(auroc),
            "average_precision": precision[:, 1] if two else defined_mean(precision),
            "logloss": loss / count,
            "brier": squares / count,
            "expected_calibration_error": _error(weights, self._top_gap, total),
            "classwise_calibration_error": classwise.mean(axis=1),
        }
        if self._sensitivity is not None:
            found |= {
                name: self._sensitivity.at(weights, value) for name, value in SPECIFICITIES.items()
            }
        each = counts.each | {"auroc": auroc, "average_precision": precision}
        columns = [found[name] for name in self.headline]
        columns += [each[name][:, k] for name in PER_CLASS for k in range(self._number)]
        return np.stack(columns, axis=1)


def evaluate_multiclass(frame: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> Evaluation:
    """Metrics of class probabilities against class numbers, with 95 % intervals.

    The predicted class is the one of the largest probability. For two classes the second one is
    the positive class.

    Args:
        frame: `label` (class number), `score_<class>` for each class in order (probabilities that
            add up to 1), and where known `group`, `site`, `status` and `segment_<name>`. Rows
            whose status is not ok are left out and counted.
        draws: Bootstrap resamples, of groups when there are groups, else of rows.
        seed: Seed of the resamples.

    Raises:
        DataError: A column is missing, no row is left, or a label or score cannot be used.
    """
    rows = class_rows(frame)
    statistics = ClassStatistics(rows)
    values = values_of(statistics, rows)
    limits, interval = _intervals(rows, statistics, draws, seed)
    found = estimates(values, limits)
    return Evaluation(
        num_samples=len(rows.labels),
        num_groups=rows.num_groups,
        num_excluded=rows.num_excluded,
        metrics={name: found[name] for name in statistics.headline},
        interval=interval,
        calibration=_calibration(rows),
        baseline=_baseline(rows),
        segments=segments_of(rows, ClassStatistics, IN_SEGMENTS, draws, seed),
        groups=each_group(rows, ClassStatistics, IN_SEGMENTS),
        notes=_notes(rows),
        kind="classes",
        classes=_classes(rows, found),
        details={"confusion": {"classes": list(rows.names), "rows_are_labels": confusion(rows)}},
    )


def class_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns with the probability of a class, in the order of the classes."""
    return [name for name in map(str, frame) if name.startswith(PREFIX)]


def class_rows(frame: pd.DataFrame) -> ClassRows:
    """Check a predictions table and take out what can be scored.

    Raises:
        DataError: A column is missing, no row is left, or a label or score cannot be used.
    """
    columns = class_columns(frame)
    if len(columns) < 2:
        raise DataError(f"predictions: {len(columns)} columns {PREFIX}<class>; two are needed")
    kept = kept_rows(frame, ("label",))
    labels = numbers(kept, "label")
    scores = np.stack([numbers(kept, name) for name in columns], axis=1)
    known = np.isin(labels, np.arange(len(columns)))
    check(kept, "label", known, f"no class number from 0 to {len(columns) - 1}")
    inside = np.asarray(((scores >= 0) & (scores <= 1)).all(axis=1))
    check(kept, f"{PREFIX}<class>", inside, "no probability in [0, 1]")
    whole = np.abs(scores.sum(axis=1) - 1) <= SUM_TOLERANCE
    check(kept, f"{PREFIX}<class>", whole, "not 1 in sum over the classes")
    groups, number, named = group_codes(kept)
    return ClassRows(
        frame=kept,
        labels=labels,
        scores=scores,
        groups=groups,
        num_groups=number,
        named=named,
        num_excluded=len(frame) - len(kept),
        names=tuple(name.removeprefix(PREFIX) for name in columns),
    )


def confusion(rows: ClassRows) -> list[list[int]]:
    """Rows by true class (first index) and predicted class (second)."""
    number = len(rows.names)
    cells = rows.codes * number + rows.scores.argmax(axis=1)
    matrix: list[list[int]] = (
        np.bincount(cells, minlength=number**2).reshape(number, number).tolist()
    )
    return matrix


def _one_hot(codes: Array, number: int) -> Array:
    return (codes[:, None] == np.arange(number)).astype(np.float64)


def _gaps(probabilities: Array, truth: Array) -> Array:
    """Predicted less observed of each row in the column of its bin, `(rows, bins)`."""
    return _one_hot(bin_index(probabilities), NUM_BINS) * (probabilities - truth)[:, None]


def _error(weights: Array, gaps: Array, total: Array) -> Array:
    error: Array = np.abs(weights @ gaps).sum(axis=1) / total
    return error


def _intervals(
    rows: ClassRows, statistics: ClassStatistics, draws: int, seed: int
) -> tuple[dict[str, Limits], dict[str, Any]]:
    number = len(rows.labels)
    limits, interval = resampled(rows, statistics, affordable(draws, number), seed)
    interval["auroc"] = interval["method"]
    for name in CALIBRATION_ERRORS:
        limits.pop(name, None)
    if limits and len(rows.names) == 2 and 0 < rows.labels.sum() < number:
        area = delong_interval(delong(rows.labels, rows.scores[:, 1], rows.groups))
        limits |= dict.fromkeys(("auroc", *(f"auroc:{name}" for name in rows.names)), area)
        interval["auroc"] = delong_name(rows)
    return limits, interval


def _classes(rows: ClassRows, found: dict[str, Estimate]) -> list[dict[str, Any]]:
    matrix = np.array(confusion(rows))
    entries = []
    for k, name in enumerate(rows.names):
        metrics = {metric: asdict(found[f"{metric}:{name}"]) for metric in PER_CLASS}
        support, predicted = int(matrix[k].sum()), int(matrix[:, k].sum())
        entries.append({"class": name, "support": support, "predicted": predicted, **metrics})
    return entries


def _calibration(rows: ClassRows) -> dict[str, Any]:
    top = top_reliability(rows.labels, rows.scores)
    each = {
        name: calibration_json(reliability(rows.codes == k, rows.scores[:, k]))["bins"]
        for k, name in enumerate(rows.names)
    }
    return calibration_json(top) | {"of": "largest probability", "classes": each}


def _baseline(rows: ClassRows) -> dict[str, Any]:
    """What predicting the frequencies of the classes for all rows would give."""
    share = np.bincount(rows.codes, minlength=len(rows.names)) / len(rows.labels)
    constant = ClassRows(**vars(rows) | {"scores": np.tile(share, (len(rows.labels), 1))})
    values = values_of(ClassStatistics(constant), constant)
    rates = dict(zip(rows.names, share.tolist(), strict=True))
    shown = {name: value for name, value in values.items() if ":" not in name}
    return {"name": "class frequencies", "rates": rates, **shown}


def _notes(rows: ClassRows) -> list[str]:
    notes = row_notes(rows)
    counts = np.bincount(rows.codes, minlength=len(rows.names))
    absent = [name for name, count in zip(rows.names, counts, strict=True) if not count]
    if absent:
        notes.append(
            f"no row of class {', '.join(absent)}: without metrics of its own and left out of "
            "means over classes; macro_f1_declared counts it as 0"
        )
    if len(rows.labels) in counts:
        notes.append("all labels are of one class: ranking metrics are undefined")
    if len(rows.names) == 2:
        notes.append(
            f"the positive class is {rows.names[1]}; sensitivity at a specificity takes its "
            "threshold from these very rows, so it is what the ranking allows and not what a "
            "threshold fixed beforehand would reach"
        )
    return notes
