"""`smha`: selective multi-head attention, the attention part of UoE (arXiv 2503.02495)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyhead_core.attention.attend import attend
from manyhead_core.attention.layer import Attend, HeadOutputs
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Both, Causal, KeyPadding, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.rotary import rotate
from manyhead_core.errors import ConfigError


class Selection(NamedTuple):
    """Which heads take each token.

    Args:
        gates: Factors of the heads, `(batch, heads, tokens)`, zero where a head does not take the
            token.
        own: Tokens of each head, boolean in the same shape.
    """

    gates: Tensor
    own: Tensor


class Packing(NamedTuple):
    """The tokens of each head, in the order of the sequence and without gaps.

    Args:
        place: Token of each slot, `(batch, heads, slots)`; slots left over come last.
        filled: Slots that hold a token of the head, same shape.
        tokens: Tokens in the sequence.
    """

    place: Tensor
    filled: Tensor
    tokens: int

    def take(self, x: Tensor) -> Tensor:
        """Tokens `(batch, heads, tokens, dim)` in slots, `(batch, heads, slots, dim)`."""
        return x.gather(2, self.place[..., None].expand(-1, -1, -1, x.shape[-1]))

    def put(self, slots: Tensor) -> Tensor:
        """Slots back at their tokens, zeros elsewhere."""
        empty = slots.new_zeros(*slots.shape[:2], self.tokens, slots.shape[-1])
        return empty.scatter(2, self.place[..., None].expand_as(slots), slots)


class SelectiveAttention(Attention):
    """Softmax attention in which every head sees only the tokens that chose it.

    Each head is an expert. A token goes to the heads that its gate ranks highest, and a head
    attends among its own tokens, in the order of the sequence:

        p = softmax(gate x);  T = the K heads with the largest p
        y = W_o concat(g_a head_a),  g_a = p_a / sum of p over T for a in T, else 0

    The tokens of each head are packed into a fixed number of slots, so that no shape depends on
    the data. There are `active_heads / num_heads` of all tokens in a head on average: a
    `capacity` a little above costs a fraction of the scores and rarely drops a token.

    A token that a `KeyPadding` hides takes no slot, counts for no position and gets no output.
    Other masks mean places in the whole sequence.

    Args:
        dim: Model width.
        num_heads: Heads.
        active_heads: Heads that take a token, K; None means half of them.
        gate_output: Multiply the output of a head by its gate, which is how the gate learns; with
            one active head the gate is 1 and does not. False takes outputs as they are.
        capacity: Slots of a head. It keeps its first tokens and drops those that find no slot.
            None has a place for every token.
        rope_theta: Base of the rotary position embedding, whose positions are those among the
            tokens of a head; None leaves positions out, as for sets.
        head_dim: Width of a head; None means `dim / num_heads`.
        qkv_bias: Whether query, key and value projections have a bias.
        qk_norm: Normalise queries and keys of each head (layer norm) before the product.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: A number does not fit.
    """

    name = "smha"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "CS"}),
        layouts=frozenset({"1d", "set"}),
        mask="any",
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        active_heads: int | None = None,
        gate_output: bool = True,
        capacity: int | None = None,
        rope_theta: float | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            attention_dropout=attention_dropout,
            dropout=dropout,
        )
        active = max(1, num_heads // 2) if active_heads is None else active_heads
        if not 1 <= active <= num_heads:
            raise ConfigError(f"active_heads: must be 1 to num_heads={num_heads}, got {active}")
        if capacity is not None and capacity < 1:
            raise ConfigError(f"capacity: needs 1 slot or more, got {capacity}")
        if rope_theta is not None and self.head_dim % 2:
            raise ConfigError(f"head_dim: rope_theta needs an even width, got {self.head_dim}")
        self.active_heads = active
        self.gate_output = gate_output
        self.capacity = capacity
        self.rope_theta = rope_theta
        # Slots mean nothing outside, so tools look at the tokens instead.
        self.attend = Attend(attention_dropout, site=False)
        self.heads = HeadOutputs()
        self.gate = nn.Linear(dim, num_heads, bias=False)
        nn.init.trunc_normal_(self.gate.weight, std=0.02, a=-0.04, b=0.04)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """`head_gate`, `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads."""
        batch, tokens = x.shape[:2]
        gates, own = self.select(x, mask)
        packing = pack(own, tokens if self.capacity is None else min(self.capacity, tokens))
        query, key, value = (packing.take(part) for part in self.project(x, x))
        if self.rope_theta is not None:
            query, key = (rotate(part, theta=self.rope_theta) for part in (query, key))
        shape = Shape(batch, own.shape[1], tokens, tokens, x.device)
        found = self.attend(query, key, value, mask=_visible(packing, mask, shape))
        out = packing.put(found.out * packing.filled[..., None])
        out = out * gates[..., None].to(out.dtype)
        weights = partial(_token_maps, query, key, packing, mask, shape)
        out = self.heads(out, weights, head_gate=head_gate)
        y = self.proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(self.dropout(y), {}, None if maps is None else weights(maps))

    def select(self, x: Tensor, mask: Mask | None = None) -> Selection:
        """Heads of each token, in float32 at least.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            mask: Its `KeyPadding` parts say which tokens no head takes.
        """
        # Rounding to 16 bits makes close candidates swap places.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            share = nn.functional.linear(x, self.gate.weight.to(x.dtype)).softmax(-1)
            active = torch.zeros_like(share)
            active = active.scatter(-1, share.topk(self.active_heads, -1).indices, 1.0)
            gates = active
            if self.gate_output:
                kept = active * share
                total = kept.sum(-1, keepdim=True)
                gates = kept / total.clamp_min(torch.finfo(kept.dtype).eps)
        own = active.bool()
        for part in _parts(mask):
            if isinstance(part, KeyPadding):
                own = own & part.keys(x.shape[1])[..., None]
        return Selection((gates * own).transpose(1, 2), own.transpose(1, 2))

    def load_foreign(
        self, state: Mapping[str, Tensor], style: Literal["timm", "multihead_attention"]
    ) -> None:
        """Continue from a plain layer of another library; the gate keeps its own weights.

        Args:
            state: Its tensors by name.
            style: As in `Attention.load_foreign`.

        Raises:
            WeightsError: Names are missing or left over.
        """
        super().load_foreign({**state, "gate.weight": self.gate.weight.detach()}, style)


def pack(own: Tensor, slots: int) -> Packing:
    """Move the tokens of each head to the front, in their order.

    Args:
        own: Tokens of each head, boolean `(batch, heads, tokens)`.
        slots: Slots of a head; its later tokens find none.
    """
    tokens = own.shape[-1]
    place = torch.arange(tokens, device=own.device)
    order = torch.where(own, place, place + tokens).argsort(-1)[..., :slots]
    return Packing(order, own.gather(-1, order), tokens)


def _visible(packing: Packing, mask: Mask | None, shape: Shape) -> Mask | Tensor:
    """What the slots may see, `(batch, heads, slots or 1, slots)`."""
    parts = [part for part in _parts(mask) if not isinstance(part, KeyPadding)]
    if any(isinstance(part, Causal) for part in parts) and len(parts) == 1:
        # Unused slots come last, so no filled one sees them.
        return Causal()
    allowed = packing.filled[:, :, None]
    if mask is None or not parts:
        return allowed
    full = mask.dense(shape).expand(shape.batch, shape.heads, shape.queries, shape.keys)
    batch = torch.arange(shape.batch, device=shape.device)[:, None, None, None]
    head = torch.arange(shape.heads, device=shape.device)[None, :, None, None]
    return allowed & full[batch, head, packing.place[..., :, None], packing.place[..., None, :]]


def _token_maps(
    query: Tensor,
    key: Tensor,
    packing: Packing,
    mask: Mask | None,
    shape: Shape,
    request: MapRequest,
) -> Tensor:
    """Weights between tokens; rows and columns of those that a head does not take are zero."""
    kept = packing.put(packing.filled[..., None])
    allowed = kept & kept.mT if mask is None else kept & kept.mT & mask.dense(shape)
    queries, keys = packing.put(query), packing.put(key)
    maps = attend(queries, keys, keys, mask=allowed, maps=request).maps
    assert maps is not None  # noqa: S101 - asked for
    return maps


def _parts(mask: Mask | None) -> list[Mask]:
    """The masks that `&` has combined."""
    if isinstance(mask, Both):
        return _parts(mask.first) + _parts(mask.second)
    return [] if mask is None else [mask]
