"""Attention weights of parallel attention for the query rows that are asked for."""

from __future__ import annotations

from contextlib import nullcontext
from functools import reduce

import torch
from torch import Tensor

from manyhead_core.attention.kernels import outside_autocast
from manyhead_core.attention.maps import MapRequest, reduce_weights
from manyhead_core.attention.multivariate.inputs import Parts, Rules
from manyhead_core.attention.scores import row_chunks


def row_maps(parts: Parts, rules: Rules, request: MapRequest) -> Tensor:
    """Weights before dropout in the form of the request, in parts that fit in memory.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        request: Which rows and heads.
    """
    rows = _wanted(parts, request)
    heads = list(range(parts.query.shape[1])) if request.heads is None else list(request.heads)
    tokens = parts.query.shape[2]
    with (
        torch.no_grad() if request.detach else nullcontext(),
        outside_autocast(parts.query.device.type),
    ):
        found = (
            reduce_weights(row_weights(parts, rules, rows[part], heads), request.reduce)
            for part in row_chunks(parts.query.shape[0], len(heads), len(rows), tokens)
        )
        if request.reduce == "received":
            return reduce(torch.add, found).to(request.dtype)
        return torch.cat(list(found), 1 if request.reduce == "head_mean" else 2).to(request.dtype)


def _wanted(parts: Parts, request: MapRequest) -> Tensor:
    if isinstance(request.queries, Tensor):
        return request.queries.to(parts.query.device)
    count = 1 if request.queries == "first" else parts.query.shape[2]
    return torch.arange(count, device=parts.query.device)


def row_weights(parts: Parts, rules: Rules, rows: Tensor, heads: list[int]) -> Tensor:
    """Weights of some queries, `(batch, heads, rows, tokens)`.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        rows: Numbers of the queries.
        heads: Numbers of the heads.
    """
    kind = torch.promote_types(parts.query.dtype, torch.float32)
    groups = parts.query.shape[1] // parts.key.shape[1]
    shared = [head // groups for head in heads]
    query = parts.query[:, heads][:, :, rows].to(kind)
    key = parts.key[:, shared].to(kind)
    step_key, channel_key, u, b, w = (part[shared].to(kind) for part in parts[3:])
    steps, channels = parts.steps, parts.channels
    step, channel = rows // channels, rows % channels
    key_step, key_channel = (torch.arange(n, device=rows.device) for n in (steps, channels))
    distance = step[:, None] - key_step
    step_row = (steps - 1 - distance).clamp(max=steps - 1)
    channel_row = channels - 1 - (channel[:, None] - key_channel).abs()
    shape = query.shape[:3]
    content = (query + u[:, None]) @ key.mT
    time = ((query + b[:, None]) @ step_key.mT).gather(3, step_row.expand(*shape, -1))
    across = ((query + w[:, None]) @ channel_key.mT).gather(3, channel_row.expand(*shape, -1))
    near = rules.uses_content(steps, rows.device)[step]
    scores = content.unflatten(-1, (steps, channels)) * near[..., None]
    scores = (scores + time[..., None] + across[..., None, :]) * rules.scale
    return scores.masked_fill((distance < 0)[..., None], -torch.inf).flatten(-2).softmax(-1)
