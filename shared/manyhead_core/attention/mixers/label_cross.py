"""`label_cross`: one query for every label, as in arXiv 2403.12468."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities
from manyhead_core.attention.mixers.cross import CrossMixer
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class LabelCrossAttention(CrossMixer, Attention):
    """Every label looks at the tokens with a query of its own and answers with one token.

    `mixer(tokens)` takes the learned label embeddings as queries and gives `y` of shape
    `(batch, labels, dim)`. `mixer(queries, tokens)` takes other label tokens, such as those of the
    layer before or embedded label names. Labels do not see each other. `LabelHead` makes logits.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_labels: Labels.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: There are no labels.
    """

    name = "label_cross"
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
        num_labels: int = 1,
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
        if num_labels < 1:
            raise ConfigError(f"num_labels: must be 1 or more, got {num_labels}")
        self.labels = nn.Parameter(torch.empty(num_labels, dim))
        nn.init.trunc_normal_(self.labels, std=0.02, a=-0.04, b=0.04)

    def own_queries(
        self,
        tokens: Tensor,
        mask: Mask | None,
        **given: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Mask | None]:
        """The label embeddings, for every batch element."""
        return self.labels.expand(tokens.shape[0], -1, -1), mask


class LabelHead(nn.Module):
    """A logit of every label from its own token, each with weights of its own.

    Args:
        dim: Model width.
        num_labels: Labels.
    """

    def __init__(self, dim: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, dim))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)

    def forward(self, y: Tensor) -> Tensor:
        """Logits `(batch, labels)` of label tokens `(batch, labels, dim)`."""
        return (y * self.weight).sum(-1) + self.bias
