"""MVPFormer: multi-variate parallel attention over the channels and segments of brain signals.

"Multi-variate parallel attention", arXiv 2506.20354. Read from top to bottom it follows the paper's
figure: every segment of every channel becomes a token by wavelets, a trunk of parallel layers lets
each token see all channels of its own and of earlier segments, and a head predicts the next token
of each channel (pre-training), says whether the newest segment belongs to a seizure, or forecasts.

Any number of channels up to the size of the channel table works, and no electrode positions are
needed; their order matters, since the attention looks at the distance between channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.mvpformer.lora import Adapted, adapt, merged_state
from manyhead.mvpformer.wavelet import NORM_EPS, Amplitude, WaveletEncoder, band_lengths
from manyhead_core.attention.mixers.mvpa import ParallelAttention, Positions, PositionTables
from manyhead_core.errors import ConfigError
from manyhead_core.hub.pretrained import PretrainedModel

Target = Literal["classes", "next_token", "forecast"]


@dataclass(frozen=True, kw_only=True)
class MVPFormerConfig:
    """Architecture of MVPFormer; the defaults are those of size S.

    Args:
        segment_samples: Samples of a segment. It comes from the data.
        dim: Model width.
        num_layers: Layers of the trunk.
        num_heads: Heads of queries.
        num_key_heads: Heads of keys and values; consecutive query heads share one.
        hidden_dim: Inner width of the gated MLP.
        max_segments: Rows of the time table: most segments of a window.
        max_channels: Rows of the channel table: most channels.
        window: Segments back up to which attention looks at content; farther keys take part by
            their distance in time and between channels alone.
        content: Whether attention looks at content at all.
        scale_by_layer: Whether the scores of layer i are divided by i + 1.
        target: `classes` of the newest segment; `next_token` of every channel, the pre-training;
            `forecast` of the next `horizon` samples of every channel.
        num_classes: Classes; class 1 of two is the seizure.
        horizon: Samples that `forecast` predicts.
        amplitude: Side input of the tokens, see `WaveletEncoder`.
        lora_rank: Rank of adapters on queries and values; 0 has none.
        lora_alpha: Scale of the adapters, times the rank.
        lora_on: Which rows of the key-value projection have an adapter.
        dropout: Probability of dropping an entry of a token or of an attention output.
        attention_dropout: Probability of dropping an attention weight.
    """

    segment_samples: int = 2560
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_key_heads: int = 4
    hidden_dim: int = 1728
    max_segments: int = 110
    max_channels: int = 128
    window: int = 10
    content: bool = True
    scale_by_layer: bool = False
    target: Target = "classes"
    num_classes: int = 2
    horizon: int = 0
    amplitude: Amplitude = "none"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_on: Adapted = "value"
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        band_lengths(self.segment_samples)
        least = {"num_classes": 2, "horizon": 0, "lora_rank": 0, "window": 0}
        sizes = ("dim", "num_layers", "num_heads", "num_key_heads", "hidden_dim")
        least |= dict.fromkeys((*sizes, "max_segments", "max_channels"), 1)
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ConfigError(f"{name}: must be at least {number}, got {getattr(self, name)}")
        if self.target == "forecast" and not self.horizon:
            raise ConfigError("horizon: 0 samples are nothing to forecast; set 1 or more")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be in [0, 1), got {getattr(self, name)}")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """Size S of the paper: 12 layers of width 768."""
        return cls(**changes)

    @classmethod
    def medium(cls, **changes: Any) -> Self:
        """Size M of the paper: 24 layers of width 2048."""
        sizes = {"dim": 2048, "num_layers": 24, "num_heads": 16, "num_key_heads": 8}
        return cls(**(sizes | {"hidden_dim": 5632} | changes))


class MVPFormerOutput(NamedTuple):
    """What the model gives.

    Args:
        logits: Of the newest segment, `(batch, classes)`; None for other targets.
        prediction: Next tokens, `(batch, segments, channels, dim)`, or samples to come,
            `(batch, channels, horizon)`; None for classes.
        hidden: Embedding of every segment of every channel,
            `(batch, segments, channels, dim)`.
        tokens: Outputs of the encoder, `(batch, segments, channels, dim)`.
    """

    logits: Tensor | None
    prediction: Tensor | None
    hidden: Tensor
    tokens: Tensor

    @property
    def pooled(self) -> Tensor:
        """Embedding of the newest segment, the mean of its channels, `(batch, dim)`."""
        return self.hidden[:, -1].mean(1)


class MVPFormer(PretrainedModel[MVPFormerConfig]):
    """Transformer over a grid of segments and channels, section 3 of the paper.

    Args:
        config: Architecture.

    Attributes:
        threshold: Probability from which a segment counts as seizure; training chooses it on
            validation patients.
    """

    app = "mvpformer"
    config_class = MVPFormerConfig
    medical = True
    threshold: Tensor

    def __init__(self, config: MVPFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = WaveletEncoder(config.segment_samples, config.dim, config.amplitude)
        self.positions = PositionTables(config.dim, config.max_segments, config.max_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ParallelLayer(config, i) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        outputs = {
            "classes": config.num_classes,
            "next_token": config.dim,
            "forecast": config.horizon,
        }
        self.head = nn.Linear(config.dim, outputs[config.target], bias=False)
        self.register_buffer("threshold", torch.tensor(0.5))

    def encode(self, signal: Tensor) -> Tensor:
        """Tokens, each from its own segment, so that overlapping windows can share them.

        Args:
            signal: µV, `(batch, segments, channels, samples)`.

        Returns:
            `(batch, segments, channels, dim)`.
        """
        tokens: Tensor = self.encoder(signal)
        return tokens

    def forward(
        self, signal: Tensor | None = None, *, tokens: Tensor | None = None
    ) -> MVPFormerOutput:
        """Look at windows.

        Args:
            signal: Segments in order of time, µV, `(batch, segments, channels, samples)`.
            tokens: What `encode` gave for them, in place of the signal.

        Raises:
            ConfigError: There are more segments or channels than the tables have rows.
        """
        if tokens is None:
            if signal is None:
                raise ConfigError("forward: pass signal, or tokens that encode gave")
            tokens = self.encode(signal)
        grid = (tokens.shape[1], tokens.shape[2])
        positions = self.positions(grid)
        # Under autocast the sum over the layers stays in the precision of the weights.
        x = self.dropout(tokens.to(self.norm.weight.dtype)).flatten(1, 2)
        for layer in self.layers:
            x = layer(x, grid, positions)
        hidden = self.norm(x).unflatten(1, grid)
        return self._headed(hidden, tokens)

    def _headed(self, hidden: Tensor, tokens: Tensor) -> MVPFormerOutput:
        if self.config.target == "classes":
            logits = self.head(hidden[:, -1].mean(1))
            return MVPFormerOutput(logits.float(), None, hidden, tokens)
        seen = hidden if self.config.target == "next_token" else hidden[:, -1]
        return MVPFormerOutput(None, self.head(seen), hidden, tokens)

    def reset_head(self, num_classes: int | None = None) -> None:
        """Draw the head anew, for training on another label.

        Args:
            num_classes: Of the new label; None keeps the head as wide as it is.
        """
        if num_classes is not None:
            changed = {"target": "classes", "num_classes": num_classes}
            self.config = MVPFormerConfig(**(_values(self.config) | changed))
            self.head = nn.Linear(self.config.dim, num_classes, bias=False).to(
                self.head.weight.device
            )
        self.head.reset_parameters()
        self.threshold.fill_(0.5)

    def merged(self) -> MVPFormer:
        """The same model without adapters, for inference; this one stays as it is."""
        found = MVPFormer(MVPFormerConfig(**(_values(self.config) | {"lora_rank": 0})))
        found.load_state_dict(merged_state(self))
        found.preprocessor_state, found.metrics = self.preprocessor_state, dict(self.metrics)
        return found.to(self.head.weight.device).train(self.training)

    def example_inputs(self, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Noise of 50 µV in three channels.

        Args:
            batch: Number of windows.
            seed: Seed of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        segments = min(4, self.config.max_segments)
        channels = min(3, self.config.max_channels)
        shape = (batch, segments, channels, self.config.segment_samples)
        return {"signal": 50 * torch.randn(shape, generator=generator)}

    def named_logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits, or predictions, for inputs by the names of `example_inputs`."""
        found = self(inputs["signal"])
        return found.prediction if found.logits is None else found.logits


class ParallelLayer(nn.Module):
    """Attention and MLP side by side behind one norm: `x + MLP(n) + attention(n)`.

    Args:
        config: Architecture.
        number: Place in the trunk, from 0.
    """

    def __init__(self, config: MVPFormerConfig, number: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.attention = ParallelAttention(
            config.dim,
            config.num_heads,
            num_key_heads=config.num_key_heads,
            window=config.window,
            content=config.content,
            score_scale=1 / (number + 1) if config.scale_by_layer else 1.0,
            own_positions=False,
            attention_dropout=config.attention_dropout,
        )
        if config.lora_rank:
            self._add_adapters(config)
        self.mlp = GatedMLP(config.dim, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def _add_adapters(self, config: MVPFormerConfig) -> None:
        attention, size = self.attention, (config.lora_rank, config.lora_alpha)
        keys = attention.kv_proj.out_features // 2
        first = keys if config.lora_on == "value" else 0
        attention.q_proj = adapt(attention.q_proj, *size)
        attention.kv_proj = adapt(attention.kv_proj, *size, first_row=first)

    def forward(self, x: Tensor, grid: tuple[int, int], positions: Positions) -> Tensor:
        """One layer.

        Args:
            x: Tokens, time-major, `(batch, segments * channels, dim)`.
            grid: Segments and channels.
            positions: Rows of the time and channel table in use, shared by all layers.
        """
        n = self.norm(x)
        mixed = self.attention(n, grid=grid, positions=positions).y
        return x + self.mlp(n) + self.dropout(mixed)


class GatedMLP(nn.Module):
    """`down(silu(gate x) up x)`.

    Args:
        dim: Width.
        hidden_dim: Inner width.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)
        for layer in (self.gate, self.up, self.down):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` to `(..., dim)`."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _values(config: MVPFormerConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}
