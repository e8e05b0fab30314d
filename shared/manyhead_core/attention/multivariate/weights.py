"""Attention weights of a block of query steps, for all keys that it sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.multivariate.blocks import Block, Gates, Workspace
from manyhead_core.attention.multivariate.layout import Laid, Positions, read_positions


class Far(NamedTuple):
    """Weights of keys without content: `2^top time[t'] channel[c']`.

    Args:
        time: `(P, r, G C, keys)`.
        channel: `(P, r, G C, C)`.
        top: `(P, r, G C, 1)`.
        total: Sum of `time[t'] channel[c']`, `(P, r, G C, 1)`.
    """

    time: Tensor
    channel: Tensor
    top: Tensor
    total: Tensor


class Rows(NamedTuple):
    """The queries of a block and the position parts of their scores.

    Args:
        query: With the content bias, `(P, r G C, D)`.
        place: Position parts.
    """

    query: Tensor
    place: Positions


def rows_of(laid: Laid, block: Block, space: Workspace) -> Rows:
    """Queries and position parts."""
    part = laid.query[:, :, block.start : block.stop]
    query = space.take("query", *part.shape)
    torch.add(part, laid.bias, out=query)
    query = query.flatten(2, 4).flatten(0, 1)
    return Rows(query, read_positions(laid, block, query, space))


def new_weights(
    laid: Laid, gates: Gates, block: Block, rows: Rows, space: Workspace
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights times their sums, the sums, and the log of what both are less.

    Args:
        laid: Inputs.
        gates: Which pairs have content.
        block: Which steps.
        rows: Queries and positions.
        space: Memory.

    Returns:
        `(P, r G C, keys C)` and twice `(P, r, G C, 1)`.
    """
    weights, grid = _empty(block, rows, space)
    far = _far(gates, block, rows.place) if block.far[0] else None
    if block.near == block.stop:
        assert far is not None  # noqa: S101 - a query sees itself
        _write_far(grid, far, block)
        return weights, far.total, far.top
    time = rows.place.time[..., block.near :]
    if block.size > 1:
        time = time + _gate(gates.near, block, block.near, block.stop)
    scores = _near_scores(laid, time, rows, block, space)
    top = scores.amax(-1, keepdim=True)
    if far is not None:
        torch.maximum(top, far.top.view(top.shape), out=top)
    near = torch.exp2(scores.sub_(top), out=weights[..., -scores.shape[-1] :])
    total = near.sum(-1, keepdim=True).view(*grid.shape[:3], 1)
    top = top.view(total.shape)
    if far is not None:
        share = (far.top - top).exp2_()
        total += far.total * share
        far.time.mul_(share)
        _write_far(grid, far, block)
    return weights, total, top


def old_weights(
    laid: Laid, gates: Gates, block: Block, rows: Rows, lse: Tensor, space: Workspace
) -> Tensor:
    """Weights from the logs of their sums, `(P, r G C, keys C)`.

    Args:
        laid: Inputs.
        gates: Which pairs have content.
        block: Which steps.
        rows: Queries and positions.
        lse: To base 2, `(P, r, G C, 1)`.
        space: Memory.
    """
    weights, grid = _empty(block, rows, space)
    if block.near < block.stop:
        time = rows.place.time[..., block.near :] - lse
        if block.size > 1:
            time += _gate(gates.near, block, block.near, block.stop)
        scores = _near_scores(laid, time, rows, block, space)
        torch.exp2(scores, out=weights[..., -scores.shape[-1] :])
    if block.far[0]:
        far = _far(gates, block, rows.place)
        far.time.mul_((far.top - lse).exp2_())
        _write_far(grid, far, block)
    return weights


def _empty(block: Block, rows: Rows, space: Workspace) -> tuple[Tensor, Tensor]:
    """Room for the weights, and the same as `(P, r, G C, keys, C)`."""
    both, queries, _ = rows.query.shape
    channels = rows.place.channel.shape[-1]
    weights = space.take("weights", both, queries, block.stop * channels)
    return weights, weights.view(both, block.size, -1, block.stop, channels)


def _gate(gate: Tensor, block: Block, first: int, last: int) -> Tensor:
    return gate[block.start : block.stop, :, first:last]


def _near_scores(laid: Laid, time: Tensor, rows: Rows, block: Block, space: Workspace) -> Tensor:
    """Scores of keys with content; `time` is minus infinity where a pair has none."""
    both, groups, channels, _ = rows.place.channel.shape
    near = block.stop - block.near
    # Where all keys have content, the weights take the place of their scores.
    name = "scores" if block.near else "weights"
    scores = space.take(name, both, groups, channels, near, channels)
    per_channel = time.unflatten(2, (-1, channels)).flatten(1, 2) if block.size == 1 else time
    torch.add(
        per_channel.reshape(both, groups, channels, near, 1),
        rows.place.channel[:, :, :, None],
        out=scores,
    )
    key = laid.key[:, block.near * channels : block.stop * channels]
    return scores.view(both, groups * channels, -1).baddbmm_(rows.query, key.mT)


def _far(gates: Gates, block: Block, place: Positions) -> Far:
    keys = max(block.far)
    time = place.time[..., :keys]
    if block.size > 1:
        time = time + _gate(gates.far, block, 0, keys)
    time_top = time.amax(-1, keepdim=True)
    time = (time - time_top).exp2_()
    channel_top = place.channel.amax(-1, keepdim=True)
    channel = (place.channel - channel_top).exp2_().view(*time.shape[:3], -1)
    total = time.sum(-1, keepdim=True) * channel.sum(-1, keepdim=True)
    return Far(time, channel, time_top + channel_top.view(total.shape), total)


def _write_far(grid: Tensor, far: Far, block: Block) -> None:
    """Put the weights of keys without content to their places, `(P, r, G C, keys, C)`."""
    if block.near == block.stop:
        torch.mul(far.time[..., None], far.channel[..., None, :], out=grid)
        return
    for i, keys in enumerate(block.far):
        torch.mul(
            far.time[:, i, :, :keys, None], far.channel[:, i, :, None], out=grid[:, i, :, :keys]
        )
