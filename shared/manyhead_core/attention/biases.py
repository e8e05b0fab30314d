"""Biases as objects: what is added to the scores of `attend`, on every kernel. They add up by `+`.

Each bias exists in two forms that agree: a tensor, and a function of score and indices that reads
small tables, so that nothing of the size of the scores is held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manyhead_core.attention.bias_base import Bias, OneTensor, ScoreMod, Sum, chain, steps
from manyhead_core.attention.mask_base import Shape, on, reader
from manyhead_core.attention.relative_biases import (
    ContinuousBias,
    Lookup,
    MLPBias,
    RelPos1D,
    RelPos2D,
)
from manyhead_core.errors import ConfigError

__all__ = [
    "Alibi",
    "Bias",
    "ContinuousBias",
    "Dense",
    "KeyBias",
    "Lookup",
    "MLPBias",
    "RelPos1D",
    "RelPos2D",
    "ScoreMod",
    "Sum",
    "alibi_slopes",
    "chain",
]


@dataclass(frozen=True, eq=False)
class Dense(OneTensor):
    """Any tensor.

    Args:
        values: Broadcastable to `(batch, heads, queries, keys)`.
    """

    def dense(self, shape: Shape) -> Tensor:
        """The tensor."""
        return on(self.values, shape.device)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads the tensor."""
        return _adding(self.values, shape)


@dataclass(frozen=True, eq=False)
class KeyBias(OneTensor):
    """A number for each key, whatever the query.

    Args:
        values: `(batch, heads, keys)`; batch and heads may be 1.
    """

    def dense(self, shape: Shape) -> Tensor:
        """`(batch, heads, 1, keys)`."""
        return on(self.values, shape.device).unsqueeze(-2)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads the numbers of the keys."""
        return _adding(self.values.unsqueeze(-2), shape)


@dataclass(frozen=True, eq=False)
class Alibi(OneTensor):
    """Minus a slope times the distance of query and key.

    Press et al., ICLR 2022, section 3, there for causal attention; here the distance counts to both
    sides. The last query is on the last key.

    Args:
        values: Slope of each head, `(heads,)`; `alibi_slopes` gives the published ones.
    """

    def dense(self, shape: Shape) -> Tensor:
        """`(heads, queries, keys)`."""
        slopes = on(self.values, shape.device)
        return -slopes[:, None, None] * steps(shape).abs()

    def score_mod(self, shape: Shape) -> ScoreMod:
        """From the indices."""
        slopes, offset = on(self.values, shape.device), shape.keys - shape.queries

        def decline(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            return score - (slopes[h] * (k - q - offset).abs()).to(score.dtype)

        return decline


def alibi_slopes(heads: int) -> Tensor:
    """Published slopes of `Alibi`, `(heads,)`.

    For a power of two they fall geometrically from `2 ** (-8 / heads)` to `2 ** -8`. Other numbers
    of heads take those of the power of two below, and then every second one of the power above.

    Args:
        heads: Number of heads.

    Raises:
        ConfigError: There is no head.
    """
    if heads < 1:
        raise ConfigError(f"heads: must be 1 or more, got {heads}")
    below = 1 << (heads.bit_length() - 1)
    own = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    between = [2 ** (-4 * (i + 1) / below) for i in range(0, 2 * below, 2)]
    return torch.tensor((own + between)[:heads])


def _adding(values: Tensor, shape: Shape) -> ScoreMod:
    read = reader(values, shape)

    def add(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + read(b, h, q, k).to(score.dtype)

    return add
