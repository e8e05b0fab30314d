"""Masks as objects: what they mean is stated once, and they combine with `&` and `|`.

A mask says which pairs of query and key may attend. Causality is a mask with an explicit alignment,
because `is_causal=True` of a kernel means different things when queries and keys differ in number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manyhead_core.errors import ConfigError

Align = Literal["lower_right", "upper_left"]


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
    """Base of all masks: True where attending is allowed."""

    @abstractmethod
    def dense(self, shape: Shape) -> Tensor:
        """Boolean, broadcastable to `(batch, heads, queries, keys)`."""

    @property
    def causal(self) -> bool:
        """Whether it guarantees that no query sees a later key."""
        return False

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)


@dataclass(frozen=True)
class Both(Mask):
    """Pairs that both masks allow.

    Args:
        first: A mask.
        second: Another one.
    """

    first: Mask
    second: Mask

    def dense(self, shape: Shape) -> Tensor:
        """True where both are."""
        return self.first.dense(shape) & self.second.dense(shape)

    @property
    def causal(self) -> bool:
        """One causal part is enough."""
        return self.first.causal or self.second.causal


@dataclass(frozen=True)
class Either(Mask):
    """Pairs that at least one mask allows.

    Args:
        first: A mask.
        second: Another one.
    """

    first: Mask
    second: Mask

    def dense(self, shape: Shape) -> Tensor:
        """True where one is."""
        return self.first.dense(shape) | self.second.dense(shape)

    @property
    def causal(self) -> bool:
        """Both parts have to be causal."""
        return self.first.causal and self.second.causal


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees the keys up to its own position.

    Args:
        align: `lower_right` puts the last query on the last key, as decoding with a cache needs;
            `upper_left` puts query 0 on key 0, as `is_causal=True` of a kernel does.
    """

    align: Align = "lower_right"

    def dense(self, shape: Shape) -> Tensor:
        """`(queries, keys)`."""
        return _positions(shape, self.align) >= 0

    @property
    def causal(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """A query sees `left` keys before and `right` keys after its own position.

    Args:
        left: Keys before.
        right: Keys after.
        align: As in `Causal`.
    """

    left: int
    right: int
    align: Align = "lower_right"

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.left < 0 or self.right < 0:
            raise ConfigError(f"left, right: must be 0 or more, got {self.left} and {self.right}")

    def dense(self, shape: Shape) -> Tensor:
        """`(queries, keys)`."""
        distance = _positions(shape, self.align)
        return (distance <= self.left) & (distance >= -self.right)

    @property
    def causal(self) -> bool:
        """Without keys after."""
        return self.right == 0


@dataclass(frozen=True, eq=False)
class KeyPadding(Mask):
    """Keys that hold a real token.

    Args:
        valid: Boolean `(batch, keys)`, or the number of real keys of each batch element, int
            `(batch,)`.
    """

    valid: Tensor

    def dense(self, shape: Shape) -> Tensor:
        """`(batch, 1, 1, keys)`."""
        return self.keys(shape.keys)[:, None, None]

    def keys(self, count: int) -> Tensor:
        """Boolean `(batch, keys)`."""
        if self.valid.dtype == torch.bool:
            return self.valid
        return torch.arange(count, device=self.valid.device) < self.valid[:, None]


@dataclass(frozen=True)
class Window2D(Mask):
    """A neighbourhood on a grid of tokens, row-major.

    Args:
        grid: Height and width in tokens.
        size: Side of the neighbourhood, odd.
        dilation: Step between neighbours.
        boundary: `clip` drops neighbours outside the map; `shift` moves the neighbourhood inward,
            so that each query keeps the full count.
    """

    grid: tuple[int, int]
    size: int
    dilation: int = 1
    boundary: Literal["clip", "shift"] = "clip"

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.size < 1 or self.size % 2 == 0 or self.dilation < 1:
            raise ConfigError(
                f"size, dilation: need an odd size and a positive step, got {self.size} and "
                f"{self.dilation}"
            )
        reach = (self.size - 1) * self.dilation + 1
        if self.boundary == "shift" and reach > min(self.grid):
            raise ConfigError(
                f"size: a neighbourhood of {reach} tokens exceeds the grid {self.grid}"
            )

    def dense(self, shape: Shape) -> Tensor:
        """`(queries, keys)`."""
        rows, columns = (self._axis(length, shape.device) for length in self.grid)
        pairs = rows[:, None, :, None] & columns[None, :, None, :]
        tokens = self.grid[0] * self.grid[1]
        return pairs.reshape(tokens, tokens)

    def _axis(self, length: int, device: torch.device) -> Tensor:
        """Visible coordinates along one axis, `(length, length)`."""
        place = torch.arange(length, device=device)
        reach = self.size // 2 * self.dilation
        centre = place
        if self.boundary == "shift":
            # Dilated neighbours keep the query's own phase, as neighbourhood attention does.
            low = reach + (place - reach) % self.dilation
            high = length - 1 - reach - (length - 1 - reach - place) % self.dilation
            centre = torch.maximum(torch.minimum(place, high), low)
        offset = place[None, :] - centre[:, None]
        return (offset.abs() <= reach) & (offset % self.dilation == 0)


@dataclass(frozen=True, eq=False)
class SameId(Mask):
    """Tokens of the same document, instance or group.

    Args:
        query_ids: `(batch, queries)` or `(queries,)`.
        key_ids: `(batch, keys)` or `(keys,)`; None takes those of the queries.
    """

    query_ids: Tensor
    key_ids: Tensor | None = None

    def dense(self, shape: Shape) -> Tensor:  # noqa: ARG002
        """`(batch, 1, queries, keys)`, or `(queries, keys)` for ids without a batch."""
        key_ids = self.query_ids if self.key_ids is None else self.key_ids
        same = self.query_ids[..., :, None] == key_ids[..., None, :]
        return same if same.dim() == 2 else same[:, None]


@dataclass(frozen=True, eq=False)
class NotId(Mask):
    """Tokens of different documents, instances or groups.

    Args:
        query_ids: `(batch, queries)` or `(queries,)`.
        key_ids: `(batch, keys)` or `(keys,)`; None takes those of the queries.
    """

    query_ids: Tensor
    key_ids: Tensor | None = None

    def dense(self, shape: Shape) -> Tensor:
        """`(batch, 1, queries, keys)`, or `(queries, keys)` for ids without a batch."""
        return ~SameId(self.query_ids, self.key_ids).dense(shape)


@dataclass(frozen=True)
class Prefix(Mask):
    """The first keys, visible to every query.

    Args:
        length: Number of keys.
    """

    length: int

    def dense(self, shape: Shape) -> Tensor:
        """`(1, keys)`."""
        return (torch.arange(shape.keys, device=shape.device) < self.length)[None]


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any boolean tensor.

    Args:
        allowed: True where attending is allowed, broadcastable to `(batch, heads, queries, keys)`.
    """

    allowed: Tensor

    def __post_init__(self) -> None:
        """Check the type: an additive mask would be read upside down."""
        if self.allowed.dtype != torch.bool:
            raise ConfigError(
                f"mask: {self.allowed.dtype} is not boolean; pass True where attending is allowed"
            )

    def dense(self, shape: Shape) -> Tensor:  # noqa: ARG002
        """The tensor."""
        return self.allowed


def _positions(shape: Shape, align: Align) -> Tensor:
    """Position of each query less that of each key, `(queries, keys)`."""
    offset = shape.keys - shape.queries if align == "lower_right" else 0
    queries = torch.arange(shape.queries, device=shape.device) + offset
    return queries[:, None] - torch.arange(shape.keys, device=shape.device)
