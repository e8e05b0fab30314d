"""Gradient clipping by norm that also takes the sparse gradients of embedding tables."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def clip_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `max_norm`.

    Args:
        parameters: Parameters with dense or sparse gradients.
        max_norm: Largest norm.

    Returns:
        Norm before.
    """
    values = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            # Rows that occur twice count as one row with the sum.
            parameter.grad = gradient = gradient.coalesce()
            values.append(gradient.values())
        elif gradient is not None:
            values.append(gradient)
    total = torch.nn.utils.get_total_norm(values)
    factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for value in values:
        value.mul_(factor.to(value.device))
    return total
