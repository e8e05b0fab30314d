"""Metrics of confusion matrices, for many matrices at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Counts:
    """Metrics that depend on the predicted classes only.

    Args:
        overall: By name, `(draws,)` each.
        each: By name, `(draws, classes)` each; NaN where there is nothing to divide by.
    """

    overall: dict[str, Array]
    each: dict[str, Array]


def counts_of(matrix: Array) -> Counts:
    """Metrics of confusion matrices.

    Args:
        matrix: Rows by true class and predicted class, `(draws, classes, classes)`.
    """
    total = matrix.sum(axis=(1, 2))[:, None]
    truth, predicted = matrix.sum(axis=2), matrix.sum(axis=1)
    right = np.diagonal(matrix, axis1=1, axis2=2)
    absent = truth == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = right / truth
        specificity = (total - truth - predicted + right) / (total - truth)
        precision = right / predicted
        f1 = np.where(absent, np.nan, 2 * right / (truth + predicted))
    overall = {
        "accuracy": right.sum(axis=1) / total[:, 0],
        "macro_f1": defined_mean(f1),
        "macro_f1_declared": np.nan_to_num(f1).mean(axis=1),
        "balanced_accuracy": defined_mean(sensitivity),
        "kappa": kappa(matrix),
        "quadratic_kappa": kappa(matrix, quadratic=True),
    }
    each = {"sensitivity": sensitivity, "specificity": specificity}
    return Counts(overall, each | {"precision": precision, "f1": f1})


def kappa(matrix: Array, *, quadratic: bool = False) -> Array:
    """Cohen's kappa, `(draws,)`; NaN where chance alone would always agree.

    Args:
        matrix: Rows by true class and predicted class, `(draws, classes, classes)`.
        quadratic: Weight a disagreement by the square of the distance of the class numbers
            (Cohen 1968) instead of counting all alike.
    """
    place = np.arange(matrix.shape[1])
    distance = place[:, None] - place[None, :]
    cost = (distance**2).astype(float) if quadratic else (distance != 0).astype(float)
    total = matrix.sum(axis=(1, 2))
    seen = (matrix * cost).sum(axis=(1, 2))
    expected = np.einsum("di,ij,dj->d", matrix.sum(axis=2), cost, matrix.sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Array = 1 - seen * total / expected
    return np.where(expected > 0, value, np.nan)


def defined_mean(values: Array) -> Array:
    """Mean over the classes that are not NaN, `(draws,)`; NaN where none is."""
    good = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Array = np.where(good, values, 0).sum(axis=1) / good.sum(axis=1)
    return mean
