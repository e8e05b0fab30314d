"""Where the tokens of a layer are, and which of them are no ordinary tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manyhead_core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Layout:
    """Places and kinds of the tokens of a layer.

    Args:
        cells: Place on the grid for ring distances, `(tokens, axes)` whole numbers, or NaN for
            tokens without a place; None is the order of the tokens.
        coordinates: Place for distances, `(tokens, axes)` or `(batch, tokens, axes)` in any unit,
            NaN for tokens without a place; None takes `cells`.
        class_tokens: Numbers of the class tokens.
        memory_tokens: Numbers of the memory or register tokens.
        padding: True for padding, boolean `(batch, tokens)` or `(tokens,)`; None for none.
        query: Layout of the queries where they are other tokens; None for self-attention.
    """

    cells: Tensor | None = None
    coordinates: Tensor | None = None
    class_tokens: Sequence[int] = ()
    memory_tokens: Sequence[int] = ()
    padding: Tensor | None = None
    query: Layout | None = None

    @classmethod
    def grid(
        cls,
        sizes: Sequence[int],
        *,
        spacing: float | Sequence[float] = 1.0,
        class_tokens: int = 0,
        memory_tokens: int = 0,
        padding: Tensor | None = None,
    ) -> Layout:
        """Tokens in row-major order on a grid, after class tokens and memory tokens.

        Args:
            sizes: Tokens along each axis.
            spacing: Distance of neighbours, such as mm or µm; one number or one an axis.
            class_tokens: How many class tokens come first.
            memory_tokens: How many memory tokens follow them.
            padding: As in the class.
        """
        axes = [torch.arange(size, dtype=torch.float32) for size in sizes]
        cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
        extra = class_tokens + memory_tokens
        cells = torch.cat([torch.full((extra, len(axes)), torch.nan), cells])
        return cls(
            cells,
            cells * torch.as_tensor(spacing),
            range(class_tokens),
            range(class_tokens, extra),
            padding,
        )

    def rings(self, count: int) -> Tensor:
        """Grid places of `count` tokens, `(count, axes)`.

        Raises:
            ConfigError: The layout is for another number of tokens.
        """
        if self.cells is None:
            return torch.arange(count, dtype=torch.float32)[:, None]
        return _sized(self.cells, count)

    def places(self, count: int) -> Tensor:
        """Coordinates of `count` tokens, `(count, axes)` or `(batch, count, axes)`.

        Raises:
            ConfigError: The layout is for another number of tokens.
        """
        return self.rings(count) if self.coordinates is None else _sized(self.coordinates, count)


# One layout for all layers, one a layer, or a function of batch and layer.
Layouts = Layout | Mapping[int, Layout] | Callable[[Any, int], Layout] | None


def layout_of(layouts: Layouts, batch: Any, layer: int) -> Layout:
    """The layout of one layer for one batch; that of a plain sequence where there is none."""
    if layouts is None:
        return Layout()
    if isinstance(layouts, Layout):
        return layouts
    if isinstance(layouts, Mapping):
        return layouts.get(layer, Layout())
    return layouts(batch, layer)


def _sized(places: Tensor, count: int) -> Tensor:
    if places.shape[-2] != count:
        raise ConfigError(
            f"layout: it has {places.shape[-2]} tokens, the layer has {count}; pass a layout for "
            "each layer, class and memory tokens included"
        )
    return places
