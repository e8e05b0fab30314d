"""Rollout: how much each token of the input reaches each token after several attention layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manyhead_core.errors import ConfigError


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Multiply the maps of successive layers, each averaged with the residual connection.

    `R = 1/2 (P_L + I) ... 1/2 (P_1 + I)` with the mean `P` over the heads of a layer; the rows of
    the result sum to one (Abnar & Zuidema, ACL 2020, equations 1 and 2). Rows are scaled to sum to
    one first; a row of zeros, that of a query without a visible key, keeps its own token.

    Args:
        maps: Attention weights of the layers, first layer first, each
            `(batch, heads, tokens, tokens)` or, averaged over the heads, `(batch, tokens, tokens)`.

    Returns:
        `(batch, tokens, tokens)`, float32 or wider; entry `[b, i, j]` is the share of input token
        `j` in token `i`.

    Raises:
        ConfigError: There is no map, or maps are not square and of one size.
    """
    if not maps:
        raise ConfigError("maps: there are none; pass those of at least one layer")
    sizes = {tuple(layer.shape[-2:]) for layer in maps}
    if len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
        raise ConfigError(f"maps: sizes {sorted(sizes)} are not square and equal in all layers")
    reached = _mixing(maps[0])
    for layer in maps[1:]:
        reached = _mixing(layer) @ reached
    return reached


def gradient_rollout(maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Rollout of the weights that speak for an output: `P = mean over heads of ReLU(P * dy/dP)`.

    The weights of a row are scaled to sum to one, so neither the scale of the output nor that of
    its gradient matters. After Chefer et al., ICCV 2021, equation 13, with the averaging of
    `rollout`.

    Args:
        maps: Attention weights of the layers, first layer first,
            `(batch, heads, tokens, tokens)`.
        gradients: Derivative of the output by each of them, same shapes.

    Returns:
        `(batch, tokens, tokens)`, rows summing to one.

    Raises:
        ConfigError: Numbers or shapes do not fit.
    """
    if [m.shape for m in maps] != [g.shape for g in gradients]:
        raise ConfigError("gradients: must be one for each map and of its shape")
    pairs = zip(maps, gradients, strict=True)
    return rollout([(weights * gradient).relu() for weights, gradient in pairs])


def _mixing(layer: Tensor) -> Tensor:
    """`1/2 (P + I)` of one layer."""
    layer = layer.to(torch.promote_types(layer.dtype, torch.float32))
    if layer.dim() == 4:
        layer = layer.mean(1)
    total = layer.sum(-1, keepdim=True)
    blind = total <= 0
    share = layer / total.masked_fill(blind, 1.0)
    own = torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device)
    return torch.where(blind, own, 0.5 * (share + own))
