"""`realloc`: attention moved to or from chosen keys by a factor of each head, arXiv 2507.15807."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import MixerOutput
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class ReallocationAttention(Attention):
    """Softmax attention whose scores of chosen keys are multiplied by a learned positive factor.

    Every head has a factor for each subset of keys, `exp` of a parameter that starts at zero: it
    then computes what `softmax` computes. Few numbers adapt a trained layer to a new mixture of
    sources (images and text, or several channel groups).

    `mixer(x, context, subset=ids)` names the keys: `ids` is boolean, or the number of the subset
    counted from 1 with 0 for keys of none, `(keys,)` or `(batch, keys)`. Without it all keys are
    the first subset, and its factor is an inverse temperature of the head.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_subsets: Subsets of keys, each with factors of its own.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: There is no subset.
    """

    name = "realloc"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_subsets: int = 1,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            attention_dropout=attention_dropout,
            dropout=dropout,
        )
        if num_subsets < 1:
            raise ConfigError(f"num_subsets: must be 1 or more, got {num_subsets}")
        self.log_factors = nn.Parameter(torch.zeros(num_subsets, num_heads))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | None = None,
        grid: tuple[int, int] | None = None,
        memory: Any = None,
        maps: MapRequest | None = None,
        head_gate: Tensor | None = None,
        subset: Tensor | None = None,
    ) -> MixerOutput:
        """As in every mixer; `subset` names the keys whose scores are multiplied."""
        self._check(x, context, mask, grid, memory, maps)
        return self.mix(
            x,
            context,
            mask=mask,
            grid=grid,
            memory=memory,
            maps=maps,
            head_gate=head_gate,
            subset=subset,
        )

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
        subset: Tensor | None = None,
    ) -> MixerOutput:
        """Scale the keys of the subsets, then attend."""
        query, key, value = self.project(x, x if context is None else context)
        # A score is linear in its key, so the factor goes there and every kernel can run.
        key = key * self.factors(subset).to(key.dtype)
        found = self.attend(query, key, value, mask=mask, maps=maps, head_gate=head_gate)
        y = self.proj(found.out.transpose(1, 2).flatten(2))
        return MixerOutput(self.dropout(y), {}, found.maps)

    def factors(self, subset: Tensor | None) -> Tensor:
        """Factors of the keys, `(batch or 1, heads, keys or 1, 1)`."""
        learned = self.log_factors.exp()
        if subset is None:
            return learned[0][None, :, None, None]
        table = torch.cat([torch.ones_like(learned[:1]), learned])
        chosen = table[subset.long()]
        return chosen.reshape(-1, *chosen.shape[-2:]).transpose(1, 2)[..., None]
