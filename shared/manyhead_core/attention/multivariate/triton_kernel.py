# mypy: disable-error-code="untyped-decorator"
# ruff: noqa: N803 - constants of a kernel are capitals, as in the formulas
"""Triton kernels of parallel attention. Import this only where they run: it needs `triton`.

Tiles are channels of one query step by channels of one key step, so a tile either has content or
has none. Without content a weight is a product of a number for the key step and one for the key
channel: such tiles need neither the query-key product nor exponentials in the forward pass.
Every result is written by one program: there are no atomics, so runs repeat bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from manyhead_core.attention.multivariate.inputs import Parts, Rules
from manyhead_core.attention.multivariate.positions import position_scores

LOG2_E = 1.4426950408889634
WIDTHS = (16, 32, 64, 128)


@triton.jit
def _tile(start, offsets, stride, columns, inside):  # type: ignore[no-untyped-def]
    """Rows of a `(tokens, width)` matrix; zero where they are not inside."""
    return tl.load(
        start + offsets[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0
    )


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, time, place, out, lse, scale,
    heads, groups, steps, channels, window,
    CONTENT: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(channels, M)
    step = steps - 1 - tl.program_id(0) // tiles  # the longest first
    row = (tl.program_id(0) % tiles) * M + tl.arange(0, M)
    which = tl.program_id(1).to(tl.int64)
    tokens = steps * channels
    shared = (which // heads) * (heads // groups) + (which % heads) // groups
    inside = row < channels
    token = step * channels + row
    width = tl.arange(0, D)
    q = _tile(query + which * tokens * D, token, D, width, inside)
    time += which * tokens * steps + token.to(tl.int64) * steps
    place += which * tokens * channels
    key += shared * tokens * D
    value += shared * tokens * D
    far = tl.maximum(step - window, 0)
    if step == steps - 1:
        far = far * 0
    if not CONTENT:
        far = far * 0 + step + 1
    top = tl.full([M], -1.0e38, tl.float32)
    total = tl.zeros([M], tl.float32)
    found = tl.zeros([M, D], tl.float32)
    if far > 0:
        time_top = tl.full([M], -float("inf"), tl.float32)
        for t in range(far):
            f = tl.load(time + t, mask=inside, other=0.0) * 1.4426950408889634
            time_top = tl.maximum(time_top, f)
        place_top = tl.full([M], -float("inf"), tl.float32)
        for first in range(0, channels, N):
            column = first + tl.arange(0, N)
            both = inside[:, None] & (column < channels)[None, :]
            g = tl.load(place + token[:, None] * channels + column[None, :], mask=both, other=0.0)
            g = tl.where((column < channels)[None, :], g * 1.4426950408889634, -float("inf"))
            place_top = tl.maximum(place_top, tl.max(g, 1))
        for first in range(0, channels, N):
            column = first + tl.arange(0, N)
            real = column < channels
            both = inside[:, None] & real[None, :]
            g = tl.load(place + token[:, None] * channels + column[None, :], mask=both, other=0.0)
            g = tl.where(real[None, :], g * 1.4426950408889634, -float("inf"))
            b = tl.exp2(g - place_top[:, None])
            b_sum = tl.sum(b, 1)
            b = b.to(value.dtype.element_ty)
            for t in range(far):
                f = tl.load(time + t, mask=inside, other=0.0) * 1.4426950408889634
                a = tl.exp2(f - time_top)
                v = _tile(value, t * channels + column, D, width, real)
                found += a[:, None] * tl.dot(b, v, input_precision=PRECISION)
                total += a * b_sum
        top = time_top + place_top
    for first in range(0, channels, N):
        column = first + tl.arange(0, N)
        real = column < channels
        both = inside[:, None] & real[None, :]
        g = tl.load(place + token[:, None] * channels + column[None, :], mask=both, other=0.0)
        g = tl.where(real[None, :], g * 1.4426950408889634, -float("inf"))
        for t in range(far, step + 1):
            k = _tile(key, t * channels + column, D, width, real)
            v = _tile(value, t * channels + column, D, width, real)
            f = tl.load(time + t, mask=inside, other=0.0) * 1.4426950408889634
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + f[:, None] + g
            new = tl.maximum(top, tl.max(s, 1))
            shrink = tl.exp2(top - new)
            p = tl.exp2(s - new[:, None])
            total = total * shrink + tl.sum(p, 1)
            found = found * shrink[:, None]
            found += tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            top = new
    found = found / total[:, None]
    where = out + which * tokens * D + token[:, None] * D + width[None, :]
    tl.store(where, found.to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + which * tokens + token, top + tl.log2(total), mask=inside)


@triton.jit
def _query_kernel(  # type: ignore[no-untyped-def]
    query, key, value, time, place, grad, lse, delta, d_query, d_time, d_place, scale,
    heads, groups, steps, channels, window,
    CONTENT: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries by content, and of both tables."""
    tiles = tl.cdiv(channels, M)
    step = steps - 1 - tl.program_id(0) // tiles
    row = (tl.program_id(0) % tiles) * M + tl.arange(0, M)
    which = tl.program_id(1).to(tl.int64)
    tokens = steps * channels
    shared = (which // heads) * (heads // groups) + (which % heads) // groups
    inside = row < channels
    token = step * channels + row
    width = tl.arange(0, D)
    q = _tile(query + which * tokens * D, token, D, width, inside)
    do = _tile(grad + which * tokens * D, token, D, width, inside)
    own_lse = tl.load(lse + which * tokens + token, mask=inside, other=0.0)
    own_delta = tl.load(delta + which * tokens + token, mask=inside, other=0.0)
    in_time = which * tokens * steps + token.to(tl.int64) * steps
    time += in_time
    d_time += in_time
    place += which * tokens * channels
    d_place += which * tokens * channels
    key += shared * tokens * D
    value += shared * tokens * D
    far = tl.maximum(step - window, 0)
    if step == steps - 1:
        far = far * 0
    if not CONTENT:
        far = far * 0 + step + 1
    found = tl.zeros([M, D], tl.float32)
    for first in range(0, channels, N):
        column = first + tl.arange(0, N)
        real = column < channels
        both = inside[:, None] & real[None, :]
        spot = token[:, None] * channels + column[None, :]
        g = tl.load(place + spot, mask=both, other=0.0)
        g = tl.where(real[None, :], g * 1.4426950408889634, -float("inf"))
        g_top = tl.max(g, 1)
        b = tl.exp2(g - g_top[:, None])
        g_sum = tl.zeros([M, N], tl.float32)
        for t in range(far):
            f = tl.load(time + t, mask=inside, other=0.0) * 1.4426950408889634
            a = tl.exp2(f + g_top - own_lse)
            v = _tile(value, t * channels + column, D, width, real)
            slope = tl.dot(do, tl.trans(v), input_precision=PRECISION) - own_delta[:, None]
            slope = a[:, None] * b * slope
            g_sum += slope
            f_sum = tl.sum(slope, 1)
            if first > 0:
                f_sum += tl.load(d_time + t, mask=inside, other=0.0)
            tl.store(d_time + t, f_sum, mask=inside)
        for t in range(far, step + 1):
            k = _tile(key, t * channels + column, D, width, real)
            v = _tile(value, t * channels + column, D, width, real)
            f = tl.load(time + t, mask=inside, other=0.0) * 1.4426950408889634
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + f[:, None] + g
            p = tl.exp2(s - own_lse[:, None])
            slope = tl.dot(do, tl.trans(v), input_precision=PRECISION) - own_delta[:, None]
            slope = p * slope
            g_sum += slope
            found += tl.dot(slope.to(k.dtype), k, input_precision=PRECISION)
            f_sum = tl.sum(slope, 1)
            if first > 0:
                f_sum += tl.load(d_time + t, mask=inside, other=0.0)
            tl.store(d_time + t, f_sum, mask=inside)
        tl.store(d_place + spot, g_sum, mask=both)
    where = d_query + which * tokens * D + token[:, None] * D + width[None, :]
    tl.store(where, found, mask=inside[:, None])


@triton.jit
def _key_kernel(  # type: ignore[no-untyped-def]
    query, key, value, time, place, grad, lse, delta, d_key, d_value, scale,
    groups, steps, channels, window,
    CONTENT: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: N keys of a step against all queries of its head group."""
    tiles = tl.cdiv(channels, N)
    key_step = tl.program_id(0) // tiles
    column = (tl.program_id(0) % tiles) * N + tl.arange(0, N)
    shared = tl.program_id(1).to(tl.int64)
    tokens = steps * channels
    real = column < channels
    key_token = key_step * channels + column
    width = tl.arange(0, D)
    k = _tile(key + shared * tokens * D, key_token, D, width, real)
    v = _tile(value + shared * tokens * D, key_token, D, width, real)
    key_found = tl.zeros([N, D], tl.float32)
    value_found = tl.zeros([N, D], tl.float32)
    for g in range(groups):
        which = shared * groups + g
        own_query = query + which * tokens * D
        own_grad = grad + which * tokens * D
        for step in range(key_step, steps):
            for first in range(0, channels, M):
                row = first + tl.arange(0, M)
                inside = row < channels
                token = step * channels + row
                both = real[:, None] & inside[None, :]
                spot = which * tokens * channels + token[None, :] * channels + column[:, None]
                s = tl.load(place + spot, mask=both, other=0.0)
                f_spot = which * tokens * steps + token.to(tl.int64) * steps + key_step
                s += tl.load(time + f_spot, mask=inside, other=0.0)[None, :]
                own_lse = tl.load(lse + which * tokens + token, mask=inside, other=0.0)
                s = s * 1.4426950408889634 - own_lse[None, :]
                own_delta = tl.load(delta + which * tokens + token, mask=inside, other=0.0)
                do = _tile(own_grad, token, D, width, inside)
                near = (step - key_step <= window) | (step == steps - 1)
                if not CONTENT:
                    near = step < 0
                if near:
                    q = _tile(own_query, token, D, width, inside)
                    s += tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
                    p = tl.where(both, tl.exp2(s), 0.0)
                    slope = tl.dot(v, tl.trans(do), input_precision=PRECISION)
                    slope = p * (slope - own_delta[None, :])
                    key_found += tl.dot(slope.to(q.dtype), q, input_precision=PRECISION)
                else:
                    p = tl.where(both, tl.exp2(s), 0.0)
                value_found += tl.dot(p.to(do.dtype), do, input_precision=PRECISION)
    where = shared * tokens * D + key_token[:, None] * D + width[None, :]
    tl.store(d_key + where, key_found, mask=real[:, None])
    tl.store(d_value + where, value_found, mask=real[:, None])


def triton_forward(parts: Parts, rules: Rules) -> tuple[Tensor, Tensor]:
    """Head outputs and the logs of the sums of weights to base 2, `(batch, heads, tokens)`.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
    """
    query, key, value = _contiguous(parts)
    time, place = (part.contiguous() for part in position_scores(parts, rules))
    out, lse = torch.empty_like(query), time.new_empty(query.shape[:3])
    sizes, choice = _sizes(parts, rules)
    programs = parts.steps * triton.cdiv(parts.channels, choice["M"])
    _forward_kernel[(programs, query.shape[0] * query.shape[1])](
        query, key, value, time, place, out, lse, rules.scale * LOG2_E, *sizes, **choice
    )
    return out.to(parts.value.dtype), lse


def triton_grad(
    parts: Parts, rules: Rules, out: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the eight parts.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        out: Head outputs.
        lse: Logs of the sums of weights to base 2, `(batch, heads, tokens)`.
        grad: Gradient of the head outputs.
    """
    query, key, value = _contiguous(parts)
    grad = grad.to(query.dtype).contiguous()
    delta = (grad.float() * out.float()).sum(-1)
    learning = Parts(*(part.detach().requires_grad_() for part in parts))
    with torch.enable_grad():
        tables = position_scores(learning, rules)
    time, place = (table.detach().contiguous() for table in tables)
    d_time, d_place = torch.zeros_like(time), torch.empty_like(place)
    d_query = torch.empty_like(query, dtype=torch.float32)
    d_key, d_value = (torch.empty_like(x, dtype=torch.float32) for x in (key, value))
    sizes, choice = _sizes(parts, rules)
    given = (query, key, value, time, place, grad, lse, delta)
    scale = rules.scale * LOG2_E
    batch, heads, shared = query.shape[0], query.shape[1], key.shape[1]
    rows, columns = (parts.steps * triton.cdiv(parts.channels, choice[side]) for side in ("M", "N"))
    _query_kernel[(rows, batch * heads)](*given, d_query, d_time, d_place, scale, *sizes, **choice)
    _key_kernel[(columns, batch * shared)](*given, d_key, d_value, scale, *sizes[1:], **choice)
    d_query *= rules.scale
    of_place = torch.autograd.grad(
        tables,
        [learning.query, *learning[3:5], *learning[6:]],
        (d_time, d_place),
    )
    d_bias = d_query.unflatten(1, (shared, -1)).sum((0, 2, 3))
    return (
        d_query + of_place[0], d_key * rules.scale, d_value,
        of_place[1], of_place[2], d_bias, of_place[3], of_place[4],
    )  # fmt: skip


def _contiguous(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Queries with the content bias, keys and values in one number format."""
    groups = parts.query.shape[1] // parts.key.shape[1]
    query = parts.query + parts.content_bias.repeat_interleave(groups, 0)[:, None]
    kind = parts.query.dtype
    return (
        query.to(kind).contiguous(),
        parts.key.to(kind).contiguous(),
        parts.value.to(kind).contiguous(),
    )


def _sizes(parts: Parts, rules: Rules) -> tuple[tuple[int, ...], dict[str, Any]]:
    heads, width = parts.query.shape[1], parts.query.shape[3]
    # Tiles of float32 of this size fill the shared memory of common cards.
    most = 32 if parts.query.dtype == torch.float32 else 64
    side = min(most, max(16, triton.next_power_of_2(parts.channels)))
    sizes = (heads, heads // parts.key.shape[1], parts.steps, parts.channels, rules.window)
    precision = "ieee" if parts.query.dtype == torch.float32 else "tf32"
    choice = {"CONTENT": rules.content, "D": width, "M": side, "N": side, "PRECISION": precision}
    return sizes, choice
