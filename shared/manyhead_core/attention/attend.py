"""`attend`: softmax attention whose meaning does not depend on the kernel that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention import kernels
from manyhead_core.attention.backend import AttendInfo, Backend, explain_backend
from manyhead_core.attention.maps import MapRequest, scored_maps
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.scores import Scoring
from manyhead_core.attention.settings import enforce
from manyhead_core.errors import ConfigError

if TYPE_CHECKING:
    from manyhead_core.attention.biases import Bias, ScoreMod


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
    bias: Tensor | Bias | None = None,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    maps: MapRequest | None = None,
    backend: Backend = "auto",
    return_lse: bool = False,
) -> AttendOutput:
    """Average the values: `softmax(score_mod(scale * query key^T + bias)) value`.

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
        bias: A `Bias`, or a tensor with the same broadcasting, added to the scaled scores.
        score_mod: Function of score, batch element, head, query and key number, applied after the
            bias; the last four are index tensors that broadcast over the scores.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        dropout_p: Probability of dropping a weight, applied as given. Modules do not pass it
            themselves: `Attend` decides it from its training state.
        maps: Attention weights to return beside the output.
        backend: Kernel; `auto` takes the fastest that can do it.
        return_lse: Whether to return the log of the softmax denominator.

    Raises:
        ConfigError: The heads do not divide, the mask is not boolean, a tensor is nested, the
            named backend cannot do it, or `configure(strict=True)` refuses the kernel.
    """
    _check(query, key, mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    info = explain_backend(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        score_mod=score_mod,
        dropout_p=dropout_p,
        return_lse=return_lse,
        backend=backend,
    )
    enforce(info)
    scoring = Scoring(mask, bias, score_mod, scale)
    with kernels.outside_autocast(query.device.type):
        out, lse = kernels.run(
            info.backend, query, key, value, scoring, dropout_p=dropout_p, return_lse=return_lse
        )
        weights = None if maps is None else scored_maps(query, key, scoring, maps)
    return AttendOutput(out, lse, weights, info)


def _check(query: Tensor, key: Tensor, mask: Tensor | Mask | None) -> None:
    if query.is_nested or key.is_nested:
        raise ConfigError(
            "query, key: nested tensors are not taken; pad them and pass mask=KeyPadding(lengths), "
            "or pack them for varlen_packed"
        )
    if query.shape[1] % key.shape[1]:
        raise ConfigError(
            f"heads: {query.shape[1]} query heads are no multiple of {key.shape[1]} key heads"
        )
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        raise ConfigError(
            f"mask: {mask.dtype} is not boolean; pass True where attending is allowed"
        )
