"""`moh`: mixture-of-head attention of Jin et al., 2024, arXiv 2410.11842."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.masks import Causal, Mask, Shape
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError

Router = Literal["linear", "qnorm"]

# Spread of the router's weights when a trained plain layer is continued.
CONTINUE_STD = 1e-3


class Routing(NamedTuple):
    """Which heads each token uses.

    Args:
        gates: Factors of the heads, `(batch, tokens, heads)`, shared heads first.
        probabilities: Softmax over the heads that are not shared, `(batch, tokens, candidates)`.
        active: 1 for those that were chosen, else 0, same shape.
    """

    gates: Tensor
    probabilities: Tensor
    active: Tensor


class MixtureOfHeads(Attention):
    """Softmax attention in which every token picks the heads that count for it.

    The first heads are shared by all tokens; of the rest each token uses those that its router
    ranks highest (equations 5 to 8):

        p = softmax(wg x);  g_r = K m_r p_r / sum of the K largest p
        g_s = S softmax(wg_1 x);  a = 2 softmax(wg_0 x)
        y = W_o concat(a_1 g_s head_s, a_2 g_r head_r)

    In training `aux["balance"]` is the load-balance loss of equation 9, `R sum_r f_r P_r`, over
    the tokens that are no padding. The paper adds 0.01 of its mean over the layers, as
    `weighted_aux` does.

    Args:
        dim: Model width.
        num_heads: Heads.
        shared_heads: Heads that every token uses; None means half of them.
        routed_heads: Of the other heads, how many a token uses; None means a quarter of
            `num_heads`. It may be changed between steps, such as to lower it from all.
        router: `linear` learns its own weights. `qnorm` ranks heads by the length of their
            queries and switches them on or off without weighting, which continues a plain layer
            without new parameters.
        head_dim: Width of a head; None means `dim / num_heads`.
        num_key_heads: Heads of keys and values; None means `num_heads`.
        qkv_bias: Whether query, key and value projections have a bias.
        qk_norm: Normalise queries and keys of each head (layer norm) before the product.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: The numbers of heads do not fit together.
    """

    name = "moh"
    aux_weights: ClassVar[Mapping[str, float]] = {"balance": 0.01}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        shared_heads: int | None = None,
        routed_heads: int | None = None,
        router: Router = "linear",
        head_dim: int | None = None,
        num_key_heads: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            head_dim=head_dim,
            num_key_heads=num_key_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            attention_dropout=attention_dropout,
            dropout=dropout,
        )
        shared = num_heads // 2 if shared_heads is None else shared_heads
        candidates = num_heads - shared
        if routed_heads is None:
            routed_heads = min(candidates, max(1, num_heads // 4))
        _check_heads(num_heads, shared, routed_heads)
        if router not in ("linear", "qnorm"):
            raise ConfigError(f"router: {router!r} is unknown; use linear or qnorm")
        if router == "qnorm" and (qk_norm or candidates == 1):
            raise ConfigError(
                "router: qnorm compares query lengths of two or more routed heads, so it needs "
                f"qk_norm=False and shared_heads other than {num_heads - 1}"
            )
        self.shared_heads = shared
        self.routed_heads = routed_heads
        self.candidates = candidates
        self.router: Router = router
        self._build_router(dim)

    def _build_router(self, dim: int) -> None:
        if self.router == "qnorm":
            return
        if self.routed_heads:
            self.wg = _router(dim, self.candidates)
            if self.shared_heads:
                self.wg_0 = _router(dim, 2)
        # A softmax over one shared head is 1 whatever its weights are.
        if self.shared_heads > 1:
            self.wg_1 = _router(dim, self.shared_heads)

    def between(
        self,
        heads: Tensor,
        x: Tensor,
        context: Tensor | None,
        *,
        query: Tensor,
        mask: Mask | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Head outputs times the gates of their tokens, and in training the load-balance loss."""
        routing = self.route(x, query)
        out = heads * routing.gates.transpose(1, 2)[..., None].to(heads.dtype)
        if not self.training or not self.routed_heads:
            return out, {}
        allowed = None
        # Under plain causality every token sees itself, so all of them are real.
        if mask is not None and not (isinstance(mask, Causal) and context is None):
            keys = x.shape[1] if context is None else context.shape[1]
            batch, count, tokens, _ = query.shape
            allowed = mask.dense(Shape(batch, count, tokens, keys, query.device))
        return out, {"balance": load_balance(routing, real_tokens(allowed, context is None))}

    def route(self, x: Tensor, query: Tensor) -> Routing:
        """Gates of each token, in float32 at least.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            query: Their queries, `(batch, heads, tokens, head_dim)`.
        """
        # Rounding to 16 bits makes close candidates swap places.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            shared = self._shared_gates(x)
            if not self.routed_heads:
                none = shared[..., :0]
                return Routing(shared, none, none)
            logits = _precise(self.wg, x) if self.router == "linear" else self._norms(x, query)
            probabilities = logits.softmax(-1)
            chosen = logits.topk(self.routed_heads, -1).indices
            active = torch.zeros_like(logits).scatter(-1, chosen, 1.0)
            if self.router == "qnorm":
                routed = active
                if self.training:
                    # The value is that of the switch, the gradient that of the probability.
                    routed = active + probabilities - probabilities.detach()
            else:
                kept = active * probabilities
                share = kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).eps)
                routed = self.routed_heads * kept / share
                if self.shared_heads:
                    balance = 2 * _precise(self.wg_0, x).softmax(-1)
                    shared = balance[..., :1] * shared
                    routed = balance[..., 1:] * routed
            return Routing(torch.cat([shared, routed], -1), probabilities, active)

    def _shared_gates(self, x: Tensor) -> Tensor:
        if self.router == "linear" and self.shared_heads > 1:
            return self.shared_heads * _precise(self.wg_1, x).softmax(-1)
        return x.new_ones(*x.shape[:2], self.shared_heads)

    def _norms(self, x: Tensor, query: Tensor) -> Tensor:
        """Lengths of the routed queries in units of their deviation over the heads."""
        if query.dtype != x.dtype:
            width = self.widths[0]
            bias = None if self.qkv.bias is None else self.qkv.bias[:width].to(x.dtype)
            query = F.linear(x, self.qkv.weight[:width].to(x.dtype), bias)
            query = query.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        norms = torch.linalg.vector_norm(query[:, self.shared_heads :], dim=-1).transpose(1, 2)
        deviation = norms.std(-1, keepdim=True)
        return norms / deviation.clamp_min(torch.finfo(norms.dtype).eps)

    def load_foreign(
        self, state: Mapping[str, Tensor], style: Literal["timm", "multihead_attention"]
    ) -> None:
        """Continue from a plain layer of another library.

        The routers start without a preference, so with all heads active the layer computes what
        it did before; lower `routed_heads` from there.

        Args:
            state: Its tensors by name.
            style: As in `Attention.load_foreign`.

        Raises:
            WeightsError: Names are missing or left over.
        """
        routers = {n: torch.zeros_like(p) for n, p in self.state_dict().items() if n[:2] == "wg"}
        if "wg.weight" in routers:
            routers["wg.weight"].normal_(std=CONTINUE_STD)
        super().load_foreign({**state, **routers}, style)


def load_balance(routing: Routing, real: Tensor | None) -> Tensor:
    """Load-balance loss `R sum_r f_r P_r`, which is the number of active heads when all are even.

    Args:
        routing: What `MixtureOfHeads.route` gives.
        real: Tokens to count, boolean `(batch, tokens)`; None counts all.
    """
    probabilities, active = routing.probabilities, routing.active
    if real is None:
        load, share = active.mean((0, 1)), probabilities.mean((0, 1))
    else:
        weight = real.expand(active.shape[:2]).to(active.dtype)[..., None]
        count = weight.sum().clamp_min(1.0)
        load = (active * weight).sum((0, 1)) / count
        share = (probabilities * weight).sum((0, 1)) / count
    return active.shape[-1] * (load * share).sum()


def real_tokens(allowed: Tensor | None, own_keys: bool) -> Tensor | None:
    """Tokens that take part: they see a key and, among themselves, are seen by a query.

    Args:
        allowed: Broadcastable to `(batch, heads, queries, keys)`.
        own_keys: Whether the tokens are the keys, too.

    Returns:
        Boolean, broadcastable to `(batch, tokens)`, or None for all.
    """
    if allowed is None:
        return None
    allowed = allowed[(None,) * (4 - allowed.dim())].any(1)
    sees = allowed.any(-1)
    return sees & allowed.any(-2) if own_keys else sees


def _router(dim: int, rows: int) -> nn.Linear:
    layer = nn.Linear(dim, rows, bias=False)
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    return layer


def _precise(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the dtype of `x`, whatever that of its weights is."""
    return F.linear(x, layer.weight.to(x.dtype))


def _check_heads(num_heads: int, shared: int, routed: int) -> None:
    if not 0 <= shared <= num_heads:
        raise ConfigError(f"shared_heads: {shared} is not between 0 and num_heads={num_heads}")
    candidates = num_heads - shared
    if not min(candidates, 1) <= routed <= candidates:
        raise ConfigError(
            f"routed_heads: {routed} of {candidates} heads that are not shared; choose at least "
            "1, at most all, and 0 only with shared_heads equal to num_heads"
        )
