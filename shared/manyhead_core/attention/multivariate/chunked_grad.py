"""The backward pass of the chunked form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.multivariate.blocks import (
    Block,
    Gates,
    Piece,
    Workspace,
    block_size,
    pieces,
    plan,
)
from manyhead_core.attention.multivariate.inputs import Dropout, Parts, Rules
from manyhead_core.attention.multivariate.layout import (
    Laid,
    Tables,
    by_head,
    lay,
    like_query,
    positions,
    tables,
    used_rows,
)
from manyhead_core.attention.multivariate.weights import Rows, old_weights, rows_of


class Grads(NamedTuple):
    """Sums over the blocks of a piece, for scores in their own unit.

    Args:
        key: `(P, T C, D)`.
        value: `(P, T C, D)`.
        table: `(P, rows, D)`.
        shift: `(P, 1, rows)`.
        bias: Of the content, `(P, D)`.
    """

    key: Tensor
    value: Tensor
    table: Tensor
    shift: Tensor
    bias: Tensor

    @classmethod
    def of(cls, laid: Laid) -> Grads:
        """Zeros."""
        bias = laid.key[:, 0]
        given = (laid.key, laid.value, laid.table, laid.shift, bias)
        return cls(*(torch.zeros_like(x) for x in given))


class Upstream(NamedTuple):
    """What a block gets from above.

    Args:
        grad: Of its outputs, `(P, r G C, D)`.
        delta: Sum of gradient times output, `(P, r G C, 1)`.
        lse: Logs of the sums of weights, `(P, r, G C, 1)`.
    """

    grad: Tensor
    delta: Tensor
    lse: Tensor


def chunked_grad(
    parts: Parts, rules: Rules, dropout: Dropout, out: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the eight parts, in float32 at least.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        dropout: That of the forward pass.
        out: Head outputs, `(B, H, T C, D)`.
        lse: Logs of the sums of weights to base 2, `(B, K, T, G C, 1)`.
        grad: Gradient of the head outputs.
    """
    size = block_size(parts)
    table = tables(parts, rules, size - 1)
    gates, blocks = Gates.of(rules, parts.steps, table.rows), plan(rules, parts.steps, size)
    space = Workspace(table.rows)
    kind = table.rows.dtype
    d_query = like_query(parts, kind)
    d_key, d_value = (table.rows.new_empty(parts.key.shape) for _ in range(2))
    d_table, d_shift = torch.zeros_like(table.rows), torch.zeros_like(table.shift)
    d_bias = torch.zeros_like(parts.content_bias, dtype=kind)
    views = [by_head(x, parts) for x in (grad, out, d_query)]
    for piece in pieces(parts, size):
        laid = lay(parts, rules, table, piece)
        sums = Grads.of(laid)
        for block in blocks:
            grads, outs, to = (x[(*piece, slice(block.start, block.stop))] for x in views)
            above = _upstream(grads, outs, lse[(*piece, slice(block.start, block.stop))], space)
            found = _add_block(laid, gates, block, above, sums, space, dropout, piece)
            torch.mul(found.view(to.shape), math.log(2), out=to)
        whole = d_key[piece].shape
        torch.mul(sums.key.view(whole), rules.scale, out=d_key[piece])
        d_value[piece] = sums.value.view(whole)
        for to, part in ((d_table, sums.table), (d_shift, sums.shift), (d_bias, sums.bias)):
            to[piece.heads] += part.unflatten(0, whole[:2]).sum(0)
    return (d_query, d_key, d_value, *_small(parts, rules, table, d_table, d_shift, d_bias))


def _upstream(grad: Tensor, out: Tensor, lse: Tensor, space: Workspace) -> Upstream:
    laid = space.take("grad", *grad.shape).copy_(grad)
    delta = (laid * out).sum(-1)
    rows = laid.flatten(2, 4).flatten(0, 1)
    return Upstream(rows, delta.view(*rows.shape[:2], 1), lse.flatten(0, 1))


def _add_block(
    laid: Laid,
    gates: Gates,
    block: Block,
    above: Upstream,
    sums: Grads,
    space: Workspace,
    dropout: Dropout,
    piece: Piece,
) -> Tensor:
    """Add the gradients of a block to the sums; gives those of its queries, `(P, r G C, D)`."""
    rows = rows_of(laid, block, space)
    weights = old_weights(laid, gates, block, rows, above.lse, space)
    both, _, width = rows.query.shape
    keys = weights.shape[-1]
    slope = space.take("slope", *weights.shape)
    torch.bmm(above.grad, laid.value[:, :keys].mT, out=slope)
    kept = weights
    if dropout.p > 0:
        factor = dropout.kept(weights, *piece.place, block.start)
        kept = weights * factor
        slope.mul_(factor)
    product = space.take("product", both, keys, width)
    sums.value[:, :keys] += torch.bmm(kept.mT, above.grad, out=product)
    slope.sub_(above.delta).mul_(weights)
    found = _add_positions(laid, block, rows, slope, sums)
    if block.near < block.stop:
        found += _add_content(laid, block, rows, slope, sums, space)
    return found


def _add_positions(laid: Laid, block: Block, rows: Rows, slope: Tensor, sums: Grads) -> Tensor:
    channel = rows.place.channel
    grid = slope.view(slope.shape[0], block.size, -1, block.stop, channel.shape[-1])
    place = positions(torch.zeros_like(rows.place.rows), block, laid.empty)
    torch.sum(grid, -1, out=place.time)
    place.channel.copy_(grid.sum(-2).view(channel.shape))
    first = used_rows(block, laid.steps)
    sums.table[:, first:] += torch.bmm(place.rows.mT, rows.query)
    sums.shift[:, :, first:] += place.rows.sum(1, keepdim=True)
    return torch.bmm(place.rows, laid.table[:, first:])


def _add_content(
    laid: Laid, block: Block, rows: Rows, slope: Tensor, sums: Grads, space: Workspace
) -> Tensor:
    channels = rows.place.channel.shape[-1]
    grid = slope.view(slope.shape[0], block.size, -1, block.stop, channels)
    for i, far in enumerate(block.far):
        grid[:, i, :, block.near : far] = 0
    near = slice(block.near * channels, block.stop * channels)
    slope = slope[..., near]
    found = torch.bmm(slope, laid.key[:, near])
    sums.bias.add_(found.sum(1))
    product = space.take("product", slope.shape[0], slope.shape[-1], rows.query.shape[-1])
    sums.key[:, near] += torch.bmm(slope.mT, rows.query, out=product)
    return found


def _small(
    parts: Parts, rules: Rules, table: Tables, d_table: Tensor, d_shift: Tensor, d_bias: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of both tables and of the three biases."""
    steps, channels = parts.steps, parts.channels
    u, b, w = (bias.to(table.rows.dtype) for bias in parts[5:])
    d_step, d_channel = d_table[:, :steps], d_table[:, steps + table.empty :]
    of_step, of_channel = d_shift[..., :steps], d_shift[..., steps + table.empty :]
    d_step = d_step + of_step.mT * (b - u)[:, None]
    d_channel = d_channel + of_channel.mT * (w - u)[:, None]
    # A distance occurs to both sides.
    folded = d_channel[:, :channels].clone()
    folded[:, :-1] += d_channel[:, channels:].flip(1)
    return (
        d_step * rules.scale,
        folded * rules.scale,
        d_bias * math.log(2),
        (of_step @ table.rows[:, :steps])[:, 0] * math.log(2),
        (of_channel @ table.rows[:, steps + table.empty :])[:, 0] * math.log(2),
    )
