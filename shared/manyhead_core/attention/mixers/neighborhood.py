"""`neighborhood`: a sliding window for every token (Hassani et al., arXiv 2204.07143)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput
from manyhead_core.attention.mixers.grids import known_grid
from manyhead_core.attention.mixers.halo import BlockAttention
from manyhead_core.errors import ConfigError


class NeighborhoodAttention(BlockAttention):
    """Attention of each token to the `window_size` by `window_size` tokens around it.

    At the border of the map the window moves inward, so that every token sees the same number of
    keys. Relative positions are those of `halo`.

    Args:
        dim: Model width.
        num_heads: Heads.
        window_size: Side of the window, odd, at most that of the map.
        boundary: `shift` moves windows inward; `clip` drops what lies outside the map.
        head_dim: Width of queries and keys of a head; None means `dim / num_heads`. Values always
            have that width.
        scale_pos: Scale the queries that meet the relative positions too.
        stride: Step between queries along each axis; the output then has fewer tokens, those of
            every `stride`-th row and column.
        attention_dropout: Probability of dropping a weight while training.
    """

    name = "neighborhood"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"2d"}),
        mask="keys",
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 7,
        boundary: Literal["shift", "clip"] = "shift",
        head_dim: int | None = None,
        scale_pos: bool = False,
        stride: int = 1,
        attention_dropout: float = 0.0,
    ) -> None:
        if window_size < 1 or window_size % 2 == 0 or stride < 1:
            raise ConfigError(
                f"window_size, stride: need an odd size and a positive step, got {window_size} "
                f"and {stride}"
            )
        if boundary not in ("shift", "clip"):
            raise ConfigError(f"boundary: {boundary!r} is unknown; use shift or clip")
        super().__init__(
            dim,
            num_heads,
            head_dim=head_dim,
            window=window_size,
            scale_pos=scale_pos,
            attention_dropout=attention_dropout,
        )
        self.window_size = window_size
        self.shift = boundary == "shift"
        self.stride = stride

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Blocks of queries share the union of their windows; a mask leaves each its own."""
        grid = known_grid(grid)
        if self.shift and self.window_size > min(grid):
            raise ConfigError(
                f"window_size: {self.window_size} exceeds the grid {grid}; use boundary='clip'"
            )
        picture = x.unflatten(1, grid)
        down, across = (self._axis(length, x.device) for length in grid)
        block = self.window_size
        thin = picture[:, :: self.stride, :: self.stride]
        height, width = thin.shape[1:3]
        cells = F.pad(self.queries(thin), (0, 0, 0, -width % block, 0, -height % block))
        blocks = cells.unflatten(2, (-1, block)).unflatten(1, (-1, block)).transpose(2, 3)
        rows, columns = down.keys[:, None, :, None], across.keys[None, :, None, :]
        windows = self.keys_values(picture)[:, rows, columns]
        allowed = down.visible[:, None, :, None, :, None] & across.visible[None, :, None, :, None]
        allowed = allowed.flatten(4, 5).flatten(2, 3)[None]
        if isinstance(mask, KeyPadding):
            valid = mask.keys(x.shape[1]).unflatten(1, grid)
            allowed = allowed & valid[:, rows, columns].flatten(3)[:, :, :, None]
        steps = (down.steps, across.steps)
        out = self.attend_blocks(blocks, windows, steps, allowed, head_gate)
        y = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
        return MixerOutput(y.flatten(1, 2), {})

    def _axis(self, length: int, device: torch.device) -> Axis:
        size, step, block = self.window_size, self.stride, self.window_size
        reach = size // 2
        count = -(-length // step)
        blocks = -(-count // block)
        # Queries beyond the map fill the last block; what they give is cut off.
        query = torch.arange(blocks * block, device=device) * step
        query = query.clamp(max=(count - 1) * step).unflatten(0, (blocks, block))
        start = query - reach
        if self.shift:
            start = start.clamp(0, length - size)
        span = min(length, (block - 1) * step + size)
        first = (query[:, :1] - reach).clamp(0, length - span)
        keys = first + torch.arange(span, device=device)
        away = keys[:, None, :] - start[:, :, None]
        steps = keys[:, None, :] - query[:, :, None] + size - 1
        return Axis(keys, steps.clamp(0, 2 * size - 2), (away >= 0) & (away < size))


class Axis(NamedTuple):
    """Windows along one axis, for each block of queries.

    Args:
        keys: Coordinates of the keys, `(blocks, keys)`.
        steps: Row of the relative table, `(blocks, queries, keys)`.
        visible: Keys in the window of each query, `(blocks, queries, keys)`.
    """

    keys: Tensor
    steps: Tensor
    visible: Tensor
