"""`sparsifiner`: a small predictor chooses the keys of each query."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError


class MaskPredictor(nn.Module):
    """Low-rank approximation of attention maps, and the keys it finds important.

    Args:
        head_dim: Width of a head.
        num_heads: Heads; the projections are shared by all.
        num_tokens: Tokens with the class token.
        reduce_tokens: Tokens of one basis map.
        reduce_channels: Channels of one reduced channel.
        keep: Keys of each query.
        threshold: Entries of the basis up to this size count as zero.
        topk: Basis maps of each query.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        num_tokens: int,
        *,
        reduce_tokens: int,
        reduce_channels: int,
        keep: int,
        threshold: float,
        topk: int,
    ) -> None:
        super().__init__()
        rank, width = num_tokens // reduce_tokens, head_dim // reduce_channels
        if rank < 1 or width < 1:
            raise ConfigError(
                f"sparsifiner: reduce_tokens={reduce_tokens} of {num_tokens} tokens and "
                f"reduce_channels={reduce_channels} of head width {head_dim} leave nothing"
            )
        self.scale = num_heads**-0.5
        self.keep = keep
        self.threshold = threshold
        self.topk = min(topk, rank)
        self.proj_c_q = nn.Linear(head_dim, width)
        self.proj_c_k = nn.Linear(head_dim, width)
        self.proj_n = nn.Parameter(torch.empty(num_tokens, rank))
        self.proj_back_n = nn.Parameter(torch.empty(num_tokens, rank))
        for layer in (self.proj_c_q, self.proj_c_k):
            nn.init.zeros_(layer.bias)
        for weight in (self.proj_c_q.weight, self.proj_c_k.weight, self.proj_n, self.proj_back_n):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)

    def coefficients(self, query: Tensor, key: Tensor) -> Tensor:
        """Shares of the basis maps, `(batch, heads, tokens - 1, rank)`; no class row."""
        # 16 bits would make ties among the candidates.
        with torch.autocast(query.device.type, enabled=False):
            dtype = self.proj_n.dtype
            query, key = query[:, :, 1:].to(dtype), key.to(dtype)
            reduced = self.proj_c_k(key).transpose(-2, -1) @ self.proj_n
            scores = self.proj_c_q(query) @ reduced * self.scale
            return scores.softmax(-1)

    def smooth(self, query: Tensor, key: Tensor) -> Tensor:
        """Approximate maps as they are trained, without sparsity; same shape as of `sparse`."""
        coefficients = self.coefficients(query, key)
        with torch.autocast(query.device.type, enabled=False):
            return coefficients @ self.proj_back_n.T

    @torch.no_grad()
    def sparse(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Approximate maps from few basis maps, and the choice, which has no gradient.

        Returns:
            Maps `(batch, heads, tokens - 1, tokens)` without the class row; allowed pairs
            `(batch, heads, tokens, tokens)`, where the class token sees everything.
        """
        found = self.coefficients(query, key)
        best = found.topk(self.topk, dim=-1)
        found = torch.zeros_like(found).scatter(-1, best.indices, best.values)
        basis = self.proj_back_n.T.abs()
        basis = basis.masked_fill(basis <= self.threshold, 0.0)
        with torch.autocast(query.device.type, enabled=False):
            maps = found @ basis
        chosen = maps.topk(self.keep, dim=-1).indices
        allowed = torch.zeros_like(maps, dtype=torch.bool).scatter(-1, chosen, True)
        return maps, F.pad(allowed, (0, 0, 1, 0), value=True)


class Sparsifiner(TokenMixer):
    """Attention to the keys that a predictor chose for each query and head.

    Token 0 is the class token, which sees everything. Equations 3 to 8 of Wei et al., CVPR 2023
    (arXiv 2303.13755), with the scale `num_heads ** -0.5` of the published code.

    Training takes two stages. With `sparse = False` attention is full, and in training mode
    `aux["reconstruction"]` teaches the predictor; average it over the layers. With
    `sparse = True` the mask passes no gradient, and the predictor stays as it is.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_tokens: Tokens with the class token; the module works for this number only.
        reduce_tokens: Tokens of one basis map.
        reduce_channels: Channels of one reduced channel.
        keep_rate: Share of the keys that a query keeps, above 0 up to 1.
        basis_threshold: Entries of the basis up to this size count as zero.
        basis_topk: Basis maps of each query.
        qkv_bias: Whether query, key and value projections have a bias.
        sparse: Whether to attend to the chosen keys only.
        reconstruction: Weight of the predictor's loss.
        attention_dropout: Probability of dropping a weight while training.
    """

    name = "sparsifiner"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"1d"}),
        maps=True,
        heads=True,
        fixed_size=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_tokens: int,
        reduce_tokens: int = 6,
        reduce_channels: int = 2,
        keep_rate: float = 0.25,
        basis_threshold: float = 0.02,
        basis_topk: int = 8,
        qkv_bias: bool = True,
        sparse: bool = True,
        reconstruction: float = 0.01,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        if not 0 < keep_rate <= 1:
            raise ConfigError(f"keep_rate: must be above 0 and at most 1, got {keep_rate}")
        self.num_heads, self.num_tokens = num_heads, num_tokens
        self.sparse, self.reconstruction = sparse, reconstruction
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attend = Attend(attention_dropout)
        self.mask_predictor = MaskPredictor(
            dim // num_heads,
            num_heads,
            num_tokens,
            reduce_tokens=reduce_tokens,
            reduce_channels=reduce_channels,
            keep=math.ceil(keep_rate * num_tokens),
            threshold=basis_threshold,
            topk=basis_topk,
        )
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Sparse attention, or full attention with the predictor's loss."""
        query, key, value = self.project(x)
        allowed = self.mask_predictor.sparse(query, key)[1] if self.sparse else None
        found = self.attend(query, key, value, mask=allowed, maps=maps, head_gate=head_gate)
        aux = {}
        if self.training and not self.sparse:
            own = self.attend(query, key, value, maps=MapRequest()).maps
            assert own is not None  # noqa: S101 - just asked for
            approximate = self.mask_predictor.smooth(query.detach(), key.detach())
            aux["reconstruction"] = self.reconstruction * reconstruction_loss(approximate, own)
        y = self.proj(found.out.transpose(1, 2).flatten(2))
        return MixerOutput(y, aux, found.maps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `(batch, heads, tokens, head_dim)`.

        Raises:
            ConfigError: The number of tokens is not the one of the module.
        """
        if x.shape[1] != self.num_tokens:
            raise ConfigError(
                f"sparsifiner: built for num_tokens={self.num_tokens}, got {x.shape[1]} tokens"
            )
        parts = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return query, key, value


def reconstruction_loss(approximate: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance, summed, of approximate maps to a teacher's.

    Args:
        approximate: `MaskPredictor.smooth`, `(batch, heads, tokens - 1, tokens)`.
        teacher: Full attention maps, `(batch, heads, tokens, tokens)`; get no gradient.
    """
    return F.mse_loss(approximate, teacher[:, :, 1:].detach().to(approximate), reduction="sum")
