"""AutoInt: feature interactions learned by self-attention between the fields of a table row.

Song et al., "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks",
CIKM 2019, arXiv:1810.11921. Read from top to bottom it follows figure 1 of the paper: a vector per
field, interacting layers, one linear unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention import Attend, MapRequest
from manyhead_core.errors import ConfigError
from manyhead_core.hub.pretrained import PretrainedModel

Lists = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class AutoIntConfig:
    """Architecture of AutoInt; with a tower, of AutoInt+.

    The defaults are those of the authors' code, which adds bias, ReLU, scaling and layer
    normalisation to the layer that the paper describes. The paper's form is `qkv_activation="none",
    qkv_bias=False, scale="none", norm="none"`.

    Args:
        num_features: Rows of the embedding table. It comes from the data.
        num_fields: Fields of a row, multi-valued ones included. It comes from the data.
        dim: Width of a field vector.
        widths: Width of each interacting layer, all heads together.
        num_heads: Attention heads; divides every width.
        residual: Whether a layer adds a projection of its input.
        attention_dropout: Probability of dropping an attention weight.
        dropout: Probability of dropping an entry of the field vectors, for layers and tower alike.
        tower: Hidden sizes of the feed-forward tower; empty for none.
        tower_dropout: Probability of dropping a hidden unit of the tower.
        tower_norm: Batch normalisation in the tower.
        linear_term: Adds a weight per feature to the logit, as other libraries do.
        qkv_activation: What follows the projections of query, key, value and residual.
        qkv_bias: Whether those projections have a bias.
        scale: `head_dim` divides scores by the square root of a head's width.
        norm: `layer` normalises the output of every layer.
    """

    num_features: int = 1
    num_fields: int = 1
    dim: int = 16
    widths: tuple[int, ...] = (64, 64, 64)
    num_heads: int = 2
    residual: bool = True
    attention_dropout: float = 0.0
    dropout: float = 0.0
    tower: tuple[int, ...] = ()
    tower_dropout: float = 0.5
    tower_norm: bool = False
    linear_term: bool = False
    qkv_activation: Literal["relu", "none"] = "relu"
    qkv_bias: bool = True
    scale: Literal["head_dim", "none"] = "head_dim"
    norm: Literal["layer", "none"] = "layer"

    def __post_init__(self) -> None:
        """Check what one field alone cannot show."""
        for name in ("num_features", "num_fields", "dim", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for width in self.widths:
            if width < 1 or width % self.num_heads:
                raise ConfigError(
                    f"widths: {width} is no multiple of num_heads={self.num_heads}; "
                    f"use {self.num_heads * max(1, round(width / self.num_heads))}"
                )
        if not self.widths:
            raise ConfigError("widths must name at least one layer, got ()")
        if any(size < 1 for size in self.tower):
            raise ConfigError(f"tower: sizes must be at least 1, got {self.tower}")
        for name in ("attention_dropout", "dropout", "tower_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")


class AutoIntOutput(NamedTuple):
    """Result of a forward pass.

    Args:
        logits: `(batch,)`, float32; the sigmoid is the probability of a click.
    """

    logits: Tensor


class AutoInt(PretrainedModel[AutoIntConfig]):
    """Click-through-rate model of table 2 of the paper; with `config.tower` that of table 5.

    Args:
        config: Architecture.
    """

    app = "autoint"
    config_class = AutoIntConfig

    def __init__(self, config: AutoIntConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = FieldEmbedding(config.num_features, config.dim)
        self.linear = FieldEmbedding(config.num_features, 1) if config.linear_term else None
        self.dropout = nn.Dropout(config.dropout)
        inputs = (config.dim, *config.widths[:-1])
        self.layers = nn.ModuleList(
            InteractingLayer(dim, width, config)
            for dim, width in zip(inputs, config.widths, strict=True)
        )
        self.output = nn.Linear(config.num_fields * config.widths[-1], 1)
        self.tower = Tower(config.num_fields * config.dim, config) if config.tower else None
        self.reset_head()

    def forward(self, index: Tensor, value: Tensor, lists: Lists = ()) -> AutoIntOutput:
        """Score rows.

        Args:
            index: Dictionary ids of the single-valued fields, `(batch, single)`, int.
            value: 1 for a category, the scaled number for a numerical field, 0 where missing,
                `(batch, single)`.
            lists: For each multi-valued field its ids and weights, both `(batch, slots)`; a
                weight of 0 is padding.
        """
        embedded = self.dropout(self.embedding(index, value, lists))
        x = embedded
        for layer in self.layers:
            x, _ = layer(x)
        # Under autocast the logit stays in float32.
        precise = self.output.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            logits = self.output(x.flatten(1).to(precise))
            if self.tower is not None:
                logits = logits + self.tower(embedded.flatten(1).to(precise))
        if self.linear is not None:
            logits = logits + self.linear(index, value, lists).sum(1)
        return AutoIntOutput(logits.squeeze(-1))

    def features(self, index: Tensor, value: Tensor, lists: Lists = ()) -> Tensor:
        """Fields after the last interacting layer, `(batch, fields, widths[-1])`."""
        x = self.dropout(self.embedding(index, value, lists))
        for layer in self.layers:
            x, _ = layer(x)
        return x

    def attention_maps(
        self, index: Tensor, value: Tensor, lists: Lists = (), request: MapRequest | None = None
    ) -> list[Tensor]:
        """Attention of every layer, `(batch, heads, fields, fields)`, query field first.

        The map of layer 1 is between fields. Later ones are between mixtures of fields.

        Args:
            index: As in `forward`.
            value: As in `forward`.
            lists: As in `forward`.
            request: Rows, heads and form of the maps; None for whole maps.
        """
        x = self.dropout(self.embedding(index, value, lists))
        maps = []
        for layer in self.layers:
            x, weights = layer(x, request or MapRequest())
            assert weights is not None  # noqa: S101 - a request always brings maps
            maps.append(weights)
        return maps

    def example_inputs(self, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Random rows with as many lists, of as many slots, as the encoder of these weights makes.

        Args:
            batch: Number of rows.
            seed: Seed of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        slots = [] if self.preprocessor_state is None else self.preprocessor_state[0]["list_slots"]

        def ids(columns: int) -> Tensor:
            shape = (batch, columns)
            highest = self.config.num_features
            return torch.randint(highest, shape, generator=generator, dtype=torch.int32)

        singles = self.config.num_fields - len(slots)
        inputs = {"index": ids(singles), "value": torch.rand(batch, singles, generator=generator)}
        for number, size in enumerate(slots):
            inputs[f"list{number}_index"] = ids(size)
            inputs[f"list{number}_value"] = torch.ones(batch, size)
        return inputs

    def named_logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits for inputs by the names of `example_inputs`."""
        pairs = range((len(inputs) - 2) // 2)
        lists = [(inputs[f"list{n}_index"], inputs[f"list{n}_value"]) for n in pairs]
        return self(inputs["index"], inputs["value"], lists).logits

    def reset_head(self) -> None:
        """Draw the output unit anew, for training on another label."""
        # The reference starts the bias at a standard normal draw, a random offset of the first
        # epoch; zero is the better start and has no other effect.
        nn.init.normal_(self.output.weight, std=(2 / (self.output.in_features + 1)) ** 0.5)
        nn.init.zeros_(self.output.bias)


class FieldEmbedding(nn.Module):
    """One vector per field, section 4.3 of the paper; a single table serves all fields.

    Args:
        num_features: Rows of the table.
        dim: Width of a vector.
    """

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_features, dim)
        nn.init.normal_(self.table.weight, std=0.01)

    def forward(self, index: Tensor, value: Tensor, lists: Lists = ()) -> Tensor:
        """`(batch, fields, dim)`: single-valued fields first; a missing value gives zeros."""
        singles = self.table(index) * value.unsqueeze(-1)
        if not lists:
            return singles
        means = [self._mean(ids, weights) for ids, weights in lists]
        return torch.cat([singles, torch.stack(means, 1)], 1)

    def _mean(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean over the slots, equation 6; zeros where a row has no entry."""
        total = weights.sum(1, keepdim=True)
        shares = weights / torch.where(total == 0, torch.ones_like(total), total)
        return (self.table(ids) * shares.unsqueeze(-1)).sum(1)


class InteractingLayer(nn.Module):
    """Multi-head self-attention between fields, equations 5-8.

    Args:
        dim: Width of the input.
        width: Width of the output, all heads together.
        config: Options of the layer.
    """

    def __init__(self, dim: int, width: int, config: AutoIntConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.activated = config.qkv_activation == "relu"
        # Query, key, value and residual in one product: a third faster for these small widths.
        self.parts = 4 if config.residual else 3
        self.project = nn.Linear(dim, self.parts * width, bias=config.qkv_bias)
        scale = None if config.scale == "head_dim" else 1.0
        self.attend = Attend(config.attention_dropout, scale=scale)
        # The reference's epsilon, ten million times smaller than usual.
        self.norm = nn.LayerNorm(width, eps=1e-8) if config.norm == "layer" else nn.Identity()
        for block in self.project.weight.detach().chunk(self.parts):
            nn.init.xavier_uniform_(block)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, request: MapRequest | None = None) -> tuple[Tensor, Tensor | None]:
        """`(batch, fields, dim)` to `(batch, fields, width)`, and the maps if asked for."""
        projected = self.project(x)
        if self.activated:
            projected = F.relu(projected)
        parts = projected.chunk(self.parts, -1)
        heads = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts[:3]]
        attended = self.attend(*heads, maps=request)
        mixed = attended.out.transpose(1, 2).flatten(2)
        if self.parts == 4:
            mixed = mixed + parts[3]
        return self.norm(F.relu(mixed)), attended.maps


class Tower(nn.Module):
    """Feed-forward network beside the interacting layers: the plus of AutoInt+.

    Args:
        dim: Width of the input.
        config: Sizes and options.
    """

    def __init__(self, dim: int, config: AutoIntConfig) -> None:
        super().__init__()
        sizes = (dim, *config.tower)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        # TensorFlow's decay 0.995 and epsilon.
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(size, eps=1e-3, momentum=0.005) if config.tower_norm else nn.Identity()
            for size in config.tower
        )
        self.dropout = nn.Dropout(config.tower_dropout)
        self.output = nn.Linear(sizes[-1], 1)
        for layer in (*self.hidden, self.output):
            assert isinstance(layer, nn.Linear)  # noqa: S101 - for the type checker
            std = (2 / (layer.in_features + layer.out_features)) ** 0.5
            nn.init.normal_(layer.weight, std=std)
            nn.init.normal_(layer.bias, std=std)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, fields * dim)` to `(batch, 1)` logits."""
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = self.dropout(F.relu(norm(layer(x))))
        return self.output(x)
