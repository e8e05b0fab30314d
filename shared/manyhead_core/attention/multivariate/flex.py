"""Parallel attention on FlexAttention: positions as lookups, blocks of later steps skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manyhead_core.attention.attend import attend
from manyhead_core.attention.bias_base import ScoreMod
from manyhead_core.attention.mask_base import Mask, Predicate, Shape
from manyhead_core.attention.multivariate.inputs import Parts, Rules
from manyhead_core.attention.multivariate.positions import position_scores


@dataclass(frozen=True)
class UpToOwnStep(Mask):
    """A token sees all channels of its own and of earlier steps.

    Args:
        channels: Tokens of a step.
    """

    channels: int
    kind: ClassVar[str] = "window"

    def dense(self, shape: Shape) -> Tensor:
        """`(queries, keys)`."""
        query = torch.arange(shape.queries, device=shape.device) // self.channels
        key = torch.arange(shape.keys, device=shape.device) // self.channels
        return query[:, None] >= key

    def mask_mod(self, shape: Shape) -> Predicate:  # noqa: ARG002 - the same for all
        """Whether the query's step is not before the key's."""
        channels = self.channels

        def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            return q // channels >= k // channels

        return seen

    @property
    def varies(self) -> tuple[bool, bool]:
        """Neither."""
        return False, False


def attend_by_flex(parts: Parts, rules: Rules) -> Tensor:
    """Head outputs, `(batch, heads, tokens, head_dim)`; gradients on CUDA only.

    Args:
        parts: Projected tokens, positions and biases.
        rules: Content window and scale.
    """
    groups = parts.query.shape[1] // parts.key.shape[1]
    query = parts.query + parts.content_bias.repeat_interleave(groups, 0)[:, None]
    return attend(
        query,
        parts.key,
        parts.value,
        mask=UpToOwnStep(parts.channels),
        score_mod=_score_mod(parts, rules),
        scale=rules.scale,
        backend="flex",
    ).out


def _score_mod(parts: Parts, rules: Rules) -> ScoreMod:
    time, channel = position_scores(parts, rules)
    newest, channels = parts.steps - 1, parts.channels
    content, window = rules.content, rules.window

    def mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        step, key_step = q // channels, k // channels
        place = time[b, h, q, key_step] + channel[b, h, q, k % channels]
        if not content:
            return place
        near = (step - key_step <= window) | (step == newest)
        return torch.where(near, score, 0.0) + place

    return mod
