"""`shsa`: one attention head on a part of the channels (SHViT)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError


class ConvNorm(nn.Module):
    """A 1×1 convolution without bias and its batch norm.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        scale: Weight of the norm at the start.
    """

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.trunc_normal_(self.c.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.constant_(self.bn.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, height, width)`."""
        normed: Tensor = self.bn(self.c(x))
        return normed

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """One convolution that does the same in evaluation."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None  # noqa: S101 - tracked by default
        assert variance is not None  # noqa: S101
        scale = self.bn.weight / (variance + self.bn.eps).sqrt()
        fused = nn.Conv2d(
            self.c.in_channels, self.c.out_channels, 1, device=scale.device, dtype=scale.dtype
        )
        fused.weight.copy_(self.c.weight * scale[:, None, None, None])
        assert fused.bias is not None  # noqa: S101 - built with one
        fused.bias.copy_(self.bn.bias - mean * scale)
        return fused


class SingleHeadAttention(TokenMixer):
    """Attention with one head on the first channels; the others join in the last convolution.

    Section 3.3 of Yun and Ro, "SHViT", CVPR 2024 (arXiv 2401.16456):

        [q | k | v] = BN(conv(GroupNorm(x_1)));  y = BN(conv(relu([softmax(q k^T c^-1/2) v | x_2])))

    The last norm starts at weight 0, so that a residual block starts as the identity.

    Args:
        dim: Model width.
        num_heads: Not used: there is one head. Accepted so that mixers can be swapped by name.
        partial_dim: Channels that attend; None means a quarter of `dim`.
        qk_dim: Width of queries and keys.
    """

    name = "shsa"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"2d"}),
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,  # noqa: ARG002
        *,
        partial_dim: int | None = None,
        qk_dim: int = 16,
    ) -> None:
        super().__init__()
        part = max(dim // 4, 1) if partial_dim is None else partial_dim
        if not 1 <= part <= dim:
            raise ConfigError(f"partial_dim: must be 1 to dim={dim}, got {part}")
        self.widths = (qk_dim, qk_dim, part)
        self.rest = dim - part
        self.pre_norm = nn.GroupNorm(1, part)
        self.qkv: nn.Module = ConvNorm(part, sum(self.widths))
        self.attend = Attend()
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(dim, dim, scale=0.0))

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Channel-first inside."""
        assert grid is not None  # noqa: S101 - forward has checked it
        image = x.transpose(1, 2).unflatten(2, grid)
        part, rest = image.split((self.widths[2], self.rest), 1)
        # The backward pass of torch's group norm crashes on strided inputs without a gradient.
        parts = self.qkv(self.pre_norm(part.contiguous())).split(self.widths, 1)
        query, key, value = (part.flatten(2).transpose(1, 2)[:, None] for part in parts)
        found = self.attend(query, key, value, maps=maps, head_gate=head_gate)
        attended = found.out[:, 0].transpose(1, 2).unflatten(2, grid)
        y = self.proj(torch.cat((attended, rest), 1))
        return MixerOutput(y.flatten(2).transpose(1, 2), {}, found.maps)

    def fuse(self) -> Self:
        """Fold the batch norms into the convolutions, for evaluation only; returns itself.

        Raises:
            ConfigError: The mixer is training: the norms still change.
        """
        if self.training:
            raise ConfigError("shsa: fuse() needs evaluation mode; call eval() first")
        if isinstance(self.qkv, ConvNorm):
            self.qkv = self.qkv.fused()
        if isinstance(self.proj[1], ConvNorm):
            self.proj[1] = self.proj[1].fused()
        return self
