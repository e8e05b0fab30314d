"""`ulsam`: one attention map for each subspace of the channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError


class Subspace(nn.Module):
    """The map of one group of channels.

    Args:
        channels: Channels of the group.
        momentum: Weight of new statistics in the batch norms.
    """

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        self.conv_dws = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv_point = nn.Conv2d(channels, 1, 1)
        self.bn_point = nn.BatchNorm2d(1, momentum=momentum)
        for layer in (self.conv_dws, self.conv_point):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            assert layer.bias is not None  # noqa: S101 - both have one
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Weights over the positions, `(batch, 1, height, width)`, which sum to 1."""
        pooled = F.max_pool2d(F.relu(self.bn_dws(self.conv_dws(x))), 3, stride=1, padding=1)
        scores = F.relu(self.bn_point(self.conv_point(pooled)))
        # Autocast leaves the scores in 16 bits, too few for a sum over a large map.
        weights = scores.flatten(2).softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        return weights.to(x.dtype).view_as(scores)


class SubspaceAttention(TokenMixer):
    """Groups of channels, each multiplied by its own map over the positions, and added.

    Section 3 of Saini et al., "ULSAM", WACV 2020 (arXiv 2006.15102), for a group x of channels:

        a = softmax(relu(BN(conv(maxpool(relu(BN(depthwise(x))))))));  y = x a + x

    Args:
        dim: Model width, channels.
        num_heads: Groups of channels; divides `dim`.
        bn_momentum: Weight of new statistics in the batch norms. With the published 0.9 they
            follow the last batch; take less for small batches.
    """

    name = "ulsam"
    capabilities = Capabilities(patterns=frozenset({"NS"}), layouts=frozenset({"2d"}))

    def __init__(self, dim: int, num_heads: int, *, bn_momentum: float = 0.9) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        self.subspaces = nn.ModuleList(
            Subspace(dim // num_heads, bn_momentum) for _ in range(num_heads)
        )

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
    ) -> MixerOutput:
        """Every group times its map, and added."""
        assert grid is not None  # noqa: S101 - forward has checked it
        weights = self.weights(x, grid)
        groups = x.unflatten(2, (len(self.subspaces), -1))
        y = groups * weights.transpose(1, 2)[..., None] + groups
        return MixerOutput(y.flatten(2), {})

    def weights(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The maps of all groups, `(batch, groups, tokens)`.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            grid: Height and width in tokens.
        """
        image = x.transpose(1, 2).unflatten(2, grid)
        parts = image.chunk(len(self.subspaces), 1)
        found = [one(part) for one, part in zip(self.subspaces, parts, strict=True)]
        return torch.cat(found, 1).flatten(2)
