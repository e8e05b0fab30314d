"""Rotary position embedding of Su et al., 2021, arXiv 2104.09864, in its half-split form."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, *, start: int = 0, theta: float = 10_000.0) -> Tensor:
    """Turn each pair of channels by an angle that grows with the position.

    Channel `c` pairs with `c + head_dim / 2`, and turns by `position * theta^(-2c / head_dim)`.
    The product of a turned query and a turned key depends on the distance of their positions only.

    Args:
        x: `(..., tokens, head_dim)` with an even `head_dim`.
        start: Position of the first token.
        theta: Base of the wavelengths.
    """
    half = x.shape[-1] // 2
    precise = torch.promote_types(x.dtype, torch.float32)
    channel = torch.arange(half, device=x.device, dtype=precise)
    position = torch.arange(start, start + x.shape[-2], device=x.device, dtype=precise)
    angle = position[:, None] * theta ** (-channel / half)
    first, second = x.to(precise).split(half, -1)
    cosine, sine = angle.cos(), angle.sin()
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, -1).to(x.dtype)
