"""`gaam`: Gaussian adaptive attention, a recalibration of features by how typical they are."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError

# Added to the variance, so that a constant chunk has finite weights.
EPSILON = 1e-8
# Logit of a hidden entry: finite, since minus infinity would make a chunk without entries NaN.
HIDDEN = -1e30


class GaussianHead(nn.Module):
    """Weights of one chunk: a product of Gaussians around the chunk's own mean.

    Args:
        num_gaussians: Gaussians.
    """

    def __init__(self, num_gaussians: int) -> None:
        super().__init__()
        self.mean_offsets = nn.Parameter(torch.zeros(num_gaussians))
        self.c = nn.Parameter(torch.randn(num_gaussians).exp())

    def curve(self) -> tuple[Tensor, Tensor]:
        """`a` and `b` of `logit = -(a (x - mean)^2 - 2 b (x - mean)) / variance`.

        This is the sum over the Gaussians of `-(x - mean - offset)^2 / (2 c^2 variance)` without
        the part that does not depend on x, which cancels in the softmax.
        """
        precision = 0.5 / self.c**2
        return precision.sum(), (precision * self.mean_offsets).sum()

    def forward(self, chunk: Tensor, real: Tensor | None) -> Tensor:
        """Weights along the last axis; entries that are not `real` count as zeros."""
        counted = chunk if real is None else chunk.masked_fill(~real, 0.0)
        distance = chunk - counted.mean(-1, keepdim=True)
        variance = counted.var(-1, keepdim=True) + EPSILON
        a, b = self.curve()
        return (-(a * distance - 2 * b) * distance / variance).softmax(-1)


class GaussianAttention(TokenMixer):
    """Multiply every entry by its Gaussian weight among the entries of its chunk.

    One axis is cut into `num_heads` contiguous chunks, the last of which takes the rest. With mean
    and unbiased variance of a chunk, offsets δ and widths c of its head, section 3 of Ioannides et
    al., 2024 (arXiv 2401.11143) in logarithms, which do not underflow:

        u_i = (x - mean - δ_i) / sqrt(variance)
        weights = softmax(-Σ u_i² / (2 c_i²)),  y = x weights

    A masked token is left as it is, and is neither counted nor weighted with the others.

    Args:
        dim: Model width.
        num_heads: Chunks.
        num_gaussians: Gaussians of a chunk.
        axis: `features` weighs the entries of a token among each other, `tokens` those of a
            feature over the tokens.
        padding_value: Entries of this value count as zeros in mean and variance and are left as
            they are; None has no such value.
    """

    name = "gaam"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="keys",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_gaussians: int = 5,
        axis: Literal["features", "tokens"] = "features",
        padding_value: float | None = None,
    ) -> None:
        super().__init__()
        if axis not in ("features", "tokens"):
            raise ConfigError(f"axis: {axis!r} is neither 'features' nor 'tokens'")
        if axis == "features":
            _check_chunks("dim", dim, num_heads)
        self.axis = axis
        self.padding_value = padding_value
        self.attention_heads = nn.ModuleList(GaussianHead(num_gaussians) for _ in range(num_heads))

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
    ) -> MixerOutput:
        """The recalibrated tokens."""
        valid = mask.keys(x.shape[1]) if isinstance(mask, KeyPadding) else None
        y = (x * self.weights(x, valid)).to(x.dtype)
        if self.padding_value is not None:
            y = torch.where(x == self.padding_value, x, y)
        if valid is not None:
            y = torch.where(valid[..., None], y, x)
        return MixerOutput(y, {})

    def weights(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Weights of all entries, `(batch, tokens, dim)`, float32 or wider.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            valid: Boolean `(batch, tokens)`, the real tokens; None for all.

        Raises:
            ConfigError: A chunk has fewer than two entries, so it has no variance.
        """
        with torch.autocast(x.device.type, enabled=False):
            precise = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.axis == "features":
                return self._chunks(precise)
            if valid is None:
                _check_chunks("tokens", x.shape[1], len(self.attention_heads))
                return self._chunks(precise.transpose(1, 2)).transpose(1, 2)
            if self.padding_value is not None:
                raise ConfigError("padding_value: cannot be combined with a mask; drop one of them")
            return self._ranked(precise, valid)

    def _chunks(self, lines: Tensor) -> Tensor:
        """Weights along the last axis."""
        length, count = lines.shape[-1], len(self.attention_heads)
        sizes = [length // count] * (count - 1)
        sizes.append(length - sum(sizes))
        parts = []
        for head, chunk in zip(self.attention_heads, lines.split(sizes, -1), strict=True):
            real = None if self.padding_value is None else chunk != self.padding_value
            parts.append(head(chunk, real))
        return torch.cat(parts, -1)

    def _ranked(self, x: Tensor, valid: Tensor) -> Tensor:
        """Weights over the real tokens, cut into chunks as if the others were not there."""
        batch, _, width = x.shape
        heads = len(self.attention_heads)
        size = (valid.sum(1, keepdim=True) // heads).clamp(min=1)
        chunk = ((valid.cumsum(1) - 1) // size).clamp(0, heads - 1)
        member = (F.one_hot(chunk, heads) * valid[..., None]).to(x.dtype).transpose(1, 2)
        number = member.sum(-1, keepdim=True)
        place = chunk[..., None].expand(-1, -1, width)
        x = x.masked_fill(~valid[..., None], 0.0)
        distance = x - (member @ x / number.clamp(min=1)).gather(1, place)
        variance = member @ distance**2 / (number - 1).clamp(min=1) + EPSILON
        curves = [cast(GaussianHead, head).curve() for head in self.attention_heads]
        a, b = (torch.stack(part)[chunk][..., None] for part in zip(*curves, strict=True))
        logits = -(a * distance - 2 * b) * distance / variance.gather(1, place)
        logits = logits.masked_fill(~valid[..., None], HIDDEN)
        peak = x.new_zeros(batch, heads, width).scatter_reduce(
            1, place, logits.detach(), "amax", include_self=False
        )
        raised = (logits - peak.gather(1, place)).exp().masked_fill(~valid[..., None], 0.0)
        # A chunk with real tokens sums to 1 or more, its largest term.
        total = (member @ raised).clamp(min=1e-30)
        return raised / total.gather(1, place)


def importance_factors(weights: Tensor) -> Tensor:
    """Importance of each entry: weights averaged over a data set, scaled to 0..1.

    Args:
        weights: Weights of all samples, `(samples, ...)`.
    """
    mean = weights.mean(0)
    low, high = mean.min(), mean.max()
    return (mean - low) / (high - low).clamp(min=torch.finfo(mean.dtype).tiny)


def _check_chunks(name: str, length: int, heads: int) -> None:
    if length // heads < 2:
        raise ConfigError(
            f"gaam: {name}={length} in num_heads={heads} chunks leaves fewer than two entries; "
            f"take at most {max(length // 2, 1)} heads"
        )
