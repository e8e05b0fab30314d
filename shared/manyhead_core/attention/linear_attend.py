"""`linear_attend`: attention whose cost grows with the number of keys, not with its square."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.errors import ConfigError

# Tokens that are compared pair by pair in the causal form; between chunks only sums are kept.
CHUNK = 64


class LinearState(NamedTuple):
    """All that a later segment needs to know about the keys so far.

    Args:
        products: Sum of feature times value, `(batch, heads, feature_dim, value_dim)`, float32 for
            inputs up to float32.
        features: Sum of the features of the keys, `(batch, heads, feature_dim)`.
    """

    products: Tensor
    features: Tensor


class LinearOutput(NamedTuple):
    """What `linear_attend` gives.

    Args:
        out: `(batch, heads, queries, value_dim)` in the dtype of the values.
        state: Sums over all keys, those of an earlier state included.
    """

    out: Tensor
    state: LinearState


def elu_plus_one(x: Tensor) -> Tensor:
    """A positive feature, `elu(x) + 1`."""
    return F.elu(x) + 1


def linear_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid: Tensor | None = None,
    causal: bool = False,
    state: LinearState | None = None,
    feature: Callable[[Tensor], Tensor] = elu_plus_one,
    eps: float = 1e-6,
) -> LinearOutput:
    """Average the values with weights proportional to `feature(query) . feature(key)`.

    Katharopoulos et al., ICML 2020, equations 5 to 12. Sums are accumulated in float32 whatever
    the inputs are, under autocast as well. A query without a visible key gives zeros and zero
    gradients.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, keys, head_dim)`.
        value: `(batch, heads, keys, value_dim)`.
        valid: Keys that hold a real token, boolean `(batch, keys)`.
        causal: Whether query i sees keys 0 to i only, beside those of `state`.
        state: Sums over the keys of earlier segments, visible to every query.
        feature: Element-wise map to non-negative numbers, applied to queries and keys.
        eps: Added to the normaliser.

    Raises:
        ConfigError: Queries and keys differ in number and `causal` is set, or `valid` is not
            boolean.
    """
    if causal and query.shape[2] != key.shape[2]:
        raise ConfigError(
            f"causal: needs as many queries as keys, got {query.shape[2]} and {key.shape[2]}"
        )
    precise = torch.promote_types(query.dtype, torch.float32)
    # Autocast would take the products back to 16 bits.
    with torch.autocast(query.device.type, enabled=False):
        wide = value.to(precise)
        q, k = feature(query.to(precise)), feature(key.to(precise))
        if valid is not None:
            k, wide = (hide(x, valid) for x in (k, wide))
        start = _empty(k, wide) if state is None else state
        if causal:
            summed, norm, end = _prefix(q, k, wide, start)
        else:
            end = LinearState(start.products + k.mT @ wide, start.features + k.sum(2))
            summed, norm = q @ end.products, q @ end.features[..., None]
        return LinearOutput((summed / (norm + eps)).to(value.dtype), end)


def linear_weights(
    query: Tensor,
    key: Tensor,
    *,
    allowed: Tensor | None,
    state: LinearState | None = None,
    feature: Callable[[Tensor], Tensor] = elu_plus_one,
    eps: float = 1e-6,
) -> Tensor:
    """The weights of `linear_attend` written out, `(batch, heads, queries, keys)`.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, keys, head_dim)`.
        allowed: True where attending is allowed, broadcastable to the result.
        state: Sums over earlier keys; they take their share, so that rows sum to less than one.
        feature: As in `linear_attend`.
        eps: As in `linear_attend`.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k = feature(query.to(precise)), feature(key.to(precise))
        weights = q @ k.mT
        if allowed is not None:
            weights = weights.masked_fill(~allowed, 0.0)
        norm = weights.sum(-1, keepdim=True)
        if state is not None:
            norm = norm + q @ state.features[..., None]
        return weights / (norm + eps)


def hide(x: Tensor, valid: Tensor) -> Tensor:
    """`x`, `(batch, heads, keys, dim)`, with zeros for keys that are not `valid`, `(batch, keys)`.

    Raises:
        ConfigError: `valid` is not boolean.
    """
    if valid.dtype != torch.bool:
        raise ConfigError(f"valid: {valid.dtype} is not boolean; pass True for real keys")
    return x.masked_fill(~valid[:, None, :, None], 0.0)


def _empty(k: Tensor, v: Tensor) -> LinearState:
    batch, heads, _, width = k.shape
    return LinearState(
        k.new_zeros(batch, heads, width, v.shape[-1]), k.new_zeros(batch, heads, width)
    )


def _prefix(
    q: Tensor, k: Tensor, v: Tensor, start: LinearState
) -> tuple[Tensor, Tensor, LinearState]:
    """Weighted sums and normalisers over the keys up to each query, and the sums over all."""
    tokens = q.shape[2]
    chunk = min(CHUNK, max(tokens, 1))
    q, k, v = (_chunks(x, chunk) for x in (q, k, v))
    # Sums over the chunks before each one; the last entry is the sum over all.
    products = torch.cat([start.products[:, :, None], k.mT @ v], 2).cumsum(2)
    features = torch.cat([start.features[:, :, None], k.sum(3)], 2).cumsum(2)
    inside = (q @ k.mT).tril()
    summed = inside @ v + q @ products[:, :, :-1]
    norm = inside.sum(-1, keepdim=True) + q @ features[:, :, :-1, :, None]
    end = LinearState(products[:, :, -1], features[:, :, -1])
    return summed.flatten(2, 3)[:, :, :tokens], norm.flatten(2, 3)[:, :, :tokens], end


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """`(batch, heads, tokens, dim)` to `(batch, heads, chunks, chunk, dim)`, filled with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % chunk)).unflatten(2, (-1, chunk))
