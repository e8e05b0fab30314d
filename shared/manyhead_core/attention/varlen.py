"""Attention over packed sequences: padding is left out instead of computed and hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.bias_base import Bias, ScoreMod
from manyhead_core.attention.mask_base import Both, Mask, Shape, on
from manyhead_core.attention.masks import Causal, KeyPadding, SlidingWindow, key_offset
from manyhead_core.attention.packed import ALL, Window, no_kernel, packed_reference, varlen_packed
from manyhead_core.errors import ConfigError

__all__ = ["Window", "packed_reference", "unable", "varlen", "varlen_packed"]


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Output `(batch, heads, queries, value_dim)`, and the lse `(batch, heads, queries)` or None.

    Takes padded tensors, attends without the hidden keys, and gives padded tensors; every query
    keeps its result. On CPU a loop over the batch does it.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, head_dim)`.
        mask: `KeyPadding`, `Causal`, `SlidingWindow`, or these joined by `&`. Beside a mask of
            positions, padding has to be at the end.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        return_lse: Whether to return the log of the softmax denominator.

    Raises:
        ConfigError: It cannot do this; `unable` says why.
    """
    reason = _cannot(mask, key.shape[2])
    if reason is None and query.device.type != "cpu":
        reason = unable(query, key, value, mask=mask, return_lse=return_lse)
    if reason:
        raise ConfigError(f"backend: varlen {reason}; use auto or eager")
    shape = Shape.of(query, key)
    plan = _plan(mask, shape)
    # The kernel aligns the ends of queries and keys. Backwards, that is the start, which padding
    # does not move.
    if plan.backwards:
        query, key, value = (x.flip(2) for x in (query, key, value))
    query = query[:, :, : shape.queries - plan.blind]
    flags, cu_keys = _flags(plan, shape)
    batch, _, rows, _ = query.shape
    out, lse = varlen_packed(
        query.transpose(1, 2).flatten(0, 1),
        _packed(key, flags),
        _packed(value, flags),
        _even(batch, rows, query.device),
        cu_keys,
        window=plan.window,
        scale=scale,
        return_lse=return_lse,
        longest=(rows, shape.keys),
    )
    out = _padded(out.unflatten(0, (batch, rows)).transpose(1, 2), plan, 0.0)
    if lse is None:
        return out, None
    lse = lse.unflatten(0, (batch, rows)).transpose(1, 2)
    return out, _padded(lse[..., None], plan, float("-inf"))[..., 0]


def unable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None = None,
    bias: Tensor | Bias | None = None,
    score_mod: ScoreMod | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> str | None:
    """Why the kernel for packed sequences cannot do this, or None.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, value_dim)`.
        mask: Which pairs may attend.
        bias: Added to the scaled scores.
        score_mod: Applied to the score.
        dropout_p: Probability of dropping an attention weight.
        return_lse: Whether the log of the softmax denominator is wanted.
    """
    if bias is not None or score_mod is not None:
        return "takes no bias and no score_mod"
    if dropout_p > 0:
        return "has no dropout"
    return _cannot(mask, key.shape[2]) or no_kernel(query, key, value, return_lse=return_lse)


class _Plan(NamedTuple):
    """How a padded call is packed.

    Args:
        paddings: Each tells which keys are real.
        window: For the kernel, in the order in which it sees tokens.
        backwards: Whether tokens are packed in reverse order.
        blind: Queries at the start that see nothing whatever the padding.
        unseen: Keys at the start that no query sees.
    """

    paddings: tuple[KeyPadding, ...]
    window: Window = (ALL, ALL)
    backwards: bool = False
    blind: int = 0
    unseen: int = 0


def _plan(mask: Tensor | Mask | None, shape: Shape) -> _Plan:
    paddings, positions = _parts(mask) or ((), ())
    if not positions:
        return _Plan(paddings)
    low, high = _reach(positions, shape)
    end = shape.keys - shape.queries
    if not paddings and high >= end and (low is None or low <= end):
        # Nothing moves the ends, so that the kernel's own order will do.
        return _Plan((), (ALL if low is None else end - low, high - end))
    blind = min(max(0, -high), shape.queries)
    unseen = 0 if low is None else min(max(0, blind + low), shape.keys)
    after = max(0, blind + high - unseen)
    before = ALL if low is None else max(0, unseen - blind - low)
    return _Plan(paddings, (after, before), True, blind, unseen)


def _reach(positions: tuple[Causal | SlidingWindow, ...], shape: Shape) -> tuple[int | None, int]:
    """The first and the last key that query 0 may see; None is without bound."""
    lows, highs = [], []
    for part in positions:
        place = key_offset(shape, part.align)
        window = part if isinstance(part, SlidingWindow) else None
        highs.append(place + (window.right if window else 0))
        if window:
            lows.append(place - window.left)
    high = min(highs)
    if lows and max(lows) > high:
        # No query sees anything: as if the window lay before the first key.
        return -shape.queries, -shape.queries
    return max(lows, default=None), high


def _parts(
    mask: Tensor | Mask | None,
) -> tuple[tuple[KeyPadding, ...], tuple[Causal | SlidingWindow, ...]] | None:
    """Masks of padding and masks of positions that make up a mask; None if others do."""
    if mask is None:
        return (), ()
    if isinstance(mask, KeyPadding):
        return (mask,), ()
    if isinstance(mask, Causal | SlidingWindow):
        return (), (mask,)
    if not isinstance(mask, Both):
        return None
    first, second = _parts(mask.first), _parts(mask.second)
    if first is None or second is None:
        return None
    return first[0] + second[0], first[1] + second[1]


def _cannot(mask: Tensor | Mask | None, keys: int) -> str | None:
    parts = _parts(mask)
    if parts is None:
        return "takes key padding, causality and sliding windows only"
    paddings, positions = parts
    for padding in paddings if positions else ():
        valid = padding.keys(keys)
        if bool((valid[:, 1:] & ~valid[:, :-1]).any()):
            return "needs padding at the end of the keys beside a mask of positions"
    return None


def _flags(plan: _Plan, shape: Shape) -> tuple[Tensor | None, Tensor]:
    """Keys to pack, `(batch, keys)` or None for all, and where each batch element starts."""
    if not plan.paddings and not plan.unseen:
        return None, _even(shape.batch, shape.keys, shape.device)
    place = torch.arange(shape.keys, device=shape.device)
    flags = (place >= plan.unseen).expand(shape.batch, -1)
    for padding in plan.paddings:
        flags = flags & on(padding.keys(shape.keys), shape.device)
    counts = F.pad(flags.sum(1).cumsum(0), (1, 0))
    return flags.flip(1) if plan.backwards else flags, counts.to(torch.int32)


def _even(batch: int, tokens: int, device: torch.device) -> Tensor:
    return torch.arange(batch + 1, device=device, dtype=torch.int32) * tokens


def _packed(x: Tensor, flags: Tensor | None) -> Tensor:
    tokens = x.transpose(1, 2)
    return tokens.flatten(0, 1) if flags is None else tokens[flags]


def _padded(x: Tensor, plan: _Plan, fill: float) -> Tensor:
    """`(batch, heads, rows, dim)` in the order of the queries, with the blind ones."""
    if plan.backwards:
        x = x.flip(2)
    return F.pad(x, (0, 0, plan.blind, 0), value=fill) if plan.blind else x
