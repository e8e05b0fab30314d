"""`msa_conv`: self-attention in a convolution's window (TiC, arXiv 2310.04134)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.grids import known_grid
from manyhead_core.errors import ConfigError


class ConvAttention(TokenMixer):
    """Every token attends to the taps of a kernel around it; a convolution follows.

    With one head over all channels, for the taps `t` of the kernel:

        a_p = sum over t of softmax_t(D^-1/2 q_p . k_(p+t)) v_(p+t)
        y = relu(conv(a + x))

    Args:
        dim: Model width.
        num_heads: Not used: there is one head. Accepted so that mixers can be swapped by name.
        kernel_size: Side of the kernel, or its height and width, odd.
        dilation: Step between the taps of the attention. The convolution after it has the same
            kernel without dilation.
        mask_padding: Hide taps outside the map. False gives them a key and a value of zeros, as
            published weights expect.
        shift: Roll a quarter of the channels each by this many tokens to the left, right, top and
            bottom before the layer, so that stacked layers see further. 0 leaves them.
        attention_dropout: Probability of dropping a weight while training.

    Raises:
        ConfigError: A number does not fit.
    """

    name = "msa_conv"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"2d"}),
        mask="keys",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,  # noqa: ARG002
        *,
        kernel_size: int | tuple[int, int] = 3,
        dilation: int = 1,
        mask_padding: bool = True,
        shift: int = 0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != 2 or any(side < 1 or side % 2 == 0 for side in kernel):
            raise ConfigError(f"kernel_size: needs one or two odd sides, got {kernel_size}")
        if dilation < 1 or shift < 0:
            raise ConfigError(f"dilation, shift: need 1 and 0 or more, got {dilation} and {shift}")
        self.kernel_size = kernel
        self.dilation = dilation
        self.mask_padding = mask_padding
        self.shift = shift
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.attend = Attend(attention_dropout)
        self.conv = nn.Conv2d(dim, dim, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        for layer in (self.qkv, self.conv):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            assert layer.bias is not None  # noqa: S101 - built with one
            nn.init.zeros_(layer.bias)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
    ) -> MixerOutput:
        """Padding counts as outside the map, for the convolution too."""
        picture = x.unflatten(1, known_grid(grid))
        valid = None
        if isinstance(mask, KeyPadding):
            if self.shift:
                raise ConfigError("shift: rolls padding between real tokens; use 0 with a mask")
            valid = mask.keys(x.shape[1]).unflatten(1, picture.shape[1:3])
        if self.shift:
            picture = cyclic_shift(picture, self.shift)
        attended = self.attend_taps(picture, valid) + picture
        if valid is not None:
            attended = attended.masked_fill(~valid[..., None], 0.0)
        y = F.relu(self.conv(attended.permute(0, 3, 1, 2)))
        return MixerOutput(y.flatten(2).transpose(1, 2), {})

    def attend_taps(self, picture: Tensor, valid: Tensor | None = None) -> Tensor:
        """The attention alone.

        Args:
            picture: `(batch, height, width, dim)`.
            valid: Real tokens, boolean `(batch, height, width)`; None for all.
        """
        height, width = picture.shape[1:3]
        parts = F.linear(picture, self.qkv.weight.flatten(1), self.qkv.bias)
        if valid is None and self.mask_padding:
            valid = picture.new_ones((1, height, width), dtype=torch.bool)
        visible = None
        if valid is not None:
            visible = valid.expand(picture.shape[0], -1, -1)[..., None]
            visible = self._split(visible, outside=not self.mask_padding)[..., 0]
        out = self._blocks(self._split(parts), visible)
        step = self.dilation
        out = out.unflatten(0, (-1, step, step)).permute(0, 3, 1, 4, 2, 5)
        return out.flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def _split(self, picture: Tensor, *, outside: bool = False) -> Tensor:
        """A map for each phase of the dilation: its neighbours are the dilated taps.

        Returns:
            `(batch * dilation**2, height / dilation, width / dilation, channels)`, rounded up.
        """
        step = self.dilation
        down, right = (-length % step for length in picture.shape[1:3])
        picture = F.pad(picture, (0, 0, 0, right, 0, down), value=outside)
        phases = picture.unflatten(2, (-1, step)).unflatten(1, (-1, step))
        return phases.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def _blocks(self, parts: Tensor, visible: Tensor | None) -> Tensor:
        """Attention to undilated taps, by blocks of queries that share their windows.

        Args:
            parts: Queries, keys and values, `(batch, height, width, 3 * dim)`.
            visible: Places that may be seen, `(batch, height, width)`; None for all.
        """
        height, width, channels = parts.shape[1:]
        block = self.kernel_size
        window = tuple(2 * side - 1 for side in block)
        top, left = (side // 2 for side in block)
        down, right = -height % block[0], -width % block[1]
        around = (left, left + right, top, top + down)
        query, rest = parts.split((channels // 3, channels // 3 * 2), -1)
        query = F.pad(query, (0, 0, 0, right, 0, down))
        query = query.unflatten(2, (-1, block[1])).unflatten(1, (-1, block[0])).transpose(2, 3)
        rows, columns = query.shape[1:3]
        rest = F.pad(rest, (0, 0, *around))
        cells = rest.unfold(1, window[0], block[0]).unfold(2, window[1], block[1])
        key, value = cells.flatten(4).flatten(0, 2).mT[:, None].chunk(2, -1)
        allowed = self._taps(parts.device)
        if visible is not None:
            seen = F.pad(visible, around, value=not self.mask_padding)
            seen = seen.unfold(1, window[0], block[0]).unfold(2, window[1], block[1])
            allowed = allowed & seen.flatten(3).flatten(0, 2)[:, None, None]
        found = self.attend(query.flatten(3, 4).flatten(0, 2)[:, None], key, value, mask=allowed)
        out = found.out[:, 0].unflatten(1, block).unflatten(0, (-1, rows, columns))
        out = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return out[:, :height, :width]

    def _taps(self, device: torch.device) -> Tensor:
        """Which keys of a window each query of a block sees, `(queries, keys)`."""
        axes = []
        for side in self.kernel_size:
            away = (
                torch.arange(2 * side - 1, device=device)
                - torch.arange(side, device=device)[:, None]
            )
            axes.append((away >= 0) & (away < side))
        pairs = axes[0][:, None, :, None] & axes[1][None, :, None, :]
        return pairs.flatten(2, 3).flatten(0, 1)


def cyclic_shift(picture: Tensor, step: int) -> Tensor:
    """Roll a quarter of the channels each to the left, right, top and bottom of the map.

    Args:
        picture: `(batch, height, width, channels)`.
        step: Tokens to roll by.
    """
    turns = ((2, -step), (2, step), (1, -step), (1, step))
    groups = picture.tensor_split(len(turns), -1)
    return torch.cat(
        [group.roll(by, axis) for group, (axis, by) in zip(groups, turns, strict=True)], -1
    )


def inter_pool(x: Tensor, grid: tuple[int, int], size: int = 2) -> tuple[Tensor, tuple[int, int]]:
    """Average tokens between two layers, and the smaller grid that results.

    Tokens at the border that fill no square of their own are averaged over what there is.

    Args:
        x: Tokens, `(batch, tokens, dim)`.
        grid: Height and width of the map in tokens.
        size: Side of the squares that become one token.
    """
    picture = x.unflatten(1, known_grid(grid)).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(picture, size, ceil_mode=True)
    return pooled.flatten(2).transpose(1, 2), (pooled.shape[2], pooled.shape[3])
