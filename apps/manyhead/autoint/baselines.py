"""Baselines on the same encoded fields: logistic regression, factorisation machine, plain MLP."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.autoint.model import AutoIntConfig, AutoIntOutput, FieldEmbedding, Lists
from manyhead_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Sizes of a baseline.

    Args:
        num_features: Rows of the embedding table. It comes from the data.
        num_fields: Fields of a row. It comes from the data.
        dim: Width of a field vector.
        hidden: Hidden sizes of the MLP.
        dropout: Probability of dropping a hidden unit of the MLP.
    """

    num_features: int = 1
    num_fields: int = 1
    dim: int = 16
    hidden: tuple[int, ...] = (400, 400)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not self.hidden:
            raise ConfigError("hidden must name at least one layer, got ()")

    @classmethod
    def like(cls, net: AutoIntConfig) -> BaselineConfig:
        """The baseline beside a model: the same table, and the tower's sizes where it has one."""
        return cls(
            num_features=net.num_features,
            num_fields=net.num_fields,
            dim=net.dim,
            hidden=net.tower or cls.hidden,
            dropout=net.tower_dropout,
        )


class LogisticRegression(nn.Module):
    """A weight per feature and a bias: what the fields say without interacting.

    Args:
        config: Sizes.
    """

    app = "autoint"

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.linear = FieldEmbedding(config.num_features, 1)
        self.bias = nn.Parameter(self.linear.table.weight.new_zeros(1))
        nn.init.zeros_(self.linear.table.weight)

    def forward(self, index: Tensor, value: Tensor, lists: Lists = ()) -> AutoIntOutput:
        """Arguments and result are those of `AutoInt.forward`."""
        return AutoIntOutput(self.linear(index, value, lists).sum((1, 2)) + self.bias)


class FactorisationMachine(LogisticRegression):
    """Logistic regression plus the inner products of all pairs of fields (Rendle, ICDM 2010).

    Args:
        config: Sizes.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.embedding = FieldEmbedding(config.num_features, config.dim)

    def forward(self, index: Tensor, value: Tensor, lists: Lists = ()) -> AutoIntOutput:
        """Arguments and result are those of `AutoInt.forward`."""
        fields = self.embedding(index, value, lists)
        # Equation 5 of the paper: all pairs in linear time.
        pairs = (fields.sum(1).square() - fields.square().sum(1)).sum(1) / 2
        return AutoIntOutput(super().forward(index, value, lists).logits + pairs)


class MLP(nn.Module):
    """Hidden layers on the concatenated field vectors.

    Args:
        config: Sizes.
    """

    app = "autoint"

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(config.num_features, config.dim)
        sizes = (config.num_fields * config.dim, *config.hidden)
        self.tower = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(sizes[-1], 1)

    def forward(self, index: Tensor, value: Tensor, lists: Lists = ()) -> AutoIntOutput:
        """Arguments and result are those of `AutoInt.forward`."""
        x = self.embedding(index, value, lists).flatten(1)
        for layer in self.tower:
            x = self.dropout(F.relu(layer(x)))
        return AutoIntOutput(self.output(x).squeeze(-1))
