"""Masks as objects: what they mean is stated once, and they combine with `&` and `|`.

A mask says which pairs of query and key may attend. Causality is a mask with an explicit alignment,
because `is_causal=True` of a kernel means different things when queries and keys differ in number.
Each mask exists in two forms that agree: a boolean tensor, and a predicate of indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from manyhead_core.attention.mask_base import Both, Either, Mask, Predicate, Shape, on, reader
from manyhead_core.attention.window2d import Window2D
from manyhead_core.errors import ConfigError

__all__ = [
    "Align",
    "Both",
    "Causal",
    "Dense",
    "Either",
    "KeyPadding",
    "Mask",
    "NotId",
    "Predicate",
    "Prefix",
    "SameId",
    "Shape",
    "SlidingWindow",
    "Window2D",
    "key_offset",
]

Align = Literal["lower_right", "upper_left"]


class _Positional(Mask):
    """A mask of positions alone, the same for every batch element and head."""

    @property
    def varies(self) -> tuple[bool, bool]:
        """Neither."""
        return False, False


@dataclass(frozen=True)
class Causal(_Positional):
    """A query sees the keys up to its own position.

    Args:
        align: `lower_right` puts the last query on the last key, as decoding with a cache needs;
            `upper_left` puts query 0 on key 0, as `is_causal=True` of a kernel does.
    """

    align: Align = "lower_right"
    kind: ClassVar[str] = "causal"

    def dense(self, shape: Shape) -> Tensor:
        """`(queries, keys)`."""
        return _positions(shape, self.align) >= 0

    def mask_mod(self, shape: Shape) -> Predicate:
        """`k <= q + offset`."""
        offset = key_offset(shape, self.align)

        def past(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            return k <= q + offset

        return past

    @property
    def causal(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class SlidingWindow(_Positional):
    """A query sees `left` keys before and `right` keys after its own position.

    Args:
        left: Keys before.
        right: Keys after.
        align: As in `Causal`.
    """

    left: int
    right: int
    align: Align = "lower_right"
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.left < 0 or self.right < 0:
            raise ConfigError(f"left, right: must be 0 or more, got {self.left} and {self.right}")

    def dense(self, shape: Shape) -> Tensor:
        """`(queries, keys)`."""
        distance = _positions(shape, self.align)
        return (distance <= self.left) & (distance >= -self.right)

    def mask_mod(self, shape: Shape) -> Predicate:
        """`q + offset - left <= k <= q + offset + right`."""
        offset, left, right = key_offset(shape, self.align), self.left, self.right

        def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            distance = q + offset - k
            return (distance <= left) & (distance >= -right)

        return near

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
    kind: ClassVar[str] = "keys"

    def dense(self, shape: Shape) -> Tensor:
        """`(batch, 1, 1, keys)`."""
        return on(self.keys(shape.keys), shape.device)[:, None, None]

    def mask_mod(self, shape: Shape) -> Predicate:
        """Flags are read, lengths compared."""
        if self.valid.dtype == torch.bool:
            return reader(self.valid[:, None, None], shape)
        read = reader(self.valid[:, None, None, None], shape)

        def real(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return k < read(b, h, q, k)

        return real

    @property
    def varies(self) -> tuple[bool, bool]:
        """Between batch elements."""
        return self.valid.shape[0] > 1, False

    def keys(self, count: int) -> Tensor:
        """Boolean `(batch, keys)`."""
        if self.valid.dtype == torch.bool:
            return self.valid
        return torch.arange(count, device=self.valid.device) < self.valid[:, None]


@dataclass(frozen=True, eq=False)
class SameId(Mask):
    """Tokens of the same document, instance or group.

    Args:
        query_ids: `(batch, queries)` or `(queries,)`.
        key_ids: `(batch, keys)` or `(keys,)`; None takes those of the queries.
    """

    query_ids: Tensor
    key_ids: Tensor | None = None
    kind: ClassVar[str] = "ids"

    def dense(self, shape: Shape) -> Tensor:
        """`(batch, 1, queries, keys)`, or `(queries, keys)` for ids without a batch."""
        query_ids, key_ids = self._ids(shape.device)
        same = query_ids[..., :, None] == key_ids[..., None, :]
        return same if same.dim() == 2 else same[:, None]

    def mask_mod(self, shape: Shape) -> Predicate:
        """The ids are read on both sides."""
        query_ids, key_ids = self._ids(shape.device)
        of_query = reader(query_ids[..., None, :, None], shape)
        of_key = reader(key_ids[..., None, None, :], shape)

        def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return of_query(b, h, q, k) == of_key(b, h, q, k)

        return same

    @property
    def varies(self) -> tuple[bool, bool]:
        """Between batch elements, where ids have a batch."""
        ids = (self.query_ids,) if self.key_ids is None else (self.query_ids, self.key_ids)
        return any(x.dim() == 2 and x.shape[0] > 1 for x in ids), False

    def _ids(self, device: torch.device) -> tuple[Tensor, Tensor]:
        key_ids = self.query_ids if self.key_ids is None else self.key_ids
        return on(self.query_ids, device), on(key_ids, device)


@dataclass(frozen=True, eq=False)
class NotId(SameId):
    """Tokens of different documents, instances or groups.

    Args:
        query_ids: `(batch, queries)` or `(queries,)`.
        key_ids: `(batch, keys)` or `(keys,)`; None takes those of the queries.
    """

    def dense(self, shape: Shape) -> Tensor:
        """`(batch, 1, queries, keys)`, or `(queries, keys)` for ids without a batch."""
        return ~super().dense(shape)

    def mask_mod(self, shape: Shape) -> Predicate:
        """The ids are read on both sides."""
        same = super().mask_mod(shape)

        def different(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return ~same(b, h, q, k)

        return different


@dataclass(frozen=True)
class Prefix(_Positional):
    """The first keys, visible to every query.

    Args:
        length: Number of keys.
    """

    length: int
    kind: ClassVar[str] = "prefix"

    def dense(self, shape: Shape) -> Tensor:
        """`(1, keys)`."""
        return (torch.arange(shape.keys, device=shape.device) < self.length)[None]

    def mask_mod(self, shape: Shape) -> Predicate:  # noqa: ARG002
        """`k < length`."""
        length = self.length

        def first(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            return k < length

        return first


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any boolean tensor.

    Args:
        allowed: True where attending is allowed, broadcastable to `(batch, heads, queries, keys)`.
    """

    allowed: Tensor
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        """Check the type: an additive mask would be read upside down."""
        if self.allowed.dtype != torch.bool:
            raise ConfigError(
                f"mask: {self.allowed.dtype} is not boolean; pass True where attending is allowed"
            )

    def dense(self, shape: Shape) -> Tensor:
        """The tensor."""
        return on(self.allowed, shape.device)

    @property
    def varies(self) -> tuple[bool, bool]:
        """Along the axes that are not broadcast."""
        batch, heads, _, _ = (1,) * (4 - self.allowed.dim()) + tuple(self.allowed.shape)
        return batch > 1, heads > 1


def key_offset(shape: Shape, align: Align) -> int:
    """Position of query 0 among the keys."""
    return shape.keys - shape.queries if align == "lower_right" else 0


def _positions(shape: Shape, align: Align) -> Tensor:
    """Position of each query less that of each key, `(queries, keys)`."""
    queries = torch.arange(shape.queries, device=shape.device) + key_offset(shape, align)
    return queries[:, None] - torch.arange(shape.keys, device=shape.device)
