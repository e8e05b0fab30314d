"""`low_rank_pool`: pooling by a bilinear form of low rank in every head, arXiv 1912.00835."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput
from manyhead_core.attention.mixers.cross import CrossMixer
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.errors import ConfigError


class LowRankPooling(CrossMixer):
    """Average the tokens themselves, with weights that a query gives through few factors.

    Head `a` scores token `x_t` for the query `c` by `sum over r of (c P_a)_r (x_t Q_a)_r`, a
    bilinear form `c P_a Q_a^T x_t` of rank `rank`; a softmax over the tokens gives the weights.
    There are no value or output projections: `num_heads * rank * (query_dim + dim)` numbers.

    `mixer(tokens)` makes one query of the tokens and gives `y` of shape `(batch, 1, dim)`.
    `mixer(queries, tokens)` takes queries `(batch, queries, query_dim)`.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        rank: Factors of a head.
        query_dim: Width of the queries; None means `dim`.
        query: What `mixer(tokens)` asks with: the `mean` of the real tokens, or the `last` one.
        tanh: Squash the factors of queries and tokens.
        combine: `mean` averages the heads; `concat` puts them side by side, which makes `y`
            `num_heads * dim` wide.
        attention_dropout: Probability of dropping a weight while training.

    Raises:
        ConfigError: An option is unknown or not positive.
    """

    name = "low_rank_pool"
    capabilities = Capabilities(
        patterns=frozenset({"NC", "CC"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="any",
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        rank: int = 8,
        query_dim: int | None = None,
        query: Literal["mean", "last"] = "mean",
        tanh: bool = False,
        combine: Literal["mean", "concat"] = "mean",
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if rank < 1 or num_heads < 1:
            raise ConfigError(f"rank, num_heads: must be 1 or more, got {rank} and {num_heads}")
        if query not in ("mean", "last"):
            raise ConfigError(f"query: {query!r} is neither 'mean' nor 'last'")
        if combine not in ("mean", "concat"):
            raise ConfigError(f"combine: {combine!r} is neither 'mean' nor 'concat'")
        self.num_heads = num_heads
        self.query = query
        self.tanh = tanh
        self.combine = combine
        query_dim = dim if query_dim is None else query_dim
        self.query_factors = nn.Linear(query_dim, num_heads * rank, bias=False)
        self.token_factors = nn.Linear(dim, num_heads * rank, bias=False)
        start_linear(self.query_factors, self.token_factors)
        self.attend = Attend(attention_dropout, scale=1.0)

    def own_queries(
        self,
        tokens: Tensor,
        mask: Mask | None,
        **given: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Mask | None]:
        """Mean of the real tokens or the last of them, `(batch, 1, dim)`."""
        if self.query_factors.in_features != tokens.shape[-1]:
            raise ConfigError(
                f"low_rank_pool: tokens are no queries of query_dim="
                f"{self.query_factors.in_features}; pass mixer(queries, tokens)"
            )
        batch, count, _ = tokens.shape
        if mask is None:
            found = tokens[:, -1:] if self.query == "last" else tokens.mean(1, keepdim=True)
            return found, None
        shape = Shape(batch, self.num_heads, 1, count, tokens.device)
        seen = mask.dense(shape)
        real = seen[(None,) * (4 - seen.dim())].any(1).any(1).expand(batch, count)[..., None]
        if self.query == "mean":
            total = tokens.masked_fill(~real, 0.0).sum(1, keepdim=True)
            return total / real.sum(1, keepdim=True).clamp(min=1), mask
        place = torch.arange(count, device=tokens.device)[:, None]
        last = (real * place).amax(1, keepdim=True).expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, last), mask

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """One average of the tokens for each query and head."""
        tokens = x if context is None else context
        query, key = self._factors(self.query_factors, x), self._factors(self.token_factors, tokens)
        value = tokens[:, None].expand(-1, self.num_heads, -1, -1)
        found = self.attend(query, key, value, mask=mask, maps=maps, head_gate=head_gate)
        out = found.out
        y = out.mean(1) if self.combine == "mean" else out.transpose(1, 2).flatten(2)
        return MixerOutput(y, {}, found.maps)

    def _factors(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        """`(batch, heads, tokens, rank)`."""
        factors = layer(tokens)
        if self.tanh:
            factors = factors.tanh()
        return factors.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
