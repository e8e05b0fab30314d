"""What a bias is, and how biases add up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manyhead_core.attention.mask_base import Shape

# Of score, batch element, head, query and key; the indices are integer tensors and broadcast. The
# form that FlexAttention takes.
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Bias(ABC):
    """Base of all biases: numbers added to the scaled scores."""

    @abstractmethod
    def dense(self, shape: Shape) -> Tensor:
        """Broadcastable to `(batch, heads, queries, keys)`."""

    @abstractmethod
    def score_mod(self, shape: Shape) -> ScoreMod:
        """The same as a function that adds it to a score, for FlexAttention."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it reads."""

    @property
    def requires_grad(self) -> bool:
        """Whether any of its tensors learns."""
        return any(tensor.requires_grad for tensor in self.tensors())

    def cloned(self) -> Bias:
        """The same bias with tensors of its own, through which gradients pass."""
        return self

    def __add__(self, other: Bias) -> Bias:
        return Sum(self, other)


@dataclass(frozen=True, eq=False)
class Sum(Bias):
    """Two biases added.

    Args:
        first: A bias.
        second: Another one.
    """

    first: Bias
    second: Bias

    def dense(self, shape: Shape) -> Tensor:
        """Their sum."""
        return self.first.dense(shape) + self.second.dense(shape)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """One after the other."""
        known = {id(tensor) for tensor in self.first.tensors() if tensor.requires_grad}
        shared = any(id(tensor) in known for tensor in self.second.tensors())
        # FlexAttention refuses to read one learning tensor in two places.
        second = self.second.cloned() if shared else self.second
        return chain(self.first.score_mod(shape), second.score_mod(shape))

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of both."""
        return (*self.first.tensors(), *self.second.tensors())

    def cloned(self) -> Bias:
        """Both cloned."""
        return Sum(self.first.cloned(), self.second.cloned())


def chain(first: ScoreMod, second: ScoreMod) -> ScoreMod:
    """Apply `first`, then `second`."""

    def both(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return second(first(score, b, h, q, k), b, h, q, k)

    return both


@dataclass(frozen=True, eq=False)
class OneTensor(Bias):
    """A bias that reads one tensor."""

    values: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor."""
        return (self.values,)

    def cloned(self) -> Bias:
        """With a clone of it where it learns."""
        return replace(self, values=self.values.clone()) if self.requires_grad else self


def steps(shape: Shape) -> Tensor:
    """Position of each key less that of each query, `(queries, keys)`, last query on last key."""
    queries = torch.arange(shape.queries, device=shape.device) + shape.keys - shape.queries
    return torch.arange(shape.keys, device=shape.device) - queries[:, None]
