"""`inline`: injective linear attention of Han et al., NeurIPS 2024, arXiv 2412.06590."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import HeadOutputs
from manyhead_core.attention.linear_attend import hide
from manyhead_core.attention.maps import MapRequest, pick_rows, reduce_weights
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.shifts import shifts, start_linear
from manyhead_core.errors import ConfigError

Feature = Literal["identity", "relu", "leaky_relu", "exp"]
Local = Literal["2d", "1d", "none"]

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "exp": lambda x: (0.2 * x).exp(),
}
WINDOWS: dict[str, tuple[int, int]] = {"2d": (3, 3), "1d": (1, 3)}


class InlineAttention(TokenMixer):
    """Linear attention with additive instead of multiplicative normalisation, and a local term.

    The weights (equation 6) are `s/M q.k_j - mean_j(s/M q.k_j) + 1/M` over M keys. They sum to one
    but may be negative, and different queries get different weights. The local term (equation 8)
    adds a depth-wise convolution of the values with kernels computed from the mean token; with
    `context` there is none.

    Args:
        dim: Model width.
        num_heads: Heads.
        qkv_bias: Whether query, key and value projections have a bias.
        fused_qkv: Whether they are one matrix, `qkv`, which then takes no `context`.
        local: Neighbours of the local term: `2d` 3 x 3 on the grid, `1d` 3 in the sequence, `none`.
        num_prefix: First tokens that the local term leaves out, such as a class token; the grid
            does not count them.
        feature: Map of queries and keys; `exp` is `exp(0.2 x)`.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "inline"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "NC"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="keys",
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        fused_qkv: bool = False,
        local: Local = "2d",
        num_prefix: int = 0,
        feature: Feature = "identity",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        for name, value, known in (
            ("local", local, (*WINDOWS, "none")),
            ("feature", feature, FEATURES),
        ):
            if value not in known:
                raise ConfigError(f"{name}: {value!r} is unknown; use {', '.join(known)}")
        self.num_heads, self.num_prefix = num_heads, num_prefix
        self.local, self.feature = local, feature
        if fused_qkv:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
            start_linear(self.qkv)
        else:
            self.q = nn.Linear(dim, dim, bias=qkv_bias)
            self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
            start_linear(self.q, self.kv)
        self.heads = HeadOutputs()
        self.proj = nn.Linear(dim, dim)
        start_linear(self.proj)
        if local != "none":
            height, width = WINDOWS[local]
            self.residual = nn.Sequential(
                nn.Conv1d(dim, dim, 1, groups=num_heads),
                nn.GELU(),
                nn.Conv1d(dim, height * width * dim, 1, groups=num_heads),
            )
        self.dropout = nn.Dropout(dropout)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Project, attend, add the local term, project."""
        query, key, value = self.project(x, context)
        valid = mask.keys(key.shape[2]) if isinstance(mask, KeyPadding) else None
        phi = FEATURES[self.feature]
        out = inline_attend(query, key, value, valid=valid, feature=phi)
        weigh = partial(_maps, query, key, valid, phi)
        weights = None if maps is None else weigh(maps)
        if context is None and self.local != "none":
            out = out + self._local(x, value, valid, grid)
        out = self.heads(out, weigh, head_gate=head_gate)
        y = self.proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(self.dropout(y), {}, weights)

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, keys and values of `context`, `(batch, heads, tokens, head_dim)`."""
        if hasattr(self, "qkv"):
            parts = self.qkv(x).chunk(3, -1)
        else:
            source = x if context is None else context
            parts = (self.q(x), *self.kv(source).chunk(2, -1))
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )
        return query, key, value

    def _local(
        self, x: Tensor, value: Tensor, valid: Tensor | None, grid: tuple[int, int] | None
    ) -> Tensor:
        """Depth-wise convolution of the values with a kernel for each sample and channel."""
        if valid is not None:
            value = hide(value, valid)
        window = WINDOWS[self.local]
        kernels = self.residual(_mean(x, valid)[..., None])[..., 0]
        kernels = kernels.unflatten(1, (self.num_heads, -1, window[0] * window[1]))
        inner = value[:, :, self.num_prefix :].transpose(2, 3)
        size = grid if self.local == "2d" and grid is not None else (1, inner.shape[-1])
        shifted = shifts(inner.unflatten(-1, size), window)
        # One tap at a time: together they would need nine times the memory of the values.
        taps = kernels[..., None, None].unbind(3)
        found = taps[0] * shifted[0]
        for tap, neighbour in zip(taps[1:], shifted[1:], strict=True):
            found = torch.addcmul(found, tap, neighbour)
        return F.pad(found.flatten(3).transpose(2, 3), (0, 0, self.num_prefix, 0))

    def _check(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,
        maps: MapRequest | None,
    ) -> None:
        super()._check(x[:, self.num_prefix :], context, mask, grid, memory, maps)
        if context is not None and hasattr(self, "qkv"):
            raise ConfigError("inline: fused_qkv=True takes no context; set fused_qkv=False")
        if context is None and self.local == "2d" and grid is None:
            raise ConfigError("inline: local='2d' needs grid=(height, width), or local='none'")


def inline_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None = None,
    feature: Callable[[Tensor], Tensor] = FEATURES["identity"],
    scale: float | None = None,
) -> Tensor:
    """Injective linear attention, `scale/M q (sum_j (k_j - mean k) v_j) + mean v`.

    Taking the mean off the keys first gives the same weights as taking it off the products, with
    less cancellation. Sums are accumulated in float32. A sample without a key gives zeros.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, keys, head_dim)`.
        value: `(batch, heads, keys, value_dim)`.
        valid: Keys that hold a real token, boolean `(batch, keys)`.
        feature: Element-wise map of queries and keys.
        scale: Factor of the products; None means `head_dim ** -0.5`.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        wide = value.to(precise)
        q, centred, share = _centred(query.to(precise), key.to(precise), valid, feature, scale)
        if valid is not None:
            wide = hide(wide, valid)
        out = q @ ((centred * share).mT @ wide) + (wide * share).sum(2, keepdim=True)
        return out.to(value.dtype)


def _centred(
    query: Tensor,
    key: Tensor,
    valid: Tensor | None,
    feature: Callable[[Tensor], Tensor],
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys less their mean, and 1/M."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    q, k = feature(query) * scale, feature(key)
    if valid is None:
        share = k.new_full((1, 1, 1, 1), 1 / max(k.shape[2], 1))
        return q, k - (k * share).sum(2, keepdim=True), share
    share = 1 / valid.sum(-1).clamp(min=1).to(k.dtype)[:, None, None, None]
    k = hide(k, valid)
    return q, hide(k - (k * share).sum(2, keepdim=True), valid), share


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of the real tokens, `(batch, dim)`."""
    if valid is None:
        return x.mean(1)
    total = x.masked_fill(~valid[..., None], 0.0).sum(1)
    return total / valid.sum(-1, keepdim=True).clamp(min=1)


def _maps(
    query: Tensor,
    key: Tensor,
    valid: Tensor | None,
    feature: Callable[[Tensor], Tensor],
    request: MapRequest,
) -> Tensor:
    if request.reduce == "entropy":
        raise ConfigError("inline: weights can be negative and have no entropy; use another reduce")
    with torch.no_grad() if request.detach else nullcontext():
        query = pick_rows(query, request).float()
        key = (key if request.heads is None else key[:, list(request.heads)]).float()
        with torch.autocast(query.device.type, enabled=False):
            q, centred, share = _centred(query, key, valid, feature, None)
            weights = (q @ centred.mT + 1) * share
            if valid is not None:
                weights = weights.masked_fill(~valid[:, None, None], 0.0)
        return reduce_weights(weights, request.reduce).to(request.dtype)
