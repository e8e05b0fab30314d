"""Mixers that take attention apart, for controlled studies.

Values, heads and output projection are those of plain attention; only where the weights come from
differs. In language models no mixing at all collapses, while the form of the weights matters little
as long as some layers stay standard, so apply these to all layers and to a part of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from manyhead_core.attention.layer import Attend, HeadOutputs
from manyhead_core.attention.maps import MapRequest, pick_rows, reduce_weights
from manyhead_core.attention.masks import Dense, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, Pattern, TokenMixer
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.errors import ConfigError

SELF: frozenset[Pattern] = frozenset({"NS", "CS"})
ALL: frozenset[Pattern] = SELF | {"NC", "CC"}


def _able(patterns: frozenset[Pattern], *, stateful: bool = False) -> Capabilities:
    return Capabilities(
        patterns=patterns,
        layouts=frozenset({"1d", "2d", "set"}),
        mask="any",
        maps=True,
        heads=True,
        stateful=stateful,
    )


class Ablation(TokenMixer):
    """Values, heads and output projection; a subclass says what the scores are.

    Args:
        dim: Model width.
        num_heads: Heads.
        qkv_bias: Whether the projections before the weights have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    has_queries = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        if self.has_queries:
            self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
            start_linear(self.qk)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        start_linear(self.v, self.proj)
        self.attend = Attend(attention_dropout)
        self.dropout = nn.Dropout(dropout)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """`head_gate`, `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads."""
        value = self.heads(self.v(x if context is None else context))
        query, key, bias, state = self.scores(x, value, memory)
        allowed = self.visible(mask, Shape.of(query, key))
        found = self.attend(
            query, key, value, mask=allowed, bias=bias, maps=maps, head_gate=head_gate
        )
        y = self.dropout(self.proj(found.out.transpose(1, 2).flatten(2)))
        return MixerOutput(y, {}, found.maps, state)

    def scores(
        self, x: Tensor, value: Tensor, memory: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Queries, keys, bias and state; without more, all scores are equal.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            value: `(batch, heads, keys, head_dim)`.
            memory: What the caller passed on.
        """
        del memory
        query = value.new_zeros(*value.shape[:2], x.shape[1], value.shape[3])
        return query, torch.zeros_like(value), None, None

    def visible(self, mask: Mask | None, shape: Shape) -> Tensor | None:
        """Pairs that may attend, broadcastable to `(batch, heads, queries, keys)`."""
        return None if mask is None else mask.dense(shape)

    def heads(self, x: Tensor) -> Tensor:
        """`(batch, tokens, dim)` as `(batch, heads, tokens, head_dim)`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of `x`, `(batch, heads, tokens, head_dim)`."""
        query, key = self.qk(x).chunk(2, -1)
        return self.heads(query), self.heads(key)


class Uniform(Ablation):
    """The mean over the visible keys."""

    name = "uniform"
    capabilities = _able(ALL)


class Identity(Ablation):
    """No mixing: every token attends to itself, so the layer works token by token.

    A token that the mask hides from itself gives zeros before the output projection.
    """

    name = "identity"
    capabilities = _able(SELF)

    def visible(self, mask: Mask | None, shape: Shape) -> Tensor | None:
        """The diagonal."""
        own = Dense(torch.eye(shape.queries, dtype=torch.bool, device=shape.device))
        return (own if mask is None else own & mask).dense(shape)


class StaticQueryKey(Ablation):
    """Queries and keys from the embeddings that enter the first layer, values from this layer.

    The embeddings are `memory`, `(batch, tokens, dim)`, and are returned as state for the next
    layer. Without memory the layer takes its own input, which is right in the first layer only; for
    a host that passes no memory on, `link_static(model)` brings them from there.
    """

    name = "static_qk"
    capabilities = _able(SELF, stateful=True)
    has_queries = True

    def scores(
        self, x: Tensor, value: Tensor, memory: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Products of the projected embeddings."""
        del value
        embedding = x if memory is None else memory
        if embedding.shape != x.shape:
            raise ConfigError(
                f"static_qk: memory of shape {tuple(embedding.shape)} does not fit tokens of shape "
                f"{tuple(x.shape)}; pass the embeddings of the same tokens"
            )
        return *self.projected(embedding), None, embedding


class PositionQueryKey(Ablation):
    """A learned logit for every pair of positions, whatever the tokens are.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_tokens: Most tokens; fewer use the first rows and columns.
        qkv_bias: Whether the values have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "position_qk"
    capabilities = _able(SELF)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_tokens: int,
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
        self.logits = nn.Parameter(torch.empty(num_heads, num_tokens, num_tokens))
        nn.init.trunc_normal_(self.logits, std=0.02, a=-0.04, b=0.04)

    def scores(
        self, x: Tensor, value: Tensor, memory: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """The logits as a bias on scores of zero."""
        count, most = x.shape[1], self.logits.shape[-1]
        if count > most:
            raise ConfigError(
                f"position_qk: {count} tokens exceed num_tokens={most}; raise num_tokens"
            )
        query, key, _, state = super().scores(x, value, memory)
        return query, key, self.logits[None, :, :count, :count], state


class RandomQueryKey(Ablation):
    """Queries and keys from fixed random embeddings, through trained projections.

    Embeddings belong to positions; with `memory`, integers `(batch, tokens)`, to those token ids
    instead.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_embeddings: Positions or ids that have an embedding, drawn from a standard normal.
        seed: Seed of the embeddings.
        qkv_bias: Whether the projections before the weights have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "random_qk"
    capabilities = _able(SELF, stateful=True)
    has_queries = True
    embedding: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_embeddings: int = 1024,
        seed: int = 0,
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
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("embedding", torch.randn(num_embeddings, dim, generator=generator))

    def scores(
        self, x: Tensor, value: Tensor, memory: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Products of the projected random embeddings."""
        count, most = x.shape[1], self.embedding.shape[0]
        if memory is None and count > most:
            raise ConfigError(
                f"random_qk: {count} tokens exceed num_embeddings={most}; raise num_embeddings"
            )
        if memory is None:
            query, key = self.projected(self.embedding[None, :count])
            return query.expand_as(value), key.expand_as(value), None, None
        return *self.projected(F.embedding(memory, self.embedding)), None, memory


class LinearQueryKey(Ablation):
    """The scaled products themselves as weights, without a softmax: they may be negative.

    `y_i = head_dim^-1/2 Σ_j (q_i k_j) v_j` over the visible keys; rows do not sum to 1.
    """

    name = "linear_qk"
    capabilities = _able(ALL)
    has_queries = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, dropout=dropout)
        # Without a softmax the heads are not those of a kernel call.
        del self.attend
        self.shown = HeadOutputs()
        self.attention_dropout = attention_dropout

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """`head_gate`, `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads."""
        source = x if context is None else context
        weight = self.qk.weight.chunk(2)
        bias = (None, None) if self.qk.bias is None else self.qk.bias.chunk(2)
        query = self.heads(F.linear(x, weight[0], bias[0]))
        key = self.heads(F.linear(source, weight[1], bias[1]))
        value = self.heads(self.v(source))
        weights = self.weights(query, key, mask)
        kept = F.dropout(weights, self.attention_dropout, self.training)
        out = (kept @ value.to(kept.dtype)).to(value.dtype)
        out = self.shown(out, lambda request: _asked(weights, request), head_gate=head_gate)
        y = self.dropout(self.proj(out.transpose(1, 2).flatten(2)))
        return MixerOutput(y, {}, None if maps is None else _asked(weights, maps))

    def weights(self, query: Tensor, key: Tensor, mask: Mask | None) -> Tensor:
        """Scaled products, zero where hidden, `(batch, heads, queries, keys)`, float32 or wider."""
        precise = torch.promote_types(query.dtype, torch.float32)
        # Autocast would take the products back to 16 bits.
        with torch.autocast(query.device.type, enabled=False):
            found = (query.to(precise) * query.shape[-1] ** -0.5) @ key.to(precise).mT
        if mask is None:
            return found
        return found.masked_fill(~mask.dense(Shape.of(query, key)), 0.0)


def _asked(weights: Tensor, request: MapRequest) -> Tensor:
    picked = reduce_weights(pick_rows(weights, request), request.reduce).to(request.dtype)
    return picked.detach() if request.detach else picked


@dataclass
class _Shared:
    """Embeddings on their way from the first static layer to the others."""

    embedding: Tensor | None = None


@dataclass
class _Keep:
    shared: _Shared

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        memory = kwargs.get("memory")
        x = args[0] if args else kwargs["x"]
        self.shared.embedding = x if memory is None else memory


@dataclass
class _Bring:
    shared: _Shared

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del module
        if kwargs.get("memory") is not None:
            return args, kwargs
        if self.shared.embedding is None:
            raise ConfigError(
                "static_qk: a linked layer has no embeddings yet; run the whole model, or pass "
                "memory"
            )
        return args, {**kwargs, "memory": self.shared.embedding}


def link_static(model: nn.Module, first: str | None = None) -> list[RemovableHandle]:
    """Give the input of the first layer to every `static_qk` of a model that passes no memory on.

    Args:
        model: Holds `static_qk` mixers, called as `mixer(x, ...)` in module order.
        first: Name of the module whose first argument is the embeddings, `(batch, tokens, dim)`,
            for a model whose first layer is not `static_qk`; None takes the first `static_qk`.

    Returns:
        Handles; `remove()` of each undoes the link.

    Raises:
        ConfigError: The model has no `static_qk`.
    """
    found = [module for module in model.modules() if isinstance(module, StaticQueryKey)]
    if not found:
        raise ConfigError("link_static: the model has no static_qk mixer; build it with one")
    leader = found[0] if first is None else model.get_submodule(first)
    shared = _Shared()
    handles = [leader.register_forward_pre_hook(_Keep(shared), with_kwargs=True)]
    handles += [
        module.register_forward_pre_hook(_Bring(shared), with_kwargs=True)
        for module in found
        if module is not leader
    ]
    return handles
