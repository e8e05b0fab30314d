"""Neighbourhoods on a grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from manyhead_core.attention.mask_base import Mask, Predicate, Shape
from manyhead_core.errors import ConfigError


@dataclass(frozen=True)
class Window2D(Mask):
    """A neighbourhood on a grid of tokens, row-major.

    Args:
        grid: Height and width in tokens.
        size: Side of the neighbourhood, odd.
        dilation: Step between neighbours.
        boundary: `clip` drops neighbours outside the map; `shift` moves the neighbourhood inward,
            so that each query keeps the full count.

    Raises:
        ConfigError: The sizes do not fit; from `dense` and `mask_mod`, the scores are not those of
            the grid.
    """

    grid: tuple[int, int]
    size: int
    dilation: int = 1
    boundary: Literal["clip", "shift"] = "clip"
    kind: ClassVar[str] = "grid"

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
        self._check(shape)
        rows, columns = (self._axis(length, shape.device) for length in self.grid)
        pairs = rows[:, None, :, None] & columns[None, :, None, :]
        tokens = self.grid[0] * self.grid[1]
        return pairs.reshape(tokens, tokens)

    def mask_mod(self, shape: Shape) -> Predicate:
        """By division of the indices into row and column."""
        self._check(shape)
        height, width = self.grid
        size, dilation, shift = self.size, self.dilation, self.boundary == "shift"

        def neighbours(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            rows = _near(q // width, k // width, height, size, dilation, shift)
            return rows & _near(q % width, k % width, width, size, dilation, shift)

        return neighbours

    @property
    def varies(self) -> tuple[bool, bool]:
        """Positions are those of every batch element and head."""
        return False, False

    def _axis(self, length: int, device: torch.device) -> Tensor:
        """Visible coordinates along one axis, `(length, length)`."""
        place = torch.arange(length, device=device)
        shift = self.boundary == "shift"
        return _near(place[:, None], place[None, :], length, self.size, self.dilation, shift)

    def _check(self, shape: Shape) -> None:
        tokens = self.grid[0] * self.grid[1]
        if shape.queries != tokens or shape.keys != tokens:
            raise ConfigError(
                f"mask: a neighbourhood on the grid {self.grid} is for {tokens} queries and keys, "
                f"got {shape.queries} and {shape.keys}; pass the grid of the tokens"
            )


def _near(query: Tensor, key: Tensor, length: int, size: int, dilation: int, shift: bool) -> Tensor:
    """Whether coordinates along an axis of that length are neighbours."""
    reach = size // 2 * dilation
    centre = query
    if shift:
        # Dilated neighbours keep the query's own phase, as neighbourhood attention does.
        low = reach + (query - reach) % dilation
        high = length - 1 - reach - (length - 1 - reach - query) % dilation
        centre = torch.maximum(torch.minimum(query, high), low)
    offset = key - centre
    return (offset.abs() <= reach) & (offset % dilation == 0)
