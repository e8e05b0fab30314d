"""`conditional_cross`: one embedding of the same tokens for every condition, arXiv 2307.13254."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities
from manyhead_core.attention.mixers.cross import CrossMixer
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class ConditionalCrossAttention(CrossMixer, Attention):
    """Conditions ask the tokens; as the last layer of an encoder it gives one view for each.

    A condition (an attribute such as a colour or a diagnosis) is an id; its embedding runs through
    an MLP (linear, GELU, linear) and becomes `tokens_per_condition` queries. Keys and values are
    the tokens. Conditions do not see each other, so asking for more of them changes nothing.

    `mixer(tokens, conditions=ids)` gives `y` of shape
    `(batch, conditions * tokens_per_condition, dim)`, condition by condition; `ids` is
    `(conditions,)` or `(batch, conditions)`, and without it all conditions are asked.
    `mixer(queries, tokens)` takes other queries. `embed` makes vectors for a triplet loss of `y`.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_conditions: Conditions.
        tokens_per_condition: Queries of a condition.
        hidden: Width of the embedding and of the MLP; None means `dim`.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: There are no conditions or no queries.
    """

    name = "conditional_cross"
    capabilities = Capabilities(
        patterns=frozenset({"NC"}),
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
        num_conditions: int = 1,
        tokens_per_condition: int = 1,
        hidden: int | None = None,
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
        if num_conditions < 1 or tokens_per_condition < 1:
            raise ConfigError(
                "num_conditions, tokens_per_condition: must be 1 or more, got "
                f"{num_conditions} and {tokens_per_condition}"
            )
        self.num_conditions = num_conditions
        self.tokens_per_condition = tokens_per_condition
        width = dim if hidden is None else hidden
        self.embedding = nn.Embedding(num_conditions, width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, dim * tokens_per_condition)
        nn.init.trunc_normal_(self.embedding.weight, std=0.02, a=-0.04, b=0.04)
        start_linear(self.fc1, self.fc2)

    def own_queries(
        self, tokens: Tensor, mask: Mask | None, **given: Any
    ) -> tuple[Tensor, Mask | None]:
        """Queries of the conditions, `(batch, conditions * tokens_per_condition, dim)`."""
        return self._queries(tokens, **given), mask

    def _queries(self, tokens: Tensor, *, conditions: Tensor | None = None) -> Tensor:
        if conditions is None:
            conditions = torch.arange(self.num_conditions, device=tokens.device)
        hidden = F.gelu(self.fc1(self.embedding(conditions)))
        queries = self.fc2(hidden).unflatten(-1, (self.tokens_per_condition, -1)).flatten(-3, -2)
        return queries.expand(tokens.shape[0], -1, -1)

    def embed(self, y: Tensor) -> Tensor:
        """Unit vectors of the conditions, `(batch, conditions, dim)`, from the output `y`."""
        means = y.unflatten(1, (-1, self.tokens_per_condition)).mean(2)
        return F.normalize(means, dim=-1)
