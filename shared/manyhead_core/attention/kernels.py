"""The forms in which softmax attention is computed; all give the same result.

Both take queries, keys and values as `attend` does, with as many key heads as query heads, and
run outside autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_scores(
    query: Tensor, key: Tensor, *, mask: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    """Scores before the softmax in float32, and which rows see no key at all.

    Rows without a visible key hold zeros instead of minus infinity: a softmax over minus
    infinities is NaN, and so is its gradient even when it is multiplied by zero afterwards.

    Returns:
        Scores `(batch, heads, queries, keys)`; blind rows `(batch, heads, queries, 1)`, or None
        when neither a mask nor a bias can hide anything.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(precise) * scale) @ key.to(precise).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if (mask is None and bias is None) or scores.shape[-1] == 0:
        return scores, None
    blind = scores.amax(-1, keepdim=True) == float("-inf")
    return scores.masked_fill(blind, 0.0), blind


def attention_weights(scores: Tensor, blind: Tensor | None) -> Tensor:
    """Softmax over the keys; blind rows are zero."""
    weights = scores.softmax(-1)
    return weights if blind is None else weights.masked_fill(blind, 0.0)


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Two matrix products with a softmax between; returns the output and the scores' lse source."""
    scores, blind = attention_scores(query, key, mask=mask, bias=bias, scale=scale)
    weights = attention_weights(scores, blind)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    out = (weights @ value.to(weights.dtype)).to(value.dtype)
    return out, scores if blind is None else scores.masked_fill(blind, float("-inf"))


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """PyTorch's fused kernels.

    A mask and a bias become one float tensor, because the kernels take one argument only.
    """
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale
    )
    return out.to(value.dtype)
