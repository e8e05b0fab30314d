"""`halo`: block-local attention with halos (Vaswani et al., CVPR 2021, arXiv 2103.12731)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.grids import known_grid
from manyhead_core.errors import ConfigError


class BlockAttention(TokenMixer):
    """Attention of blocks of queries to a window of keys each, with relative positions.

    The base of `halo` and `neighborhood`, which choose the windows. There is no output projection.

    Args:
        dim: Model width.
        num_heads: Heads.
        head_dim: Width of queries and keys of a head; None means `dim / num_heads`. Values always
            have that width.
        window: Side of the window that the relative positions span.
        scale_pos: Scale the queries that meet the relative positions too.
        attention_dropout: Probability of dropping a weight while training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None,
        window: int,
        scale_pos: bool,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.value_dim = dim // num_heads
        self.head_dim = self.value_dim if head_dim is None else head_dim
        self.scale_pos = scale_pos
        self.q = nn.Conv2d(dim, num_heads * self.head_dim, 1, bias=False)
        self.kv = nn.Conv2d(dim, num_heads * (self.head_dim + self.value_dim), 1, bias=False)
        self.pos_embed = RelativePosition(window, self.head_dim)
        self.attend = Attend(attention_dropout)
        for layer in (self.q, self.kv):
            nn.init.trunc_normal_(layer.weight, std=dim**-0.5, a=-2 * dim**-0.5, b=2 * dim**-0.5)

    def queries(self, picture: Tensor) -> Tensor:
        """`(..., dim)` as `(..., heads * head_dim)`."""
        return F.linear(picture, self.q.weight.flatten(1))

    def keys_values(self, picture: Tensor) -> Tensor:
        """`(..., dim)` as `(..., heads * (head_dim + value_dim))`."""
        return F.linear(picture, self.kv.weight.flatten(1))

    def attend_blocks(
        self,
        query: Tensor,
        window: Tensor,
        steps: tuple[Tensor, Tensor],
        allowed: Tensor | None,
        head_gate: Tensor | None = None,
    ) -> Tensor:
        """Outputs `(batch, rows, columns, height, width, dim)` of blocks.

        Args:
            query: `(batch, rows, columns, height, width, channels)`: blocks by row and column.
            window: Keys and values, `(batch, rows, columns, window height, window width,
                channels)`.
            steps: Rows of the relative tables for the vertical and horizontal offset of key and
                query, `(rows or 1, height, window height)` and the same for columns.
            allowed: Visible keys, broadcastable to `(batch, rows, columns, height * width,
                window height * window width)`; None for all.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
        """
        batch, rows, columns, height, width, _ = query.shape
        blocks = query.unflatten(-1, (self.num_heads, -1)).movedim(-2, 3)
        cells = window.flatten(3, 4).unflatten(-1, (self.num_heads, -1)).transpose(3, 4)
        key, value = cells.flatten(0, 2).split([self.head_dim, self.value_dim], -1)
        bias = self.pos_embed(blocks, *steps)
        if self.scale_pos:
            bias = bias * self.head_dim**-0.5
        if allowed is not None:
            allowed = allowed.expand(batch, rows, columns, -1, -1).flatten(0, 2)[:, None]
        found = self.attend(
            blocks.flatten(4, 5).flatten(0, 2),
            key,
            value,
            mask=allowed,
            bias=bias.flatten(0, 2),
            head_gate=head_gate,
        )
        out = found.out.transpose(1, 2).flatten(2)
        return out.reshape(batch, rows, columns, height, width, -1)


class RelativePosition(nn.Module):
    """Bias of a score from its query and the offset of the key along each axis.

    Args:
        window: Largest offset plus 1.
        head_dim: Width of the queries.
    """

    def __init__(self, window: int, head_dim: int) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * window - 1, head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * window - 1, head_dim))
        deviation = head_dim**-0.5
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=deviation, a=-2 * deviation, b=2 * deviation)

    def forward(self, query: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """`(batch, rows, columns, heads, height * width, window height * window width)`.

        Args:
            query: `(batch, rows, columns, heads, height, width, head_dim)`.
            rows: Row of `height_rel`, `(rows or 1, height, window height)`.
            columns: Row of `width_rel`, `(columns or 1, width, window width)`.
        """
        down = torch.einsum("brchyxd,rykd->brchyxk", query, self.height_rel[rows])
        across = torch.einsum("brchyxd,cxkd->brchyxk", query, self.width_rel[columns])
        bias = down.unsqueeze(-1) + across.unsqueeze(-2)
        return bias.flatten(6, 7).flatten(4, 5)


class HaloAttention(BlockAttention):
    """Attention of each block of the map to itself and a halo around it.

    Args:
        dim: Model width.
        num_heads: Heads.
        block_size: Side of a block in tokens.
        halo_size: Tokens around the block that it sees too.
        head_dim: Width of queries and keys of a head; None means `dim / num_heads`. Values always
            have that width.
        scale_pos: Scale the queries that meet the relative positions too.
        mask_padding: Hide what lies outside the map. False gives it a key of zeros, as published
            weights expect.
        stride: Step between the tokens of the output along each axis; the output then has fewer
            tokens, those of the grid divided by it.
        downsample: With a stride, `query` leaves out queries, `average` averages outputs.
        attention_dropout: Probability of dropping a weight while training.
    """

    name = "halo"
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
        block_size: int = 8,
        halo_size: int = 3,
        head_dim: int | None = None,
        scale_pos: bool = False,
        mask_padding: bool = True,
        stride: int = 1,
        downsample: Literal["query", "average"] = "query",
        attention_dropout: float = 0.0,
    ) -> None:
        if block_size < 1 or halo_size < 0:
            raise ConfigError(
                f"block_size, halo_size: need 1 and 0 or more, got {block_size} and {halo_size}"
            )
        if stride < 1 or block_size % stride:
            raise ConfigError(f"stride: {stride} does not divide block_size={block_size}")
        if downsample not in ("query", "average"):
            raise ConfigError(f"downsample: {downsample!r} is unknown; use query or average")
        super().__init__(
            dim,
            num_heads,
            head_dim=head_dim,
            window=block_size + 2 * halo_size,
            scale_pos=scale_pos,
            attention_dropout=attention_dropout,
        )
        self.block_size = block_size
        self.halo_size = halo_size
        self.mask_padding = mask_padding
        self.stride = stride
        self.average = downsample == "average"

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
        """Equation 4 of the paper with the windows of its figure 2."""
        grid = known_grid(grid)
        if any(length % self.stride for length in grid):
            raise ConfigError(f"stride: {self.stride} does not divide the grid {grid}")
        block, halo = self.block_size, self.halo_size
        window = block + 2 * halo
        picture = x.unflatten(1, grid)
        down, right = (-length % block for length in grid)
        # Without a bias, the keys and values of padding are zeros on either side of the layer.
        around = (halo, halo + right, halo, halo + down)
        keys = F.pad(self.keys_values(picture), (0, 0, *around))
        windows = keys.unfold(1, window, block).unfold(2, window, block).movedim(3, -1)
        step = 1 if self.average else self.stride
        cells = F.pad(picture, (0, 0, 0, right, 0, down))
        blocks = cells.unflatten(2, (-1, block)).unflatten(1, (-1, block)).transpose(2, 3)
        line = torch.arange(window, device=x.device)
        steps = (line[None, :] - line[:block:step, None] + window - 1)[None]
        allowed = self._allowed(x, grid, mask, around)
        query = self.queries(blocks[:, :, :, ::step, ::step])
        out = self.attend_blocks(query, windows, (steps, steps), allowed, head_gate)
        y = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        y = y[:, : grid[0] // step, : grid[1] // step]
        if self.average and self.stride > 1:
            y = F.avg_pool2d(y.permute(0, 3, 1, 2), self.stride).permute(0, 2, 3, 1)
        return MixerOutput(y.flatten(1, 2), {})

    def _allowed(
        self,
        x: Tensor,
        grid: tuple[int, int],
        mask: Mask | None,
        around: tuple[int, int, int, int],
    ) -> Tensor | None:
        """Real keys of each window, `(batch or 1, rows, columns, 1, keys)`; None for all."""
        if isinstance(mask, KeyPadding):
            valid = mask.keys(x.shape[1]).unflatten(1, grid)
        elif self.mask_padding:
            valid = x.new_ones((1, *grid), dtype=torch.bool)
        else:
            return None
        valid = F.pad(valid, around, value=not self.mask_padding)
        window = self.block_size + 2 * self.halo_size
        cells = valid.unfold(1, window, self.block_size).unfold(2, window, self.block_size)
        return cells.flatten(3).unsqueeze(3)
