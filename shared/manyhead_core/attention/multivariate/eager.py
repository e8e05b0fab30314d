"""The plain form: all scores of the grid at once. What the other forms are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.multivariate.inputs import Parts, Rules


def scores(parts: Parts, rules: Rules) -> Tensor:
    """Scaled scores, minus infinity for later steps, `(batch, heads, tokens, tokens)`.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
    """
    steps, channels = parts.steps, parts.channels
    groups = parts.query.shape[1] // parts.key.shape[1]

    def per_head(part: Tensor) -> Tensor:
        return part.repeat_interleave(groups, -3)

    def shifted(bias: Tensor) -> Tensor:
        return parts.query + bias.repeat_interleave(groups, 0)[:, None]

    step = torch.arange(steps, device=parts.query.device)
    channel = torch.arange(channels, device=parts.query.device)
    content = shifted(parts.content_bias) @ per_head(parts.key).transpose(-1, -2)
    time = shifted(parts.step_bias) @ per_head(parts.step_key).transpose(-1, -2)
    across = shifted(parts.channel_bias) @ per_head(parts.channel_key).transpose(-1, -2)
    grid = (steps, channels, steps, channels)
    # Distance 0 is the last row that is in use, so a row means another distance on another grid.
    step_row = (steps - 1 - (step[:, None] - step)).clamp(max=steps - 1)
    channel_row = channels - 1 - (channel[:, None] - channel).abs()
    shape = content.shape[:2]
    time = time.unflatten(2, (steps, channels)).gather(
        -1, step_row[:, None].expand(*shape, steps, channels, steps)
    )
    across = across.unflatten(2, (steps, channels)).gather(
        -1, channel_row.expand(*shape, steps, channels, channels)
    )
    near = rules.uses_content(steps, content.device)[:, None, :, None]
    found = content.view(*shape, *grid) * near + time[..., None] + across[..., None, :]
    later = (step > step[:, None])[:, None, :, None]
    found = found * rules.scale
    return found.masked_fill(later, -torch.inf).view(content.shape)


def attend_eagerly(parts: Parts, rules: Rules, *, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Head outputs `(batch, heads, tokens, head_dim)` and weights `(batch, heads, tokens, tokens)`.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
        dropout: Probability of dropping a weight; those returned are the ones before.
    """
    precise = torch.promote_types(parts.query.dtype, torch.float32)
    weights = scores(Parts(*(part.to(precise) for part in parts)), rules).softmax(-1)
    groups = parts.query.shape[1] // parts.key.shape[1]
    value = parts.value.repeat_interleave(groups, 1).to(precise)
    kept = F.dropout(weights, dropout) if dropout > 0 else weights
    return (kept @ value).to(parts.value.dtype), weights
