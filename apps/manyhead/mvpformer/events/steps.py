"""Metrics of single steps: each decision against its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead_core.evaluate.ranking import Ranking

Array = npt.NDArray[Any]

COUNTS = ("tp", "fp", "fn", "tn")
STEP_METRICS = ("sensitivity", "specificity", "precision", "f1", "kappa")


def step_counts(label: npt.ArrayLike, detected: npt.ArrayLike) -> dict[str, int]:
    """Steps by truth and decision: `tp`, `fp`, `fn`, `tn`.

    Args:
        label: Whether each step is part of a seizure, `(steps,)`.
        detected: Whether it was called one, `(steps,)`.
    """
    truth, called = np.asarray(label) > 0.5, np.asarray(detected) > 0.5
    return {
        "tp": int((truth & called).sum()),
        "fp": int((~truth & called).sum()),
        "fn": int((truth & ~called).sum()),
        "tn": int((~truth & ~called).sum()),
    }


def step_metrics(counts: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    """Sensitivity, specificity, precision, F1 and Cohen's kappa of counts, elementwise.

    NaN where there is nothing to divide by; kappa is NaN where truth and decisions are both
    constant.

    Args:
        counts: `tp`, `fp`, `fn` and `tn`, all of one shape.
    """
    tp, fp, fn, tn = (np.asarray(counts[name], np.float64) for name in COUNTS)
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "precision": ratio(tp, tp + fp),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "kappa": kappa(tp, fp, fn, tn),
    }


def kappa(tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
    """Cohen's kappa, elementwise; NaN where truth and decisions are both constant."""
    true, false, called, quiet = tp + fn, fp + tn, tp + fp, fn + tn
    # (po - pe) / (1 - pe), multiplied by the square of the number of steps.
    value = ratio(2 * (tp * tn - fp * fn), true * quiet + false * called)
    constant = (true * false == 0) & (called * quiet == 0)
    return np.where(constant, np.nan, value)


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Array:
    """`part / whole`, NaN where `whole` is 0."""
    above, below = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    value: Array = np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
    return value


def areas(label: npt.ArrayLike, probability: npt.ArrayLike) -> tuple[float, float]:
    """Area under the ROC curve and average precision; NaN when only one class is there.

    Args:
        label: 0 or 1, `(steps,)`.
        probability: `(steps,)`.
    """
    ranking = Ranking(label, probability)
    auroc, precision = ranking.areas(np.ones((1, len(ranking.order))))
    return float(auroc[0]), float(precision[0])
