"""What multi-variate parallel attention is computed from, and which pairs use content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from manyhead_core.errors import ConfigError


class Parts(NamedTuple):
    """Projected tokens, positions and biases; tokens are time-major, `token = step C + channel`.

    Args:
        query: `(batch, heads, tokens, head_dim)`.
        key: `(batch, key_heads, tokens, head_dim)`; consecutive query heads share a key head.
        value: `(batch, key_heads, tokens, head_dim)`.
        step_key: Projected rows of the time table, `(key_heads, steps, head_dim)`; the last row is
            distance 0.
        channel_key: Projected rows of the channel table, `(key_heads, channels, head_dim)`; the
            last row is distance 0.
        content_bias: Added to the queries of the content part, `(key_heads, head_dim)`.
        step_bias: Added to the queries of the time part, `(key_heads, head_dim)`.
        channel_bias: Added to the queries of the channel part, `(key_heads, head_dim)`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    step_key: Tensor
    channel_key: Tensor
    content_bias: Tensor
    step_bias: Tensor
    channel_bias: Tensor

    @property
    def steps(self) -> int:
        """Time steps of the grid."""
        return self.step_key.shape[1]

    @property
    def channels(self) -> int:
        """Channels of the grid."""
        return self.channel_key.shape[1]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which pairs use content, and how scores are scaled.

    Args:
        window: Steps back up to which keys keep their content part. Farther keys are not masked:
            they keep their time and channel parts. Queries of the newest step use the content of
            all keys.
        content: Whether there is a content part at all.
        scale: Factor of the scores.
    """

    window: int = 10
    content: bool = True
    scale: float = 1.0

    def uses_content(self, steps: int, device: torch.device) -> Tensor:
        """True where a pair of query and key step uses content, `(steps, steps)`."""
        if not self.content:
            return torch.zeros(steps, steps, dtype=torch.bool, device=device)
        step = torch.arange(steps, device=device)
        near = step[:, None] - step <= self.window
        near[-1] = True
        return near


def check(parts: Parts) -> None:
    """Refuse parts that do not belong together.

    Raises:
        ConfigError: Tokens are not steps times channels, or heads do not divide.
    """
    tokens, expected = parts.query.shape[2], parts.steps * parts.channels
    if tokens != expected:
        raise ConfigError(
            f"grid: {parts.steps} steps of {parts.channels} channels are {expected} tokens, got "
            f"{tokens}"
        )
    if parts.query.shape[1] % parts.key.shape[1]:
        raise ConfigError(
            f"heads: {parts.query.shape[1]} query heads are no multiple of {parts.key.shape[1]} "
            "key heads"
        )


class Dropout(NamedTuple):
    """Weights that are dropped, the same each time they are asked for.

    Args:
        p: Probability of dropping a weight.
        seed: Of the draws.
    """

    p: float = 0.0
    seed: int = 0

    @classmethod
    def draw(cls, p: float) -> Dropout:
        """With a seed from the generator of the process."""
        return cls(p, int(torch.randint(2**62, ())) if p > 0 else 0)

    def kept(self, weights: Tensor, *place: int) -> Tensor:
        """Zero for dropped weights, else what keeps the mean.

        Args:
            weights: Shape and number format.
            *place: Numbers that tell these weights from others of the call.
        """
        if self.p >= 1:
            return torch.zeros_like(weights)
        seed = self.seed
        for number in place:
            seed = (seed * 1_000_003 + number) % 2**62
        generator = torch.Generator(weights.device)
        generator.manual_seed(seed)
        kept = torch.empty_like(weights).bernoulli_(1 - self.p, generator=generator)
        return kept.mul_(1 / (1 - self.p))


def kept_keys(parts: Parts, p: float) -> Tensor:
    """Zero for the tokens of dropped steps and channels, else what keeps the mean, `(tokens, 1)`.

    Each step and each channel is dropped with probability `1 - sqrt(1 - p)`, so a token is with
    probability `p`.

    Args:
        parts: Sizes and number format.
        p: Probability of dropping a token.
    """
    keep = (1 - p) ** 0.5
    like = parts.value
    step, channel = (
        torch.rand(size, device=like.device) < keep for size in (parts.steps, parts.channels)
    )
    both = (step[:, None] & channel).flatten()[:, None]
    return both.to(like.dtype) / (1 - p)
