"""`lsda`: long and short distance attention of CrossFormer (Wang et al., arXiv 2108.00154)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.grids import known_grid
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.attention.relative_biases import MIN_WIDTH, MLPBias
from manyhead_core.errors import ConfigError

Distance = Literal["short", "long"]


class LongShortAttention(TokenMixer):
    """Attention in groups of neighbours (short) or of a sparse lattice over the map (long).

    A long group holds `group_size` by `group_size` tokens that lie `interval` apart (section 3.2
    of the paper). A small network turns the offset of two tokens into a bias of their score
    (section 3.3), so that maps of any size need no further parameters.

    Args:
        dim: Model width.
        num_heads: Heads.
        group_size: Side of a group in tokens. A map whose shorter side is not larger has groups of
            that side and short distance.
        mode: `short` or `long`; blocks of a network alternate, short first.
        interval: Step between the tokens of a long group.
        pad_type: Where maps that the groups do not tile are padded: 0 at the bottom and right, 1
            on both sides. Padding is never attended to.
        pos_dim: Width of the position network; None means `dim / 16`, at least 4.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "lsda"
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
        group_size: int = 7,
        mode: Distance = "short",
        interval: int = 8,
        pad_type: Literal[0, 1] = 0,
        pos_dim: int | None = None,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        if group_size < 1 or interval < 1:
            raise ConfigError(
                f"group_size, interval: must be 1 or more, got {group_size} and {interval}"
            )
        if mode not in ("short", "long") or pad_type not in (0, 1):
            raise ConfigError(
                f"mode, pad_type: use short or long and 0 or 1, got {mode!r} and {pad_type}"
            )
        self.num_heads = num_heads
        self.group_size = group_size
        self.interval = interval if mode == "long" else 1
        self.pad_type = pad_type
        self.pos = MLPBias(max(MIN_WIDTH, dim // 16) if pos_dim is None else pos_dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attend = Attend(attention_dropout)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        start_linear(self.qkv, self.proj)

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
        """Groups become batch elements; the rest is multi-head attention with a bias."""
        lattice = self.lattice(known_grid(grid))
        groups = lattice.split(x.unflatten(1, lattice.grid))
        parts = self.qkv(groups).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        out = self.attend(
            query,
            key,
            value,
            mask=self._allowed(x, lattice, mask),
            bias=self.pos((lattice.size, lattice.size)),
            head_gate=head_gate,
        ).out
        y = lattice.join(self.proj(out.transpose(1, 2).flatten(2)), x.shape[0])
        return MixerOutput(self.dropout(y.flatten(1, 2)), {})

    def lattice(self, grid: tuple[int, int]) -> Lattice:
        """How a map of this size falls into groups."""
        size, interval = self.group_size, self.interval
        if min(grid) <= size:
            size, interval = min(grid), 1
        cell = size * interval
        rows, columns = (-(-length // cell) for length in grid)
        extra = (rows * cell - grid[0], columns * cell - grid[1])
        top, left = (length // 2 if self.pad_type == 1 else 0 for length in extra)
        pads = (left, extra[1] - left, top, extra[0] - top)
        return Lattice(size, interval, grid, (rows, columns), pads)

    def _allowed(self, x: Tensor, lattice: Lattice, mask: Mask | None) -> Tensor | None:
        """Real keys of each group, `(batch * groups, 1, 1, tokens)`; None for all."""
        if mask is None and not any(lattice.pads):
            return None
        if isinstance(mask, KeyPadding):
            valid = mask.keys(x.shape[1])
        else:
            valid = x.new_ones(x.shape[:2], dtype=torch.bool)
        real = lattice.split(valid.unflatten(1, lattice.grid).unsqueeze(-1))
        return real[:, None, None, :, 0]


class Lattice(NamedTuple):
    """How a map falls into groups.

    Args:
        size: Side of a group in tokens.
        interval: Step between its tokens.
        grid: Height and width of the map.
        counts: Cells of `size * interval` tokens along the padded height and width.
        pads: Padding at the left, right, top and bottom.
    """

    size: int
    interval: int
    grid: tuple[int, int]
    counts: tuple[int, int]
    pads: tuple[int, int, int, int]

    def split(self, picture: Tensor) -> Tensor:
        """`(batch, height, width, dim)` as groups `(batch * groups, size * size, dim)`."""
        if any(self.pads):
            picture = F.pad(picture, (0, 0, *self.pads))
        size, step = self.size, self.interval
        batch, dim = picture.shape[0], picture.shape[3]
        rows, columns = self.counts
        cells = picture.reshape(batch, rows, size, step, columns, size, step, dim)
        groups = cells.permute(0, 1, 4, 3, 6, 2, 5, 7)
        return groups.reshape(batch * rows * columns * step * step, size * size, dim)

    def join(self, groups: Tensor, batch: int) -> Tensor:
        """The inverse of `split`, without the padding."""
        size, step = self.size, self.interval
        (height, width), (rows, columns) = self.grid, self.counts
        left, _, top, _ = self.pads
        dim = groups.shape[-1]
        cells = groups.reshape(batch, rows, columns, step, step, size, size, dim)
        picture = cells.permute(0, 1, 5, 3, 2, 6, 4, 7)
        picture = picture.reshape(batch, rows * size * step, columns * size * step, dim)
        return picture.narrow(1, top, height).narrow(2, left, width)


class LongShortBlock(nn.Module):
    """A block of the network: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Args:
        dim: Model width.
        num_heads: Heads.
        mlp_ratio: Hidden width of the second part in units of `dim`.
        norm_eps: Added to the variance of the norms.
        **options: Those of `LongShortAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = LongShortAttention(dim, num_heads, **options)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, *, grid: tuple[int, int], mask: Mask | None = None) -> Tensor:
        """Tokens `(batch, tokens, dim)`.

        Args:
            x: Tokens, `(batch, tokens, dim)`, row-major.
            grid: Height and width in tokens.
            mask: Which tokens are real.
        """
        x = x + self.attn(self.norm1(x), mask=mask, grid=grid).y
        return x + self.mlp(self.norm2(x))


class FeedForward(nn.Module):
    """Two linear layers with GELU between.

    Args:
        dim: Model width.
        hidden: Width between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        start_linear(self.fc1, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return self.fc2(F.gelu(self.fc1(x)))
