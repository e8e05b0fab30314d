"""Bags that are too large to hold: the same numbers, a chunk of patches at a time.

Everything that a network keeps per patch is computed twice: once forward, and again while
gradients run back. What stays in memory for a whole slide is one score per patch and branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Embed = Callable[[Tensor], Tensor]


def in_chunks(function: Embed, features: Tensor, size: int) -> Tensor:
    """`function(features)` for a function of single patches.

    Args:
        function: `(patches, feature_dim)` to `(patches, anything)`.
        features: `(total, feature_dim)`; may be 16 bits and lie in a file.
        size: Patches of a chunk.
    """
    parts = [_again(function, features[start:end]) for start, end in _spans(len(features), size)]
    return torch.cat(parts) if parts else function(features)


def weighted_sums(
    embed: Embed, features: Tensor, weights: Tensor, cu_seqlens: Tensor, size: int
) -> Tensor:
    """Sums of the embedded patches of each bag, `(bags, rows, dim)`.

    Args:
        embed: `(patches, feature_dim)` to `(patches, dim)`.
        features: `(total, feature_dim)`.
        weights: `(total, rows)`.
        cu_seqlens: Where the bags start, and last the total, `(bags + 1,)`.
        size: Patches of a chunk.
    """
    bounds = cu_seqlens.tolist()
    sums = []
    for first, last in pairwise(bounds):
        total = None
        for start, end in _spans(last - first, size):
            here = slice(first + start, first + end)
            part = _again(_product, embed, features[here], weights[here])
            total = part if total is None else total + part
        sums.append(_product(embed, features[:0], weights[:0]) if total is None else total)
    return torch.stack(sums)


def _product(embed: Embed, features: Tensor, weights: Tensor) -> Tensor:
    return weights.T @ embed(features)


def _again(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    """Call it now, and once more when gradients need what it computed."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    found: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found


def _spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)
