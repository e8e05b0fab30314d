"""`attend`: softmax attention whose meaning does not depend on the kernel that runs it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from manyhead_core.attention import kernels
from manyhead_core.attention.backend import AttendInfo, Backend, explain_backend
from manyhead_core.attention.maps import MapRequest, attention_maps
from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.errors import ConfigError


class AttendOutput(NamedTuple):
    """What `attend` gives.

    Args:
        out: `(batch, heads, queries, value_dim)` in the dtype of the values.
        lse: Log of the softmax denominator, `(batch, heads, queries)`, float32 for inputs up to
            float32; None unless asked for. Minus infinity where no key is visible.
        maps: Attention weights before dropout in the form of the `MapRequest`, or None.
        info: The kernel that ran and why faster ones did not.
    """

    out: Tensor
    lse: Tensor | None
    maps: Tensor | None
    info: AttendInfo


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    maps: MapRequest | None = None,
    backend: Backend = "auto",
    return_lse: bool = False,
) -> AttendOutput:
    """Average the values with softmax weights: `softmax(scale * query key^T + bias) value`.

    A query without a visible key gives zeros, zero gradients and an lse of minus infinity. No keys
    and no queries are legal. Softmax and lse are accumulated in float32 whatever the inputs are,
    under autocast as well. With fewer key heads than query heads, consecutive query heads share a
    key head.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`; `heads` is a multiple of `key_heads`.
        value: `(batch, key_heads, keys, value_dim)`.
        mask: A `Mask`, or a boolean tensor, True where attending is allowed, broadcastable to
            `(batch, heads, queries, keys)`.
        bias: Added to the scaled scores, same broadcasting.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        dropout_p: Probability of dropping a weight, applied as given. Modules do not pass it
            themselves: `Attend` decides it from its training state.
        maps: Attention weights to return beside the output.
        backend: Kernel; `auto` takes the fastest that can do it.
        return_lse: Whether to return the log of the softmax denominator.

    Raises:
        ConfigError: The heads do not divide, the mask is not boolean, or the named backend cannot
            do it.
    """
    if isinstance(mask, Mask):
        mask = mask.dense(Shape.of(query, key))
    _check(query, key, mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    info = explain_backend(
        query,
        key,
        value,
        bias=bias,
        dropout_p=dropout_p,
        return_lse=return_lse,
        backend=backend,
    )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores: Tensor | None = None
    # Autocast would take the products back to 16 bits.
    with torch.autocast(query.device.type, enabled=False):
        if info.backend == "sdpa":
            out = kernels.sdpa(
                query, key, value, mask=mask, bias=bias, scale=scale, dropout_p=dropout_p
            )
        else:
            out, scores = kernels.eager(
                query, key, value, mask=mask, bias=bias, scale=scale, dropout_p=dropout_p
            )
        lse = scores.logsumexp(-1) if return_lse and scores is not None else None
        weights = (
            None
            if maps is None
            else attention_maps(query, key, mask=mask, bias=bias, scale=scale, request=maps)
        )
    return AttendOutput(out, lse, weights, info)


class Attend(nn.Module):
    """`attend` as a layer without parameters: the one place that turns dropout off in evaluation.

    Args:
        dropout: Probability of dropping an attention weight while training.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        backend: Kernel; `auto` takes the fastest that can do it.
    """

    def __init__(
        self, dropout: float = 0.0, *, scale: float | None = None, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale
        self.backend: Backend = backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | Mask | None = None,
        bias: Tensor | None = None,
        maps: MapRequest | None = None,
    ) -> AttendOutput:
        """Arguments and result are those of `attend`."""
        # The fused kernels take dropout as given, in evaluation mode too.
        dropout_p = self.dropout if self.training else 0.0
        return attend(
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            scale=self.scale,
            dropout_p=dropout_p,
            maps=maps,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Settings for `print(model)`."""
        return f"dropout={self.dropout}, scale={self.scale}, backend={self.backend!r}"


def _check(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
    if query.shape[1] % key.shape[1]:
        raise ConfigError(
            f"heads: {query.shape[1]} query heads are no multiple of {key.shape[1]} key heads"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ConfigError(
            f"mask: {mask.dtype} is not boolean; pass True where attending is allowed"
        )
