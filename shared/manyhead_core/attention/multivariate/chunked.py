"""The exact form in blocks of query steps: no scores of all pairs, memory linear in tokens.

Beyond the content window a score is a sum f(t') + g(c') of a time and a channel part, so its
exponential is a product: such keys need no query-key product and no exponential of their own.
The backward pass computes the weights of a block again from the saved logs of their sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manyhead_core.attention.multivariate.blocks import (
    Gates,
    Workspace,
    block_size,
    pieces,
    plan,
)
from manyhead_core.attention.multivariate.inputs import Dropout, Parts, Rules
from manyhead_core.attention.multivariate.layout import by_head, lay, like_query, tables
from manyhead_core.attention.multivariate.weights import new_weights, rows_of


def chunked_forward(parts: Parts, rules: Rules, dropout: Dropout) -> tuple[Tensor, Tensor]:
    """Head outputs, and the logs of the sums of weights to base 2, `(B, K, T, G C, 1)`.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        dropout: Weights to drop.
    """
    size = block_size(parts)
    table = tables(parts, rules, size - 1)
    gates, blocks = Gates.of(rules, parts.steps, table.rows), plan(rules, parts.steps, size)
    space = Workspace(table.rows)
    out = like_query(parts, parts.value.dtype)
    batch, heads, _, _ = parts.query.shape
    shared = parts.key.shape[1]
    rows = heads // shared * parts.channels
    lse = table.rows.new_empty(batch, shared, parts.steps, rows, 1)
    for piece in pieces(parts, size):
        laid = lay(parts, rules, table, piece)
        own = by_head(out, parts)[piece]
        for block in blocks:
            steps = slice(block.start, block.stop)
            found = rows_of(laid, block, space)
            weights, total, top = new_weights(laid, gates, block, found, space)
            if dropout.p > 0:
                weights.mul_(dropout.kept(weights, *piece.place, block.start))
            mean = space.take("mean", *found.query.shape)
            torch.bmm(weights, laid.value[:, : block.stop * parts.channels], out=mean)
            part = own[:, :, steps]
            share = total.reciprocal().view(*part.shape[:5], 1)
            torch.mul(mean.view(part.shape), share, out=part)
            where = lse[(*piece, steps)]
            torch.add(total.log2_().view(where.shape), top.view(where.shape), out=where)
    return out, lse
