"""Attention to the keys that `dynamic_mask` keeps, without scores of the others.

Which keys are the most important ones depends on the query only through the mask. Without a mask
over pairs all queries share `window` keys; under causality a key that has fallen out of the window
never comes back, so a chunk of queries needs the keys kept before it and its own.
"""

from __future__ import annotations

from heapq import heappush, heappushpop
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend

# Of a chunk: more would score keys in vain, fewer would make more calls.
FEWEST_QUERIES = 64


class Keys(NamedTuple):
    """Keys with what belongs to them.

    Args:
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, head_dim)`.
        delta: Added to the scores, `(batch, heads, keys)`.
    """

    key: Tensor
    value: Tensor
    delta: Tensor

    def at(self, index: Tensor) -> Keys:
        """Those of each head at these places, `(batch, heads, kept)`, for as many key heads."""
        key, value = (
            tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))
            for tensor in self.for_each_head()
        )
        return Keys(key, value, self.delta.gather(2, index))

    def for_each_head(self) -> tuple[Tensor, Tensor]:
        """Keys and values of each query head."""
        groups = self.delta.shape[1] // self.key.shape[1]
        if groups == 1:
            return self.key, self.value
        return self.key.repeat_interleave(groups, 1), self.value.repeat_interleave(groups, 1)


def places(values: Tensor) -> Tensor:
    """How many entries come before each one in ascending order, the earlier of equal ones first."""
    if not torch.compiler.is_compiling():
        return values.argsort(dim=-1, stable=True).argsort(dim=-1)
    # ONNX has no stable sort, and a compiler fuses the comparisons with the sum.
    index = torch.arange(values.shape[-1], device=values.device)
    mine, other = values[..., :, None], values[..., None, :]
    before = (other < mine) | ((other == mine) & (index < index[:, None]))
    return before.sum(-1)


def attend_shared(
    attend: Attend, query: Tensor, keys: Keys, window: int, allowed: Tensor | None
) -> Tensor:
    """All queries see the `window` most important of the allowed keys.

    Args:
        attend: Runs the attention.
        query: `(batch, heads, queries, head_dim)`.
        keys: More than `window` of them.
        window: Keys that are kept.
        allowed: Broadcastable to `(batch, heads, 1, keys)`; None means all.
    """
    place = places(keys.delta.detach()).float()
    if allowed is not None:
        shape = (*place.shape[:2], 1, place.shape[2])
        place = place.masked_fill(~allowed.expand(shape).squeeze(2), -1.0)
    best, index = place.topk(window, -1)
    mask = None if allowed is None else (best >= 0)[:, :, None]
    return attend_biased(attend, query, keys.at(index), mask)


def attend_causally(attend: Attend, query: Tensor, keys: Keys, window: int) -> Tensor:
    """Each query sees the `window` most important of the keys up to its own place.

    Args:
        attend: Runs the attention.
        query: `(batch, heads, tokens, head_dim)`.
        keys: As many as queries.
        window: Keys that are kept.
    """
    count = query.shape[2]
    end = leaving(keys.delta.detach(), window)
    place = torch.arange(count, device=query.device)
    step = max(FEWEST_QUERIES, window // 2)
    outs = []
    for start in (0, *range(window, count, step)):
        stop = min(count, start + step) if start else window
        # A key that leaves at this very place is missing: one that has left fills up, unseen.
        rank = end[..., :start].clamp(max=start + 1)
        old = rank.topk(min(start, window), -1).indices
        index = torch.cat([old, place[start:stop].expand(*old.shape[:2], -1)], -1)
        rows = place[start:stop, None]
        mask = (index[:, :, None] <= rows) & (rows < end.gather(2, index)[:, :, None])
        outs.append(attend_biased(attend, query[:, :, start:stop], keys.at(index), mask))
    return torch.cat(outs, 2)


def loops_over(query: Tensor, keys: int) -> bool:
    """Whether `attend_causally` can be taken: on a CPU, outside graphs, for a whole sequence."""
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and query.shape[2] == keys
    )


def leaving(delta: Tensor, window: int) -> Tensor:
    """From which query on each key is not among the `window` most important ones so far.

    Args:
        delta: Importance, `(batch, heads, keys)`; of equal keys the later is more important.
        window: Keys that are kept.

    Returns:
        Integers `(batch, heads, keys)`, the number of keys for those that stay.
    """
    rows = places(delta).flatten(0, 1).tolist()
    ends = [_leaving(row, window) for row in rows]
    return torch.tensor(ends, dtype=torch.int64).view(delta.shape)


def _leaving(order: list[int], window: int) -> list[int]:
    found = [len(order)] * len(order)
    owner = {place: key for key, place in enumerate(order)}
    heap: list[int] = []
    for key, place in enumerate(order):
        if key < window:
            heappush(heap, place)
        else:
            found[owner[heappushpop(heap, place)]] = key
    return found


def attend_biased(attend: Attend, query: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
    """Head outputs of queries that see these keys, `(batch, heads, queries, head_dim)`."""
    key, value, delta = keys
    dropping = attend.training and attend.dropout > 0
    learned = delta.requires_grad and delta.dtype == key.dtype
    if query.device.type != "cpu" or dropping or not learned:
        return attend(query, key, value, mask=mask, bias=delta[:, :, None]).out
    # The fused kernel on a CPU has no gradient for a bias, but one for keys: as a further number
    # of each key, the bias becomes a part of the product.
    key, value = keys.for_each_head()
    scale = query.shape[-1] ** -0.5 if attend.scale is None else attend.scale
    ones = query.new_full((*query.shape[:3], 1), 1 / scale)
    wide = torch.cat([key, delta[..., None].to(key.dtype)], -1)
    out = attend(torch.cat([query, ones], -1), wide, F.pad(value, (0, 1)), mask=mask).out
    return out[..., :-1]
