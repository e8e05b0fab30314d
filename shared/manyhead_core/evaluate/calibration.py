"""Do probabilities mean what they say: reliability bins, calibration error, temperature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax

from manyhead_core.errors import DataError

Array = NDArray[Any]

NUM_BINS = 15
CLIP = 1e-6
LIMITS = (0.01, 100.0)


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability diagram.

    Args:
        low: Lower edge of the predicted probability.
        high: Upper edge.
        count: Rows in the bin.
        predicted: Mean probability in the bin.
        observed: Share of the rows that are positive.
    """

    low: float
    high: float
    count: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Temperature:
    """`sigmoid(logit / temperature + bias)`, or `softmax(logits / temperature)`.

    Args:
        temperature: Above 1 makes probabilities less extreme.
        bias: Added to the scaled logit.
    """

    temperature: float
    bias: float = 0.0

    def apply(self, probabilities: Array) -> Array:
        """Calibrated probabilities, same shape.

        Args:
            probabilities: Of class 1, `(rows,)`, or of all classes, `(rows, classes)`.
        """
        if probabilities.ndim == 2:
            among: Array = softmax(to_log(probabilities) / self.temperature, axis=1)
            return among
        calibrated: Array = expit(to_logit(probabilities) / self.temperature + self.bias)
        return calibrated


def bin_index(probabilities: Array, num_bins: int = NUM_BINS) -> Array:
    """Number of the equal-width bin of each probability; 1 falls into the last."""
    return np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)


def reliability(labels: Array, probabilities: Array, num_bins: int = NUM_BINS) -> list[Bin]:
    """Equal-width bins that hold at least one row.

    Args:
        labels: 0 or 1, `(rows,)`.
        probabilities: Of class 1, `(rows,)`.
        num_bins: Number of bins over [0, 1].
    """
    index = bin_index(probabilities, num_bins)
    counts = np.bincount(index, minlength=num_bins)
    predicted = np.bincount(index, weights=probabilities, minlength=num_bins)
    observed = np.bincount(index, weights=labels, minlength=num_bins)
    return [
        Bin(
            k / num_bins,
            (k + 1) / num_bins,
            int(n),
            float(predicted[k] / n),
            float(observed[k] / n),
        )
        for k, n in enumerate(counts)
        if n
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean of |observed - predicted| weighted by the rows of a bin."""
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.observed - part.predicted) for part in bins) / total


def calibration_json(bins: list[Bin]) -> dict[str, Any]:
    """What metrics.json says of the bins."""
    return {"bins": [asdict(part) for part in bins], "num_bins": NUM_BINS, "width": "equal"}


def fit_temperature(logits: Array, labels: Array, *, bias: bool = False) -> Temperature:
    """Temperature (and bias) of least log loss.

    Args:
        logits: `(rows,)` of class 1, or `(rows, classes)`.
        labels: 0 or 1, or class numbers, `(rows,)`.
        bias: Also fit a bias; binary only.

    Raises:
        DataError: The labels are of one class: any temperature would be extreme.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("calibration: the labels are all of one class; nothing can be fitted")
    start = np.zeros(2 if bias else 1)
    bounds = [tuple(np.log(LIMITS)), (-20.0, 20.0)][: len(start)]
    found = minimize(_loss, start, args=(logits, labels), method="L-BFGS-B", bounds=bounds)
    return Temperature(float(np.exp(found.x[0])), float(found.x[1]) if bias else 0.0)


def log_loss(labels: Array, probabilities: Array) -> float:
    """Mean natural log loss, probabilities clipped to [1e-6, 1 - 1e-6]."""
    return float(row_losses(labels, probabilities).mean())


def row_losses(labels: Array, probabilities: Array) -> Array:
    """Natural log loss of each row, probabilities clipped to [1e-6, 1 - 1e-6]."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    losses: Array = -np.where(labels > 0.5, np.log(clipped), np.log1p(-clipped))
    return losses


def to_logit(probabilities: Array) -> Array:
    """Logits of probabilities, kept finite at 0 and 1."""
    edge = 1e-15
    logits: Array = logit(np.clip(probabilities, edge, 1 - edge))
    return logits


def to_log(probabilities: Array) -> Array:
    """Logits of the probabilities of several classes, kept finite at 0."""
    logits: Array = np.log(np.clip(probabilities, 1e-15, 1))
    return logits


def class_losses(labels: Array, probabilities: Array) -> Array:
    """Natural log loss of each row, probabilities clipped to at least 1e-6.

    Args:
        labels: Class numbers, `(rows,)`.
        probabilities: Of all classes, `(rows, classes)`.
    """
    own = probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    losses: Array = -np.log(np.clip(own, CLIP, 1))
    return losses


def top_reliability(labels: Array, probabilities: Array) -> list[Bin]:
    """Bins of the largest probability; observed is the share of rows where it is right.

    Args:
        labels: Class numbers, `(rows,)`.
        probabilities: Of all classes, `(rows, classes)`.
    """
    return reliability(probabilities.argmax(axis=1) == labels, probabilities.max(axis=1))


def _loss(parameters: Array, logits: Array, labels: Array) -> float:
    scaled = logits / np.exp(parameters[0])
    if logits.ndim == 2:
        rows = np.arange(len(labels))
        return float(-log_softmax(scaled, axis=1)[rows, labels.astype(int)].mean())
    scaled = scaled + (parameters[1] if len(parameters) > 1 else 0.0)
    return float(np.logaddexp(0.0, np.where(labels > 0.5, -scaled, scaled)).mean())
