"""Learning rate of the authors' code: linear warm-up, half a cosine, set before every step."""

from __future__ import annotations

import math


def learning_rate(
    epoch: float, *, peak: float, floor: float = 0.0, warmup: float = 0.0, epochs: float
) -> float:
    """Learning rate at a place of the training.

    Args:
        epoch: Epochs done, with fractions: `epoch + step / steps_per_epoch`.
        peak: Largest rate.
        floor: Rate at the end.
        warmup: Epochs of the linear rise from zero.
        epochs: Epochs in all.
    """
    if epoch < warmup:
        return peak * epoch / warmup
    done = (epoch - warmup) / (epochs - warmup)
    return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * done))
