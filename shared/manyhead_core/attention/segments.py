"""Products over the bags of one long tensor, bag by bag: how `pool` sums on a CPU.

Three products, each linear in both arguments. The derivative of each is made of the other two, so
gradients of any order need nothing further. Tensors of rows are `(total, .)`, tables hold one
matrix for each bag, `(bags, branches, .)`. Rows outside all spans give and get zeros.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Spans = tuple[tuple[int, int], ...]  # first row and end of each bag, in rising order

# Fewest products of an average bag for which a loop over bags is worth its overhead.
LOOP_PRODUCTS = 10_000


def worth_a_loop(scores: Tensor, values: Tensor, bags: int) -> bool:
    """Whether these products are the fastest way to sum the values of so many bags.

    Not on a GPU, which would wait for each bag, not in a compiled graph, where the lengths are not
    known, and not under the transforms of `torch.func`, which cannot look into the products.
    """
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and values.numel() * scores.shape[-1] >= bags * LOOP_PRODUCTS
    )


def packed_spans(cu_seqlens: Tensor) -> Spans:
    """Spans of packed bags, of where each starts and the total, `(bags + 1,)`."""
    return tuple(pairwise(cu_seqlens.tolist()))


def padded_spans(lengths: Tensor, size: int) -> Spans:
    """Spans of bags that are padded to `size` rows and flattened.

    Args:
        lengths: Rows that are real, `(bags,)`.
        size: Rows of a padded bag.
    """
    kept = lengths.clamp(0, size).tolist()
    return tuple((bag * size, bag * size + count) for bag, count in enumerate(kept))


def weighted_sums(weights: Tensor, values: Tensor, spans: Spans) -> Tensor:
    """Sum of the weighted values of each bag, `(bags, branches, dim)`.

    Args:
        weights: `(total, branches)`.
        values: `(total, dim)`.
        spans: Rows of each bag.
    """
    out: Tensor = _Sum.apply(weights, values, spans)
    return out


class _Sum(Function):
    """Rows `(total, branches)` and `(total, dim)` to a table, `weights^T values` of each bag."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, spans: Spans) -> Tensor:
        ctx.save_for_backward(weights, values)
        ctx.spans = spans
        out = values.new_empty(len(spans), weights.shape[1], values.shape[1])
        for table, (start, end) in zip(out, spans, strict=True):
            torch.mm(weights[start:end].mT, values[start:end], out=table)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, values = ctx.saved_tensors
        (table,) = gradients
        return (
            _Dot.apply(values, table, ctx.spans) if ctx.needs_input_grad[0] else None,
            _Spread.apply(weights, table, ctx.spans) if ctx.needs_input_grad[1] else None,
            None,
        )


class _Dot(Function):
    """Rows `(total, dim)` and a table to rows `(total, branches)`, `values table^T`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, table: Tensor, spans: Spans) -> Tensor:
        ctx.save_for_backward(values, table)
        ctx.spans = spans
        return _rows(values, table.mT, spans)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, table = ctx.saved_tensors
        (weights,) = gradients
        return (
            _Spread.apply(weights, table, ctx.spans) if ctx.needs_input_grad[0] else None,
            _Sum.apply(weights, values, ctx.spans) if ctx.needs_input_grad[1] else None,
            None,
        )


class _Spread(Function):
    """Rows `(total, branches)` and a table to rows `(total, dim)`, `weights table`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, spans: Spans) -> Tensor:
        ctx.save_for_backward(weights, table)
        ctx.spans = spans
        return _rows(weights, table, spans)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, table = ctx.saved_tensors
        (values,) = gradients
        return (
            _Dot.apply(values, table, ctx.spans) if ctx.needs_input_grad[0] else None,
            _Sum.apply(weights, values, ctx.spans) if ctx.needs_input_grad[1] else None,
            None,
        )


def _rows(rows: Tensor, table: Tensor, spans: Spans) -> Tensor:
    """The rows of each bag times its matrix; rows outside all bags are zero."""
    out = rows.new_empty(len(rows), table.shape[2])
    last = 0
    for matrix, (start, end) in zip(table, spans, strict=True):
        out[last:start].zero_()
        torch.mm(rows[start:end], matrix, out=out[start:end])
        last = end
    out[last:].zero_()
    return out
