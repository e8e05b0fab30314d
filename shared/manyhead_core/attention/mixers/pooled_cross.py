"""`pooled_cross`: averaged tokens ask all tokens, as in arXiv 2505.17020."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Dense, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput
from manyhead_core.attention.mixers.cross import CrossMixer
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class PooledCrossAttention(CrossMixer, Attention):
    """Shorten a sequence: the mean of every `ratio` tokens asks all of them.

    `mixer(tokens)` gives `y` of shape `(batch, ceil(tokens / ratio), dim)`; a shorter last window
    averages what it has. With ratio 1 the attention is that of `softmax`. `mixer(queries, tokens)`
    takes a stream that is shortened already, such as the output of the layer before.

    Padding is not averaged. A window may see what any of its tokens may see, so that under a
    causal mask it sees up to its last token, and a window without real tokens sees nothing.

    Args:
        dim: Model width.
        num_heads: Heads.
        ratio: Tokens of a window.
        residual: Add the queries to the output: a block around the layer cannot add its input,
            which is longer. False where the block pools by itself and passes queries.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: The ratio is not positive.
    """

    name = "pooled_cross"
    capabilities = Capabilities(
        patterns=frozenset({"NC", "CC"}),
        layouts=frozenset({"1d"}),
        mask="any",
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 4,
        residual: bool = True,
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
        if ratio < 1:
            raise ConfigError(f"ratio: must be 1 or more, got {ratio}")
        self.num_heads = num_heads
        self.ratio = ratio
        self.residual = residual

    def own_queries(
        self,
        tokens: Tensor,
        mask: Mask | None,
        **given: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Mask | None]:
        """Means of the windows, and the mask with windows for queries."""
        batch, count, _ = tokens.shape
        if mask is None:
            return pool_windows(tokens, self.ratio), None
        shape = Shape(batch, self.num_heads, count, count, tokens.device)
        allowed = mask.dense(shape)
        allowed = allowed[(None,) * (4 - allowed.dim())]
        seen = allowed.any(1)
        real = (seen.any(-1) & seen.any(-2)).expand(batch, count)
        pairs = _any_of_window(allowed & real[:, None, :, None], self.ratio)
        return pool_windows(tokens, self.ratio, real), Dense(pairs)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Attend, and add the queries."""
        found = super().mix(
            x, context, mask=mask, grid=grid, memory=memory, maps=maps, head_gate=head_gate
        )
        return found._replace(y=x + found.y) if self.residual else found


def pool_windows(tokens: Tensor, ratio: int, real: Tensor | None = None) -> Tensor:
    """Mean of every `ratio` tokens, `(batch, ceil(tokens / ratio), dim)`.

    Args:
        tokens: `(batch, tokens, dim)`.
        ratio: Tokens of a window; the last one may have fewer.
        real: Tokens to average, boolean `(batch, tokens)`; None for all. A window without any is
            zero.
    """
    if real is None:
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    short = -tokens.shape[1] % ratio
    precise = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    precise = F.pad(precise.masked_fill(~real[..., None], 0.0), (0, 0, 0, short))
    # Inductor's C++ of a padded boolean tensor does not build (torch 2.13).
    counts = F.pad(real.to(precise.dtype), (0, short)).unflatten(1, (-1, ratio)).sum(-1)
    means = precise.unflatten(1, (-1, ratio)).sum(2) / counts.clamp(min=1)[..., None]
    return means.to(tokens.dtype)


def _any_of_window(allowed: Tensor, ratio: int) -> Tensor:
    """Keys that at least one query of each window sees."""
    short = -allowed.shape[2] % ratio
    padded = F.pad(allowed.to(torch.uint8), (0, 0, 0, short))
    return padded.unflatten(2, (-1, ratio)).amax(3).bool()
