"""`pool`: attention pooling, a weighted average of the instances of each bag."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.segments import (
    Spans,
    packed_spans,
    padded_spans,
    weighted_sums,
    worth_a_loop,
)
from manyhead_core.errors import ConfigError


class PoolOutput(NamedTuple):
    """What `pool` gives.

    Args:
        out: `(bags, branches, dim)` in the dtype of the values.
        weights: In the shape of the scores, float32 for inputs up to float32; each branch sums to
            one over a bag, zero for padding.
    """

    out: Tensor
    weights: Tensor


def pool(
    scores: Tensor,
    values: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> PoolOutput:
    """Average the instances of each bag with softmax weights, once for each branch of scores.

    Softmax and sums are accumulated in float32 whatever the inputs are. An empty bag gives zeros
    and zero gradients. On a CPU large bags are summed one after the other, so that padding costs
    next to nothing when `lengths` tells it. On CUDA the sums of packed bags are added in no fixed
    order, so that the last bit may differ between runs.

    Args:
        scores: Padded `(bags, instances, branches)` or packed `(total, branches)`.
        values: Padded `(bags, instances, dim)` or packed `(total, dim)`.
        lengths: Instances of each padded bag, int `(bags,)`.
        mask: Instead of lengths, True for real instances, `(bags, instances)`.
        cu_seqlens: Where each packed bag starts, and last the total, int `(bags + 1,)`.

    Raises:
        ConfigError: Shapes do not fit together, or more than one of lengths, mask and cu_seqlens
            is given.
    """
    _check(scores, values, lengths, mask, cu_seqlens)
    precise = torch.promote_types(values.dtype, torch.float32)
    # Autocast would take the products back to 16 bits.
    with torch.autocast(values.device.type, enabled=False):
        scores, wide = scores.to(precise), values.to(precise)
        if cu_seqlens is not None:
            out, weights = _packed(scores, wide, cu_seqlens)
        elif lengths is not None:
            out, weights = _counted(scores, wide, lengths)
        else:
            out, weights = _padded(scores, wide, mask)
    return PoolOutput(out.to(values.dtype), weights)


def _padded(scores: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    weights = _weights(scores, mask)
    if mask is not None:
        # Padding may hold anything, and zero times NaN is NaN.
        values = values.masked_fill(~mask[..., None], 0.0)
    return weights.mT @ values, weights


def _counted(scores: Tensor, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    bags, size = scores.shape[:2]
    mask = torch.arange(size, device=scores.device) < lengths[:, None]
    if not worth_a_loop(scores, values, bags):
        return _padded(scores, values, mask)
    weights = _weights(scores, mask)
    spans = padded_spans(lengths, size)
    return weighted_sums(weights.flatten(0, 1), values.flatten(0, 1), spans), weights


def _weights(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the instances, `(bags, instances, branches)`; zero where the mask is False."""
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None], float("-inf"))
    if scores.shape[1] == 0:
        return scores
    # A softmax over minus infinities is NaN, and so is its gradient.
    empty = scores.amax(1, keepdim=True) == float("-inf")
    return scores.masked_fill(empty, 0.0).softmax(1).masked_fill(empty, 0.0)


def _packed(scores: Tensor, values: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    if worth_a_loop(scores, values, len(cu_seqlens) - 1):
        spans = packed_spans(cu_seqlens)
        weights = _bag_weights(scores, spans)
        return weighted_sums(weights, values, spans), weights
    return _indexed(scores, values, cu_seqlens)


def _bag_weights(scores: Tensor, spans: Spans) -> Tensor:
    """Softmax over each packed bag, `(total, branches)`."""
    bags = scores.split([end - start for start, end in spans])
    weights = torch.cat([bag.softmax(0) for bag in bags])
    # Where all scores of a bag are minus infinity, its first weight already is NaN.
    first = [start for start, end in spans if start < end]
    if weights[first].isnan().any():
        return torch.cat([_weights(bag[None], None)[0] for bag in bags])
    return weights


def _indexed(scores: Tensor, values: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The packed form with an index of bags, for GPUs, compiled graphs and many small bags."""
    bags, branches = len(cu_seqlens) - 1, scores.shape[1]
    place = torch.arange(len(scores), device=scores.device)
    bag = torch.bucketize(place, cu_seqlens[1:].to(place.dtype), right=True)
    with torch.no_grad():
        # The shift cancels, so it needs no gradient.
        top = scores.new_full((bags, branches), float("-inf"))
        top = top.scatter_reduce(0, bag[:, None].expand_as(scores), scores, "amax")
        top = top.masked_fill(top == float("-inf"), 0.0)
    raised = (scores - top[bag]).exp()
    total = scores.new_zeros(bags, branches).index_add(0, bag, raised)
    weights = raised / total.masked_fill(total == 0, 1.0)[bag]
    empty = values.new_zeros(bags, values.shape[1])
    # One branch at a time: all of them would need branches times the memory of the values.
    sums = [empty.index_add(0, bag, weights[:, k, None] * values) for k in range(branches)]
    out = torch.stack(sums, 1) if sums else empty[:, None][:, :0]
    return out, weights


def _check(
    scores: Tensor,
    values: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    given = {"lengths": lengths, "mask": mask, "cu_seqlens": cu_seqlens}
    names = [name for name, tensor in given.items() if tensor is not None]
    if len(names) > 1:
        raise ConfigError(f"{', '.join(names)}: say the same thing; pass one of them")
    dims = 3 if cu_seqlens is None else 2
    if scores.dim() != dims or values.dim() != dims or scores.shape[:-1] != values.shape[:-1]:
        form = "(bags, instances, .)" if dims == 3 else "(total, .) with cu_seqlens"
        raise ConfigError(
            f"scores, values: shapes {tuple(scores.shape)} and {tuple(values.shape)} are not both "
            f"{form}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ConfigError(f"mask: {mask.dtype} is not boolean; pass True for real instances")
    if cu_seqlens is not None and _readable(cu_seqlens) and not _rises(cu_seqlens, len(scores)):
        raise ConfigError(f"cu_seqlens: must rise from 0 to the number of instances, {len(scores)}")


def _rises(cu_seqlens: Tensor, total: int) -> bool:
    ends = (int(cu_seqlens[0]), int(cu_seqlens[-1]))
    return ends == (0, total) and bool((cu_seqlens.diff() >= 0).all())


def _readable(tensor: Tensor) -> bool:
    """Whether looking at the numbers neither waits for a GPU nor breaks a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
