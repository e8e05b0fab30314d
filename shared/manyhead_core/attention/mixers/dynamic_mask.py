"""`dynamic_mask`: trainable dynamic-mask sparse attention, arXiv 2508.02124."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.kept_keys import (
    Keys,
    attend_biased,
    attend_causally,
    attend_shared,
    loops_over,
    places,
)
from manyhead_core.attention.rotary import rotate
from manyhead_core.attention.watch import gated, watching
from manyhead_core.errors import ConfigError


class DecodingState(NamedTuple):
    """What later tokens need of earlier ones.

    Args:
        key: Turned keys, `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, head_dim)`.
        delta: Importance of each key, `(batch, heads, keys)`.
    """

    key: Tensor
    value: Tensor
    delta: Tensor


class DynamicMaskAttention(TokenMixer):
    """Attention in which every head keeps the keys whose values it finds important.

    The importance is learned from the values of all key heads, and is added to the scores:

        d_aj = exp(A_a softplus(dt_proj(v_j)_a))
        P = softmax(head_dim^-1/2 q_i k_j + d_aj) over the kept keys

    Of the keys that the mask allows, a query keeps the `keep_window` most important ones, and of
    equal ones the later. The choice has no gradient, the importance has one.

    Args:
        dim: Model width.
        num_heads: Heads of queries.
        keep_window: Keys that a query sees at most.
        num_key_heads: Heads of keys and values; None means `num_heads`. Consecutive query heads
            share one.
        head_dim: Width of a head; None means `dim / num_heads`.
        rope_theta: Base of the rotary position embedding; None leaves positions out, as for sets.
        block_size: Keys are kept or dropped in blocks of this size: a block stays if more than
            half of its allowed keys are among the most important. None decides for each key.
        bias: Whether the projections have a bias.
        attention_dropout: Probability of dropping a weight while training.

    Raises:
        ConfigError: Sizes do not fit.
    """

    name = "dynamic_mask"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "CS", "NC"}),
        layouts=frozenset({"1d", "set"}),
        mask="any",
        maps=True,
        stateful=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        keep_window: int = 1024,
        num_key_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float | None = 10_000.0,
        block_size: int | None = None,
        bias: bool = False,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_heads is None else num_key_heads
        if head_dim is None and dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}; set head_dim")
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        if num_heads % key_heads:
            raise ConfigError(f"num_key_heads: {key_heads} does not divide num_heads={num_heads}")
        if rope_theta is not None and self.head_dim % 2:
            raise ConfigError(
                f"rope_theta: needs an even head width, got {self.head_dim}; set head_dim or None"
            )
        if keep_window < 1 or (block_size is not None and block_size < 1):
            raise ConfigError(
                f"keep_window, block_size: must be 1 or more, got {keep_window} and {block_size}"
            )
        self.keep_window = keep_window
        self.rope_theta = rope_theta
        self.block_size = block_size
        width, key_width = num_heads * self.head_dim, key_heads * self.head_dim
        self.q_proj = nn.Linear(dim, width, bias=bias)
        self.k_proj = nn.Linear(dim, key_width, bias=bias)
        self.v_proj = nn.Linear(dim, key_width, bias=bias)
        self.o_proj = nn.Linear(width, dim, bias=bias)
        self.A = nn.Parameter(torch.zeros(num_heads))
        self.dt_proj = nn.Linear(key_width, num_heads, bias=bias)
        self.attend = Attend(attention_dropout, scale=self.head_dim**-0.5)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj, self.dt_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: DecodingState | None,
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """`memory` holds the keys before those of `x`; a mask covers both."""
        if memory is not None and context is not None:
            raise ConfigError("dynamic_mask: memory is for self-attention; pass no context")
        start = 0 if memory is None else memory.key.shape[2]
        query = self._turned(self.q_proj(x), start)
        state = self._keys(x if context is None else context, start)
        if memory is not None:
            pairs = zip(memory, state, strict=True)
            state = DecodingState(*(torch.cat(pair, 2) for pair in pairs))
        keys = Keys(*state)
        if maps is None and not watching(self.attend):
            out, weights = gated(self._head_outputs(query, keys, mask), head_gate), None
        else:
            out, weights = self._attend_pairs(query, keys, mask, maps, head_gate)
        y = self.o_proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(y, {}, weights, state if context is None else None)

    def _head_outputs(self, query: Tensor, keys: Keys, mask: Mask | None) -> Tensor:
        window, count = self.keep_window, keys.key.shape[2]
        choosing = count > window and self.block_size is None
        if choosing and isinstance(mask, Causal) and loops_over(query, count):
            return attend_causally(self.attend, query, keys, window)
        allowed = None if mask is None else mask.dense(Shape.of(query, keys.key))
        if choosing and (allowed is None or allowed.shape[-2] == 1):
            return attend_shared(self.attend, query, keys, window, allowed)
        visible = self.visible(keys.delta.detach(), allowed)
        return attend_biased(self.attend, query, keys, visible)

    def _attend_pairs(
        self,
        query: Tensor,
        keys: Keys,
        mask: Mask | None,
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Head outputs and maps with a weight for every key, kept or not."""
        allowed = None if mask is None else mask.dense(Shape.of(query, keys.key))
        found = self.attend(
            query,
            keys.key,
            keys.value,
            mask=self.visible(keys.delta.detach(), allowed),
            bias=keys.delta[:, :, None],
            maps=maps,
            head_gate=head_gate,
        )
        return found.out, found.maps

    def _keys(self, source: Tensor, start: int) -> DecodingState:
        key = self._turned(self.k_proj(source), start)
        # Rounding to 16 bits makes close candidates swap places.
        with torch.autocast(source.device.type, enabled=False):
            precise = _precise(self.v_proj, source)
            step = F.softplus(_precise(self.dt_proj, precise)).transpose(1, 2)
            delta = (self.A.to(step.dtype)[:, None] * step).exp()
        value = precise.to(key.dtype).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return DecodingState(key, value, delta)

    def _turned(self, projected: Tensor, start: int) -> Tensor:
        heads = projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.rope_theta is None:
            return heads
        return rotate(heads, start=start, theta=self.rope_theta)

    def visible(self, delta: Tensor, allowed: Tensor | None) -> Tensor | None:
        """Which keys each query keeps, broadcastable to `(batch, heads, queries, keys)`.

        Args:
            delta: Importance of each key, `(batch, heads, keys)`.
            allowed: What the mask allows, same broadcasting as the result; None is everything.
        """
        keys = delta.shape[2]
        if keys <= self.keep_window:
            return allowed
        # Places instead of values: equal importance, as at the start of training, is decided by
        # the position, so that the choice of a query does not depend on keys that it cannot see.
        place = places(delta)[:, :, None].float()
        if allowed is not None:
            place = place.masked_fill(~allowed, -1.0)
        least = place.topk(self.keep_window, -1).values[..., -1:]
        kept = (place >= least) & (place >= 0)
        return kept if self.block_size is None else _whole_blocks(kept, allowed, self.block_size)


def _whole_blocks(kept: Tensor, allowed: Tensor | None, size: int) -> Tensor:
    """Keys in blocks of which more than half of the allowed keys are kept."""
    allowed = torch.ones_like(kept) if allowed is None else allowed.expand_as(kept)
    keys = kept.shape[-1]
    padding = (0, -keys % size)
    kept_count, allowed_count = (
        F.pad(x.float(), padding).unflatten(-1, (-1, size)).sum(-1) for x in (kept, allowed)
    )
    blocks = 2 * kept_count > allowed_count
    return blocks.repeat_interleave(size, -1)[..., :keys] & allowed


def _precise(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), bias)
