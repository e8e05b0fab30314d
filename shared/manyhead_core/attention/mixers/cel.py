"""`cel`: cross-scale embedding of CrossFormer (Wang et al., arXiv 2108.00154, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manyhead_core.errors import ConfigError


class CrossScaleEmbedding(nn.Module):
    """Tokens that see the same place of the map at several scales.

    Convolutions with kernels of several sizes share one stride; their outputs are concatenated
    and normalised. The smallest kernel gives half of the width, every further one half of the one
    before, the last two the same. Between the stages of a network, kernels 2 and 4 halve the map.

    Args:
        in_channels: Channels of the map.
        dim: Width of a token.
        kernels: Sides of the kernels; the smallest is the stride too, unless `stride` is given.
        stride: Step between tokens; None takes the smallest kernel.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        kernels: Sequence[int] = (4, 8, 16, 32),
        stride: int | None = None,
    ) -> None:
        super().__init__()
        sizes = sorted(kernels)
        if not sizes:
            raise ConfigError("kernels: at least one is needed")
        self.stride = sizes[0] if stride is None else stride
        for size in sizes:
            if size < self.stride or (size - self.stride) % 2:
                raise ConfigError(
                    f"kernels: {size} and stride {self.stride} differ by an odd or negative number"
                )
        widths = scale_widths(dim, len(sizes))
        self.projs = nn.ModuleList(
            nn.Conv2d(in_channels, width, size, self.stride, (size - self.stride) // 2)
            for size, width in zip(sizes, widths, strict=True)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens `(batch, tokens, dim)`, row-major, and their grid.

        Rows and columns at the bottom and right that fill no whole stride have no token of their
        own.

        Args:
            x: Map `(batch, in_channels, height, width)`; with `grid`, tokens `(batch, tokens,
                in_channels)`.
            grid: Height and width of the tokens.

        Raises:
            ConfigError: The map is smaller than the stride.
        """
        if grid is not None:
            x = x.transpose(1, 2).unflatten(2, grid)
        if min(x.shape[2:]) < self.stride:
            raise ConfigError(
                f"stride: {self.stride} exceeds the map of {x.shape[2]} by {x.shape[3]}"
            )
        found = torch.cat([proj(x) for proj in self.projs], 1)
        tokens = self.norm(found.flatten(2).transpose(1, 2))
        return tokens, (found.shape[2], found.shape[3])


def scale_widths(dim: int, count: int) -> list[int]:
    """Channels of each scale, smallest kernel first.

    Raises:
        ConfigError: `dim` cannot be halved that often.
    """
    if dim % 2 ** (count - 1):
        raise ConfigError(f"dim: {dim} is no multiple of {2 ** (count - 1)} for {count} kernels")
    widths = [dim // 2**step for step in range(1, count)]
    return [*widths, dim - sum(widths)]
