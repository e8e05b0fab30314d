"""Forms with a backward pass of their own, as one operator to autograd and to the compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manyhead_core.attention.kernels import outside_autocast
from manyhead_core.attention.multivariate.chunked import chunked_forward
from manyhead_core.attention.multivariate.chunked_grad import chunked_grad
from manyhead_core.attention.multivariate.inputs import Dropout, Parts, Rules

NO_DROPOUT = Dropout()


def attend_fused(form: str, parts: Parts, rules: Rules, *, dropout: float = 0.0) -> Tensor:
    """Head outputs, `(batch, heads, tokens, head_dim)`; gradients once, not twice.

    Args:
        form: `chunked` or `triton`.
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        dropout: Probability of dropping a weight, for `chunked` outside compiled graphs.
    """
    if torch.compiler.is_compiling():
        out, _ = _operator(form, rules.window, rules.content, rules.scale, *parts)
        return out
    found: Tensor = _Fused.apply(form, rules, Dropout.draw(dropout), *parts)
    return found


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: str, rules: Rules, dropout: Dropout, *tensors: Tensor) -> Tensor:
        ctx.form, ctx.rules, ctx.dropout = form, rules, dropout
        out, lse = _forward(form, Parts(*tensors), rules, dropout)
        ctx.save_for_backward(*tensors, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        found = _grad(ctx.form, Parts(*tensors), ctx.rules, ctx.dropout, out, lse, grad)
        return (None, None, None, *found)


def _forward(form: str, parts: Parts, rules: Rules, dropout: Dropout) -> tuple[Tensor, Tensor]:
    with outside_autocast(parts.query.device.type):
        if form == "chunked":
            return chunked_forward(parts, rules, dropout)
        # Most processes never need it, and many cannot import it.
        from manyhead_core.attention.multivariate.triton_kernel import triton_forward

        return triton_forward(parts, rules)


def _grad(
    form: str, parts: Parts, rules: Rules, dropout: Dropout, out: Tensor, lse: Tensor, grad: Tensor
) -> list[Tensor]:
    with outside_autocast(grad.device.type):
        if form == "chunked":
            found = chunked_grad(parts, rules, dropout, out, lse, grad)
        else:
            from manyhead_core.attention.multivariate.triton_kernel import triton_grad

            found = triton_grad(parts, rules, out, lse, grad)
    return [g.to(part.dtype) for g, part in zip(found, parts, strict=True)]


def _define() -> Any:
    tensors = ", ".join(f"Tensor {name}" for name in Parts._fields)
    rules = "str form, int window, bool content, float scale"
    library = "manyhead::parallel_attention"
    torch.library.define(library, f"({rules}, {tensors}) -> (Tensor, Tensor)")
    torch.library.define(
        f"{library}_grad",
        f"({rules}, {tensors}, Tensor out, Tensor lse, Tensor grad) -> Tensor[]",
    )
    operators = torch.ops.manyhead

    def forward(form: str, window: int, content: bool, scale: float, *given: Tensor) -> Any:
        rules = Rules(window=window, content=content, scale=scale)
        out, lse = _forward(form, Parts(*given), rules, NO_DROPOUT)
        return out.contiguous(), lse

    def shapes(form: str, window: int, content: bool, scale: float, *given: Tensor) -> Any:  # noqa: ARG001
        parts = Parts(*given)
        batch, heads, tokens, width = parts.query.shape
        shared, steps = parts.key.shape[1], parts.steps
        kind = torch.promote_types(parts.query.dtype, torch.float32)
        out = parts.query.new_empty(batch, heads, tokens, width, dtype=parts.value.dtype)
        rows = (shared, steps, heads // shared * parts.channels, 1)
        shape = rows if form == "chunked" else (heads, tokens)
        return out, parts.query.new_empty(batch, *shape, dtype=kind)

    def grad(form: str, window: int, content: bool, scale: float, *given: Tensor) -> Any:
        rules = Rules(window=window, content=content, scale=scale)
        found = _grad(form, Parts(*given[:8]), rules, NO_DROPOUT, *given[8:])
        return [g.contiguous() for g in found]

    def grad_shapes(form: str, window: int, content: bool, scale: float, *given: Tensor) -> Any:  # noqa: ARG001
        return [torch.empty_like(g, memory_format=torch.contiguous_format) for g in given[:8]]

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.rules = inputs[:4]
        ctx.save_for_backward(*inputs[4:], *output)
        ctx.set_materialize_grads(True)

    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> Any:
        found = operators.parallel_attention_grad(*ctx.rules, *ctx.saved_tensors, upstream)
        return (None, None, None, None, *found)

    for name, run, fake in (
        (library, forward, shapes),
        (f"{library}_grad", grad, grad_shapes),
    ):
        torch.library.impl(name, ("CPU", "CUDA"), run)
        torch.library.register_fake(name, fake)
    torch.library.register_autograd(library, backward, setup_context=keep)
    return operators.parallel_attention


_operator = _define()
