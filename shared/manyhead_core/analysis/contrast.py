"""Contrastive maps: one attention map against another, and how a map moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.errors import ConfigError

SHARE = 0.05


def contrast(task: Tensor, reference: Tensor, share: float = SHARE) -> Tensor:
    """Where a map exceeds its reference: `task / (reference + share mean(reference))`, sum 1.

    Two queries, classes or conditions on one input, or a patient against the mean of a cohort.

    Args:
        task: Weights over keys, `(..., keys)`, not negative.
        reference: Same shape, or one that broadcasts to it.
        share: Steadies the quotient where the reference is near zero.

    Returns:
        `(..., keys)`; a task map of zeros gives zeros.
    """
    ratio = task / (reference + share * reference.mean(-1, keepdim=True))
    # A reference of zeros everywhere says nothing: what is left is the task itself.
    ratio = torch.where((reference > 0).any(-1, keepdim=True), ratio, task)
    total = ratio.sum(-1, keepdim=True)
    return torch.where(total > 0, ratio / total, torch.zeros_like(ratio))


def cohort_mean(maps: Sequence[Tensor]) -> Tensor:
    """The mean map of a cohort, `(..., keys)`, as a reference for one patient.

    Args:
        maps: Maps `(batch, ..., keys)` of all batches.

    Raises:
        ConfigError: There is no map.
    """
    count = sum(part.shape[0] for part in maps)
    if count == 0:
        raise ConfigError("maps: there is none; pass the maps of at least one sample")
    return sum((part.sum(0) for part in maps[1:]), maps[0].sum(0)) / count


def shift(maps: Tensor, axis: int = 0) -> Tensor:
    """Where attention arrives: the positive parts of all steps of a map, summed.

    Args:
        maps: Maps of all layers or times, in order along `axis`.
        axis: Layers or times.

    Returns:
        The shape of `maps` without `axis`; zeros for a single map.
    """
    return maps.diff(dim=axis).clamp(min=0).sum(axis)


def upsample(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Token maps in the size of their image, to lay over it.

    Args:
        tokens: `(batch, tokens)`, row-major and without class token.
        grid: Height and width in tokens.
        size: Height and width in pixels.

    Returns:
        `(batch, height, width)`, bilinear.

    Raises:
        ConfigError: The grid does not hold the tokens.
    """
    if tokens.shape[-1] != grid[0] * grid[1]:
        raise ConfigError(f"grid: {grid} does not hold {tokens.shape[-1]} tokens")
    image = tokens.unflatten(-1, grid)[:, None]
    return F.interpolate(image, size, mode="bilinear", align_corners=False)[:, 0]
