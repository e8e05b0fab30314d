"""What a mask is, how masks combine, and how a tensor is read at score positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

# Of batch element, head, query and key, each an integer tensor; they broadcast. The form that
# FlexAttention takes.
Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Size and device of the scores that a mask is for.

    Args:
        batch: Batch elements.
        heads: Query heads.
        queries: Queries.
        keys: Keys.
        device: Where the mask is needed.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    device: torch.device

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> Shape:
        """Of queries `(batch, heads, queries, dim)` and keys `(batch, key_heads, keys, dim)`."""
        batch, heads, queries, _ = query.shape
        return cls(batch, heads, queries, key.shape[2], query.device)


class Mask(ABC):
    """Base of all masks: True where attending is allowed.

    Attributes:
        kind: What the choice of a kernel needs to know: `causal`, `window`, `keys`, `ids`, `grid`,
            `prefix`, `dense`, `both` or `either`.
    """

    kind: ClassVar[str] = "dense"

    @abstractmethod
    def dense(self, shape: Shape) -> Tensor:
        """Boolean, broadcastable to `(batch, heads, queries, keys)`."""

    def mask_mod(self, shape: Shape) -> Predicate:
        """The same as a predicate of indices, for FlexAttention.

        A subclass overrides it with arithmetic, so that nothing of the size of the scores is held.
        """
        return reader(self.dense(shape), shape)

    @property
    def causal(self) -> bool:
        """Whether it guarantees that no query sees a later key."""
        return False

    @property
    def varies(self) -> tuple[bool, bool]:
        """Whether it may differ between batch elements, and between heads."""
        return True, True

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)


@dataclass(frozen=True)
class _Pair(Mask):
    first: Mask
    second: Mask

    @property
    def varies(self) -> tuple[bool, bool]:
        """Where one of them does."""
        (batch, head), (other_batch, other_head) = self.first.varies, self.second.varies
        return batch or other_batch, head or other_head


@dataclass(frozen=True)
class Both(_Pair):
    """Pairs that both masks allow.

    Args:
        first: A mask.
        second: Another one.
    """

    kind: ClassVar[str] = "both"

    def dense(self, shape: Shape) -> Tensor:
        """True where both are."""
        return self.first.dense(shape) & self.second.dense(shape)

    def mask_mod(self, shape: Shape) -> Predicate:
        """True where both are."""
        first, second = self.first.mask_mod(shape), self.second.mask_mod(shape)

        def both(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return first(b, h, q, k) & second(b, h, q, k)

        return both

    @property
    def causal(self) -> bool:
        """One causal part is enough."""
        return self.first.causal or self.second.causal


@dataclass(frozen=True)
class Either(_Pair):
    """Pairs that at least one mask allows.

    Args:
        first: A mask.
        second: Another one.
    """

    kind: ClassVar[str] = "either"

    def dense(self, shape: Shape) -> Tensor:
        """True where one is."""
        return self.first.dense(shape) | self.second.dense(shape)

    def mask_mod(self, shape: Shape) -> Predicate:
        """True where one is."""
        first, second = self.first.mask_mod(shape), self.second.mask_mod(shape)

        def either(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return first(b, h, q, k) | second(b, h, q, k)

        return either

    @property
    def causal(self) -> bool:
        """Both parts have to be causal."""
        return self.first.causal and self.second.causal


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; itself where it is there already."""
    # `to` leaves a node in an exported graph even when there is nothing to move.
    return tensor if tensor.device == device else tensor.to(device)


def reader(tensor: Tensor, shape: Shape) -> Predicate:
    """Read a tensor at index tensors.

    Args:
        tensor: Broadcastable to `(batch, heads, queries, keys)`.
        shape: Of the scores.
    """
    full = on(tensor, shape.device)[(None,) * (4 - tensor.dim())]
    axes = [axis for axis in range(4) if full.shape[axis] != 1]
    if not axes:
        # One number for all: without an index the result would not follow the indices' shape.
        full, axes = full.expand(1, 1, 1, shape.keys), [3]
    flat = full.reshape([full.shape[axis] for axis in axes])

    def read(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        given = (b, h, q, k)
        return flat[tuple([given[axis] for axis in axes])]

    return read
