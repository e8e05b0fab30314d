"""`transmil`: correlated multiple instance learning of Shao et al. 2021, arXiv:2106.00908."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.acmil.bag_output import MILOutput, one_bag
from manyhead.acmil.baselines.network import BagNetwork
from manyhead.acmil.model import ACMILConfig
from manyhead_core.attention import MapRequest, attend

HEADS = 8
ITERATIONS = 6
KERNEL = 33


class TransMIL(BagNetwork):
    """Two layers of Nyström attention between the patches, with a position encoding between them.

    Bags are laid out as squares, so each is computed by itself.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config)
        width = config.width
        self.reduction = nn.Linear(config.feature_dim, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.first = NystromBlock(width)
        self.position = ConvPosition(width)
        self.second = NystromBlock(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.num_outputs)

    def forward(self, features: Tensor, cu_seqlens: Tensor | None = None) -> MILOutput:
        """Arguments as in `ACMIL.forward`, packed."""
        cu_seqlens = one_bag(features) if cu_seqlens is None else cu_seqlens
        x = self.reduction(features.to(self.reduction.weight.dtype)).relu()
        bags = torch.cat([self._bag(bag) for bag in x.split(cu_seqlens.diff().tolist())])
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(bags.float())
        return MILOutput(logits, features=bags)

    def _bag(self, x: Tensor) -> Tensor:
        """`(patches, dim)` to the class token, `(1, dim)`."""
        side = math.ceil(math.sqrt(len(x)))
        # The first patches once more, to fill the square.
        x = torch.cat([x, x[: side * side - len(x)]])[None]
        x = self.first(torch.cat([self.class_token.to(x.dtype), x], 1))
        x = self.second(self.position(x, side))
        token: Tensor = self.norm(x[:, 0])
        return token


class ConvPosition(nn.Module):
    """Positions by convolutions of three sizes over the square of patches, PPEG of the paper.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim) for size in (7, 5, 3)
        )

    def forward(self, x: Tensor, side: int) -> Tensor:
        """`(1, 1 + side * side, dim)`; the class token passes by."""
        token, patches = x[:, :1], x[:, 1:]
        square = patches.mT.reshape(1, -1, side, side)
        mixed = square + sum(conv(square) for conv in self.convs)
        return torch.cat([token, mixed.flatten(2).transpose(1, 2)], 1)


class NystromBlock(nn.Module):
    """Nyström attention of Xiong et al. 2021, arXiv:2102.03902, after a layer norm, residual.

    Args:
        dim: Width, a multiple of 8 heads; half of it is the number of landmarks.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.landmarks = dim // 2
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.1)
        self.local = nn.Conv2d(
            HEADS, HEADS, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=HEADS, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(1, tokens, dim)` to the same."""
        tokens = x.shape[1]
        # Zeros in front, to a multiple of the landmarks; they count in the landmarks' means.
        padded = F.pad(self.norm(x), (0, 0, -tokens % self.landmarks, 0))
        parts = self.qkv(padded).chunk(3, -1)
        query, key, value = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
        mixed = nystrom(query, key, value, self.landmarks) + self.local(value)
        mixed = self.output(mixed.transpose(1, 2).flatten(2))
        dropped: Tensor = self.dropout(mixed)
        return x + dropped[:, -tokens:]


def nystrom(query: Tensor, key: Tensor, value: Tensor, landmarks: int) -> Tensor:
    """Attention through landmarks: two narrow softmaxes around the inverse of a small one.

    Args:
        query: `(batch, heads, tokens, head_dim)`; tokens are a multiple of the landmarks.
        key: Same shape.
        value: Same shape.
        landmarks: Means of so many consecutive stretches stand for all tokens.
    """
    few_queries, few_keys = (
        x.reshape(*x.shape[:2], landmarks, -1, x.shape[-1]).mean(3) for x in (query, key)
    )
    small = attend(few_queries, few_keys, few_keys, maps=MapRequest(detach=False)).maps
    assert small is not None  # noqa: S101 - a request always brings maps
    gathered = attend(few_queries, key, value).out
    return attend(query, few_keys, pseudo_inverse(small).to(value.dtype) @ gathered).out


def pseudo_inverse(x: Tensor) -> Tensor:
    """Moore-Penrose inverse by iteration, Razavi et al. 2014; `(batch, heads, m, m)`."""
    # One scale for all heads, as the published code has it.
    size = x.abs().sum(-2).max() * x.abs().sum(-1).max()
    z = x.mT / size
    eye = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
    for _ in range(ITERATIONS):
        xz = x @ z
        z = 0.25 * z @ (13 * eye - xz @ (15 * eye - xz @ (7 * eye - xz)))
    return z
