"""Scores of queries and keys before the softmax, of whole calls and of some of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.attention.settings import exporting

if TYPE_CHECKING:
    from manyhead_core.attention.biases import Bias, ScoreMod

# Largest number of weights held at once: 256 MiB of float32.
CHUNK_WEIGHTS = 2**26

Rows = slice | Tensor


class Terms(NamedTuple):
    """What is done to scaled products, for the rows they are of.

    Args:
        mask: True where attending is allowed; broadcasts over the scores, as the bias does.
        bias: Added.
        change: Applied after that.
    """

    mask: Tensor | None = None
    bias: Tensor | None = None
    change: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a call of `attend` turns products of queries and keys into scores.

    Args:
        mask: Which pairs may attend.
        bias: Added to the scaled products.
        score_mod: Function of score, batch element, head, query and key, after the bias.
        scale: Factor of the products.
    """

    mask: Tensor | Mask | None
    bias: Tensor | Bias | None
    score_mod: ScoreMod | None
    scale: float

    def whole(self, shape: Shape) -> Terms:
        """For all rows."""
        mask, bias, mod = self.mask, self.bias, self.score_mod
        if mask is not None and not isinstance(mask, Tensor):
            mask = mask.dense(shape)
        if bias is not None and not isinstance(bias, Tensor):
            bias = bias.dense(shape)
        return Terms(mask, bias, None if mod is None else bound(mod, positions(shape)))

    def part(self, shape: Shape, rows: Rows, heads: Sequence[int] | None = None) -> Terms:
        """For some rows and heads, without anything of the size of all scores.

        Args:
            shape: Of the whole call.
            rows: Numbers of the queries.
            heads: Numbers of the heads; None for all.
        """
        batch, head, query, key = positions(shape)
        query = query[rows]
        if heads is not None:
            head = head[list(heads)]
        index = (batch, head, query, key)
        mask, bias, change = self.mask, self.bias, None
        if isinstance(mask, Mask):
            mask = mask.mask_mod(shape)(*index)
        elif mask is not None:
            mask = pick(mask, rows, heads)
        mods = [] if self.score_mod is None else [self.score_mod]
        if isinstance(bias, Tensor):
            bias = pick(bias, rows, heads)
        elif bias is not None:
            mods, bias = [bias.score_mod(shape), *mods], None
        for mod in mods:
            change = bound(mod, index, change)
        return Terms(mask, bias, change)


def positions(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers of batch element, head, query and key, each along its own axis of the scores."""
    device = shape.device
    return (
        torch.arange(shape.batch, device=device)[:, None, None, None],
        torch.arange(shape.heads, device=device)[:, None, None],
        torch.arange(shape.queries, device=device)[:, None],
        torch.arange(shape.keys, device=device),
    )


def bound(
    mod: ScoreMod,
    index: tuple[Tensor, ...],
    before: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], Tensor]:
    """A function of the scores alone, applied after `before`."""

    def change(scores: Tensor) -> Tensor:
        return mod(scores if before is None else before(scores), *index)

    return change


def pick(tensor: Tensor, rows: Rows, heads: Sequence[int] | None) -> Tensor:
    """Rows and heads of a tensor that broadcasts over the scores."""
    if heads is not None and tensor.dim() > 2 and tensor.shape[-3] != 1:
        tensor = tensor[..., list(heads), :, :]
    if tensor.dim() > 1 and tensor.shape[-2] != 1:
        tensor = tensor[..., rows, :]
    return tensor


def attention_scores(
    query: Tensor, key: Tensor, scale: float, terms: Terms
) -> tuple[Tensor, Tensor | None]:
    """Scores before the softmax in float32, and which rows see no key at all.

    Rows without a visible key hold finite numbers: a softmax over minus infinities is NaN, and so
    is its gradient even when it is multiplied by zero afterwards.

    Returns:
        Scores `(batch, heads, queries, keys)`; blind rows, True where results have to be set to
        zero, broadcastable to `(batch, heads, queries, 1)`, or None when nothing can hide a key.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(precise) * scale) @ key.to(precise).transpose(-2, -1)
    if terms.change is not None:
        return _changed(scores, terms)
    mask, bias, blind = _opened(terms)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores, blind


def _opened(terms: Terms) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Mask and bias that show everything to blind rows, and which rows these are.

    They are smaller than the scores where they broadcast, so that it costs next to nothing.
    """
    mask, bias = terms.mask, terms.bias
    if bias is None:
        if mask is None:
            return None, None, None
        blind = ~mask.any(-1, keepdim=True)
        return mask | blind, None, blind
    hidden = bias == float("-inf")
    if mask is None:
        blind = hidden.all(-1, keepdim=True)
        return None, bias.masked_fill(blind, 0.0), blind
    visible = mask & ~hidden
    blind = ~visible.any(-1, keepdim=True)
    return visible | blind, bias.masked_fill(hidden, 0.0), blind


def _changed(scores: Tensor, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """The same where a function of the scores comes last; it may hide keys too."""
    if terms.bias is not None:
        scores = scores + terms.bias
    if terms.change is not None:
        scores = terms.change(scores)
    if terms.mask is not None:
        scores = scores.masked_fill(~terms.mask, float("-inf"))
    if scores.shape[-1] == 0:
        return scores, None
    blind = scores.amax(-1, keepdim=True) == float("-inf")
    return scores.masked_fill(blind, 0.0), blind


def attention_weights(scores: Tensor, blind: Tensor | None) -> Tensor:
    """Softmax over the keys; blind rows are zero."""
    weights = scores.softmax(-1)
    return weights if blind is None else weights.masked_fill(blind, 0.0)


def row_chunks(batch: int, heads: int, rows: int, keys: int) -> list[slice]:
    """Slices of the queries whose weights fit in `CHUNK_WEIGHTS`."""
    # An exported or compiled graph has one chunk: its batch size is not known.
    if torch.compiler.is_compiling() or exporting() or batch * heads * rows * keys <= CHUNK_WEIGHTS:
        return [slice(0, rows)]
    step = max(1, CHUNK_WEIGHTS // (batch * heads * keys))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
