"""Attention maps on request, computed in a pass of their own over the wanted rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manyhead_core.attention.kernels import attention_scores, attention_weights

# Largest number of weights held at once while maps are reduced: 256 MiB of float32.
CHUNK_WEIGHTS = 2**26


@dataclass(frozen=True, eq=False)
class MapRequest:
    """Which attention weights to return, and in which form.

    The weights are those before dropout. The main computation keeps its fast kernel.

    Args:
        queries: All query rows, the first one, or the rows of an index tensor `(rows,)`.
        heads: Heads to look at; None takes all.
        reduce: None gives `(batch, heads, queries, keys)`; `head_mean` averages over heads,
            `(batch, queries, keys)`; `received` sums over queries, `(batch, heads, keys)`;
            `entropy` is that of each row in nats, `(batch, heads, queries)`.
        dtype: Number format of the result.
        detach: False keeps the graph, so that a loss on the maps has gradients.
    """

    queries: Literal["all", "first"] | Tensor = "all"
    heads: Sequence[int] | None = None
    reduce: Literal["head_mean", "received", "entropy"] | None = None
    dtype: torch.dtype = torch.float32
    detach: bool = True


def attention_maps(
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    request: MapRequest,
) -> Tensor:
    """Weights of the requested rows, before dropout; keys have as many heads as queries."""
    shape = (*query.shape[:3], key.shape[2])
    mask, bias = (None if x is None else x.expand(shape) for x in (mask, bias))
    with torch.no_grad() if request.detach else nullcontext():
        query = pick_rows(query, request)
        mask, bias = (None if x is None else pick_rows(x, request) for x in (mask, bias))
        if request.heads is not None:
            key = key[:, list(request.heads)]
        parts = []
        for rows in _chunks(query, key.shape[2]):
            picked = (None if x is None else x[:, :, rows] for x in (mask, bias))
            part_mask, part_bias = picked
            scores, blind = attention_scores(
                query[:, :, rows], key, mask=part_mask, bias=part_bias, scale=scale
            )
            parts.append(reduce_weights(attention_weights(scores, blind), request.reduce))
        if request.reduce == "received":
            return torch.stack(parts).sum(0).to(request.dtype)
        axis = 1 if request.reduce == "head_mean" else 2
        return torch.cat(parts, axis).to(request.dtype)


def pick_rows(tensor: Tensor, request: MapRequest) -> Tensor:
    """The heads and query rows that a request names, of `(batch, heads, queries, ...)`."""
    if request.heads is not None:
        tensor = tensor[:, list(request.heads)]
    if isinstance(request.queries, Tensor):
        return tensor[:, :, request.queries]
    return tensor[:, :, :1] if request.queries == "first" else tensor


def _chunks(query: Tensor, num_keys: int) -> list[slice]:
    batch, heads, rows = query.shape[:3]
    # An exported or compiled graph has one chunk: its batch size is not known.
    if torch.compiler.is_compiling() or batch * heads * rows * num_keys <= CHUNK_WEIGHTS:
        return [slice(None)]
    step = max(1, CHUNK_WEIGHTS // max(1, batch * heads * num_keys))
    return [slice(start, start + step) for start in range(0, rows, step)]


def reduce_weights(weights: Tensor, reduce: str | None) -> Tensor:
    """Weights `(batch, heads, queries, keys)` in the form that a request asks for."""
    if reduce == "head_mean":
        return weights.mean(1)
    if reduce == "received":
        return weights.sum(2)
    if reduce == "entropy":
        return torch.special.entr(weights).sum(-1)
    return weights
