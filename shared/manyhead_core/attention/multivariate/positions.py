"""Time and channel parts of all scores as two tables, for kernels that read them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.multivariate.inputs import Parts, Rules


def position_scores(parts: Parts, rules: Rules) -> tuple[Tensor, Tensor]:
    """Scaled scores in float32 at least, with gradients that add up in a fixed order.

    Args:
        parts: Projected queries, positions and biases.
        rules: Scale.

    Returns:
        By key step, `(batch, heads, tokens, steps)`, where later steps hold anything finite; by
        key channel, `(batch, heads, tokens, channels)`.
    """
    kind = torch.promote_types(parts.query.dtype, torch.float32)
    steps, channels = parts.steps, parts.channels
    query = parts.query.to(kind).unflatten(1, (parts.key.shape[1], -1))
    step_key, channel_key, _, step_bias, channel_bias = (part.to(kind) for part in parts[3:])

    def scores(bias: Tensor, table: Tensor) -> Tensor:
        found = (query + bias[:, None, None]) @ table[:, None].mT
        return found.flatten(1, 2).unflatten(2, (steps, channels)) * rules.scale

    time = _skewed(scores(step_bias, step_key).transpose(2, 3)).transpose(2, 3)
    both_sides = torch.cat([channel_key, channel_key[:, :-1].flip(1)], 1)
    channel = _skewed(scores(channel_bias, both_sides))
    return time.flatten(2, 3), channel.flatten(2, 3)


def _skewed(scores: Tensor) -> Tensor:
    """Entry `n - 1 - i + j` of row `i` as entry `j`, from `(..., n, m)` to `(..., n, n)`.

    Reading rows one shorter than they are moves row `i` by `i` places.
    """
    count = scores.shape[-2]
    flat = F.pad(scores, (0, 2 * count - scores.shape[-1])).flatten(-2)
    moved = flat[..., count - 1 : flat.shape[-1] - 1].unflatten(-1, (count, 2 * count - 1))
    return moved[..., :count]
