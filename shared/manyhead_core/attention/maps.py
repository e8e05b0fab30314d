"""Attention maps on request, computed in a pass of their own over the wanted rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from manyhead_core.attention.kernels import share_heads
from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.attention.scores import (
    CHUNK_WEIGHTS,
    Rows,
    Scoring,
    attention_scores,
    attention_weights,
    row_chunks,
)

if TYPE_CHECKING:
    from manyhead_core.attention.biases import Bias, ScoreMod

__all__ = [
    "CHUNK_WEIGHTS",
    "MapRequest",
    "attention_maps",
    "pick_rows",
    "reduce_weights",
    "scored_maps",
]


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
    mask: Tensor | Mask | None,
    bias: Tensor | Bias | None,
    scale: float,
    request: MapRequest,
    score_mod: ScoreMod | None = None,
) -> Tensor:
    """Weights of the requested rows, before dropout; takes what `attend` does, outside autocast."""
    return scored_maps(query, key, Scoring(mask, bias, score_mod, scale), request)


def scored_maps(query: Tensor, key: Tensor, scoring: Scoring, request: MapRequest) -> Tensor:
    """As `attention_maps`, in parts that fit in memory."""
    shape = Shape.of(query, key)
    with torch.no_grad() if request.detach else nullcontext():
        key, _ = share_heads(query, key, key)
        if request.heads is not None:
            query, key = query[:, list(request.heads)], key[:, list(request.heads)]
        # A generator: sums over queries never hold more than one chunk.
        parts = (
            _reduced_rows(query, key, scoring, shape, rows, request)
            for rows in _chunks(shape, query.shape[1], request)
        )
        if request.reduce == "received":
            return reduce(torch.add, parts).to(request.dtype)
        axis = 1 if request.reduce == "head_mean" else 2
        return torch.cat(list(parts), axis).to(request.dtype)


def _reduced_rows(
    query: Tensor, key: Tensor, scoring: Scoring, shape: Shape, rows: Rows, request: MapRequest
) -> Tensor:
    terms = scoring.part(shape, rows, request.heads)
    scores, blind = attention_scores(query[:, :, rows], key, scoring.scale, terms)
    return reduce_weights(attention_weights(scores, blind), request.reduce)


def pick_rows(tensor: Tensor, request: MapRequest) -> Tensor:
    """The heads and query rows that a request names, of `(batch, heads, queries, ...)`."""
    if request.heads is not None:
        tensor = tensor[:, list(request.heads)]
    if isinstance(request.queries, Tensor):
        return tensor[:, :, request.queries]
    return tensor[:, :, :1] if request.queries == "first" else tensor


def _chunks(shape: Shape, heads: int, request: MapRequest) -> list[Rows]:
    """The wanted query rows in parts whose weights fit in memory."""
    if isinstance(request.queries, Tensor):
        rows = request.queries
        return [rows[part] for part in row_chunks(shape.batch, heads, rows.shape[0], shape.keys)]
    count = min(1, shape.queries) if request.queries == "first" else shape.queries
    return [*row_chunks(shape.batch, heads, count, shape.keys)]


def reduce_weights(weights: Tensor, reduce: str | None) -> Tensor:
    """Weights `(batch, heads, queries, keys)` in the form that a request asks for."""
    if reduce == "head_mean":
        return weights.mean(1)
    if reduce == "received":
        return weights.sum(2)
    if reduce == "entropy":
        return torch.special.entr(weights).sum(-1)
    return weights
