"""Inputs of the chunked form in the order of its work: by key head, then by step.

Capitals in shapes: B batch, K key heads, P elements of both in a piece, T steps, C channels, r
steps of a block, G query heads per key head, D width of a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.multivariate.blocks import Block, Piece, Workspace
from manyhead_core.attention.multivariate.inputs import Parts, Rules

# Powers of two are computed in a third of the time of those of e, so scores are in these units.
UNIT = math.log2(math.e)


class Tables(NamedTuple):
    """Both tables as one: time, empty rows, and channels by the distance `c' - c + C - 1`.

    Args:
        rows: Times the scale of the scores, `(K, T + empty + 2 C - 1, D)`.
        shift: What their scores have beside those of a query with the content bias,
            `(K, 1, rows)`.
        empty: Rows that keys later than a query of the block find.
    """

    rows: Tensor
    shift: Tensor
    empty: int


def tables(parts: Parts, rules: Rules, empty: int) -> Tables:
    """The tables in float32 at least.

    Args:
        parts: Projected positions and biases.
        rules: Scale of the scores.
        empty: Rows between them.
    """
    kind = torch.promote_types(parts.query.dtype, torch.float32)
    step, channel, u, b, w = (part.to(kind) for part in parts[3:])
    channels = parts.channels
    row = channels - 1 - torch.arange(1 - channels, channels, device=step.device).abs()
    step = F.pad(step, (0, 0, 0, empty)) * (rules.scale * UNIT)
    channel = channel[:, row] * (rules.scale * UNIT)
    shift = [step @ (b - u)[..., None], channel @ (w - u)[..., None]]
    return Tables(torch.cat([step, channel], 1), torch.cat(shift, 1).mT.contiguous(), empty)


class Laid(NamedTuple):
    """Inputs of a piece.

    Args:
        query: As it is, `(B, K, T, G, C, D)`.
        bias: Content bias, `(K, 1, 1, 1, D)`.
        key: Times the scale of the scores, `(P, T C, D)`.
        value: `(P, T C, D)`.
        table: As in `Tables`, `(P, rows, D)`.
        shift: As in `Tables`, `(P, 1, rows)`.
        empty: As in `Tables`.
        steps: T.
    """

    query: Tensor
    bias: Tensor
    key: Tensor
    value: Tensor
    table: Tensor
    shift: Tensor
    empty: int
    steps: int


def lay(parts: Parts, rules: Rules, table: Tables, piece: Piece) -> Laid:
    """Inputs of a piece; queries are converted block by block.

    Args:
        parts: Projected tokens and biases.
        rules: Scale of the scores.
        table: Both tables.
        piece: Which part of the batch and of the heads.
    """
    kind = table.rows.dtype
    key, value = (part[piece].to(kind).flatten(0, 1) for part in (parts.key, parts.value))
    batch = piece.batch.stop - piece.batch.start
    return Laid(
        by_head(parts.query, parts)[piece],
        parts.content_bias[piece.heads, None, None, None].to(kind),
        (key * (rules.scale * UNIT)).contiguous(),
        value.contiguous(),
        table.rows[piece.heads].repeat(batch, 1, 1),
        table.shift[piece.heads].repeat(batch, 1, 1),
        table.empty,
        parts.steps,
    )


def by_head(tokens: Tensor, parts: Parts) -> Tensor:
    """`(B, H, T C, D)` as `(B, K, T, G, C, D)`, without a copy."""
    heads = tokens.unflatten(1, (parts.key.shape[1], -1))
    return heads.unflatten(3, (parts.steps, parts.channels)).permute(0, 1, 3, 2, 4, 5)


def like_query(parts: Parts, kind: torch.dtype) -> Tensor:
    """Empty `(B, H, T C, D)` in the order of memory that the output projection reads."""
    batch, heads, tokens, width = parts.query.shape
    return parts.query.new_empty(batch, tokens, heads, width, dtype=kind).transpose(1, 2)


class Positions(NamedTuple):
    """Position parts of the scores of a block, or their gradients.

    Args:
        rows: By row of the tables, `(P, r G C, rows)`.
        time: By key step, a view of them, `(P, r, G C, keys)`.
        channel: By key channel, a view of them, `(P, r G, C, C)`.
    """

    rows: Tensor
    time: Tensor
    channel: Tensor


def used_rows(block: Block, steps: int) -> int:
    """First row of the tables that a block uses."""
    return steps - block.stop


def read_positions(laid: Laid, block: Block, query: Tensor, space: Workspace) -> Positions:
    """Position parts of the scores.

    Args:
        laid: Inputs.
        block: Which steps.
        query: With the content bias, `(P, r G C, D)`.
        space: Memory.
    """
    first = used_rows(block, laid.steps)
    table = laid.table[:, first:]
    rows = space.take("positions", *query.shape[:2], table.shape[1])
    torch.baddbmm(laid.shift[:, :, first:], query, table.mT, out=rows)
    return positions(rows, block, laid.empty)


def positions(rows: Tensor, block: Block, empty: int) -> Positions:
    """Views by key step and by key channel.

    Args:
        rows: `(P, r G C, rows)`, contiguous.
        block: Which steps.
        empty: Empty rows of the tables.
    """
    both, queries, columns = rows.shape
    channels = (columns - block.stop - empty + 1) // 2
    per_step = queries // block.size
    # A later query finds the same key one row earlier.
    time = rows.as_strided(
        (both, block.size, per_step, block.stop),
        (queries * columns, per_step * columns - 1, columns, 1),
        rows.storage_offset() + block.size - 1,
    )
    channel = rows.as_strided(
        (both, queries // channels, channels, channels),
        (queries * columns, channels * columns, columns - 1, 1),
        rows.storage_offset() + block.stop + empty + channels - 1,
    )
    return Positions(rows, time, channel)
