"""`routing`: tokens attend inside the k-means clusters that they are closest to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend, HeadOutputs
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer, after_step
from manyhead_core.errors import ConfigError

# Added to a token's own score in the shared form: it sees itself only if there is nothing else.
OWN_POSITION = -5e4


class KMeans(nn.Module):
    """Cluster means on the unit sphere, which follow the tokens slowly.

    A training forward only collects sums of the tokens by cluster; `update` moves the means, once
    for each optimiser step. Sums are normalised there, so a forward that gradient checkpointing
    repeats does no harm.

    Args:
        num_heads: Heads.
        num_clusters: Clusters of a head.
        head_dim: Width of a head.
        decay: Share of the old means that an update keeps.
    """

    means: Tensor
    initted: Tensor
    sums: Tensor

    def __init__(self, num_heads: int, num_clusters: int, head_dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        zeros = torch.zeros(num_heads, num_clusters, head_dim)
        self.register_buffer("means", zeros)
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("sums", zeros.clone(), persistent=False)

    def forward(self, unit: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Closeness to all clusters, and the mean squared distance to the closest.

        Args:
            unit: Normalised tokens, `(batch, heads, tokens, head_dim)`.
            live: Boolean `(batch, tokens)`, the tokens that count.

        Returns:
            `(batch, heads, tokens, clusters)` without gradient, and a scalar.
        """
        if not self.initted:
            self._start(unit.detach(), live)
        means = self.means.to(unit.dtype)
        learning = self.training and torch.is_grad_enabled()
        with torch.no_grad():
            closeness = unit @ means.transpose(-2, -1)
            nearest = closeness.argmax(-1)
            if learning:
                self.sums += self._sum(unit, nearest, live)
        heads = torch.arange(means.shape[0], device=unit.device)[:, None]
        squares = ((unit - means[heads, nearest]) ** 2).mean(-1) * live[:, None]
        count = live.sum() * unit.shape[1]
        return closeness, squares.sum() / count.clamp(min=1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the means towards the tokens since the last update, those of all replicas."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.sums)
        new = self._normalised(self.sums, self.means)
        self.means.mul_(self.decay).add_(new, alpha=1 - self.decay)
        self.sums.zero_()

    @torch.no_grad()
    def _start(self, unit: Tensor, live: Tensor) -> None:
        """Ten rounds of k-means from random tokens; all replicas take the means of the first."""
        tokens = unit.transpose(0, 1).flatten(1, 2)
        # Dead tokens come last in the random order; with few tokens some start several clusters.
        order = torch.rand(live.shape, device=unit.device).flatten()
        picked = order.masked_fill(~live.flatten(), 2.0).argsort()
        place = torch.arange(self.means.shape[1], device=unit.device)
        picked = picked[place % live.sum().clamp(min=1)]
        means = tokens[:, picked]
        for _ in range(10):
            nearest = (tokens @ means.transpose(-2, -1)).argmax(-1)[None]
            means = self._normalised(self._sum(tokens[None], nearest, live.reshape(1, -1)), means)
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(means, 0)
        self.means.copy_(means)
        self.initted.fill_(True)

    def _sum(self, unit: Tensor, nearest: Tensor, live: Tensor) -> Tensor:
        """Sums of the tokens by cluster, `(heads, clusters, head_dim)`."""
        member = F.one_hot(nearest, self.means.shape[1]) * live[:, None, :, None]
        return (member.to(unit.dtype).transpose(-2, -1) @ unit).sum(0)

    @staticmethod
    def _normalised(sums: Tensor, means: Tensor) -> Tensor:
        """Directions of the sums; a cluster without tokens keeps its mean."""
        empty = (sums == 0).all(-1, keepdim=True)
        return torch.where(empty, means.to(sums.dtype), F.normalize(sums, dim=-1)).to(means.dtype)


class Routed(NamedTuple):
    """What attention inside clusters gives.

    Args:
        out: `(batch, heads, tokens, head_dim)`; zero for a token that no cluster took.
        taken: Number of clusters that took each token, `(batch, heads, tokens, 1)`.
        loss: Mean squared distance of queries and keys to their closest cluster.
    """

    out: Tensor
    taken: Tensor
    loss: Tensor


class RoutingAttention(TokenMixer):
    """Each cluster takes the queries and the keys closest to its mean, and attends among them.

    Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", TACL 2021
    (arXiv 2003.05997), section 4.1. A token's output is the mean over the clusters that took it.
    Call `update_means` after each optimiser step. The first forward starts the means.

    Causality leaks, with a causal mask and with `causal`: inside a cluster a token sees earlier
    ones only, but a cluster takes its tokens from the whole sequence, so membership looks ahead.
    Such a layer is no language model that can be trusted with its own future.

    Args:
        dim: Model width.
        num_heads: Heads.
        head_dim: Width of a head; None means `dim / num_heads`.
        num_clusters: Clusters of a head.
        window_size: Queries and keys that a cluster takes.
        causal: Hide later positions inside a cluster.
        shared_qk: Take the normalised queries as keys; a token does not see itself.
        num_mem_kv: Learned keys and values of each cluster; the causal form has at least one
            unless `shared_qk`.
        commitment: Weight of the loss that draws tokens to their means.
        decay: Share of the old means that an update keeps.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
    """

    name = "routing"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"1d", "set"}),
        mask="any",
        export=False,
        heads=True,
        leaky=frozenset({"CS"}),
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        num_clusters: int = 8,
        window_size: int = 128,
        causal: bool = False,
        shared_qk: bool = False,
        num_mem_kv: int = 0,
        commitment: float = 1e-4,
        decay: float = 0.999,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}; set head_dim")
        width = dim // num_heads if head_dim is None else head_dim
        self.num_heads, self.num_clusters, self.window_size = num_heads, num_clusters, window_size
        self.causal, self.shared_qk, self.commitment = causal, shared_qk, commitment
        self.kmeans = KMeans(num_heads, num_clusters, width, decay)
        # A query without an earlier key in its cluster needs something to look at.
        slots = max(num_mem_kv, int(causal and not shared_qk))
        self.mem_key = nn.Parameter(torch.randn(num_heads, num_clusters, slots, width))
        self.mem_value = nn.Parameter(torch.randn(num_heads, num_clusters, slots, width))
        self.qkv = nn.Linear(dim, (2 if shared_qk else 3) * num_heads * width, bias=qkv_bias)
        self.proj = nn.Linear(num_heads * width, dim)
        # Its calls have a head for each cluster.
        self.attend = Attend(attention_dropout, site=False)
        self.heads = HeadOutputs()
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Project, route, project."""
        parts = self.qkv(x).unflatten(-1, (-1, self.num_heads, self.kmeans.means.shape[-1]))
        parts = parts.permute(2, 0, 3, 1, 4).unbind(0)
        routed = self.route(parts[0], parts[-2], parts[-1], mask=mask)
        out = self.heads(routed.out, head_gate=head_gate)
        y = self.proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(y, {"commitment": self.commitment * routed.loss})

    def after_step(self) -> None:
        """Move the means."""
        self.kmeans.update()

    def route(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Mask | None = None
    ) -> Routed:
        """Attention inside clusters.

        Args:
            query: `(batch, heads, tokens, head_dim)`.
            key: Same shape; normalised here in the shared form.
            value: Same shape.
            mask: Which pairs may attend. Tokens hidden by `KeyPadding`, keys that nobody sees and
                queries that see nothing are taken by no cluster.
        """
        batch, heads, tokens, _ = query.shape
        dense, live_query, live_key = _visible(mask, query)
        loss, picks_query, picks_key = self._choose(query, key, live_query, live_key)
        if self.shared_qk:
            key = F.normalize(key, dim=-1)
        slots = self.mem_key.shape[2]
        keys, values = (
            torch.cat((memory.to(kept.dtype).expand(batch, -1, -1, -1, -1), kept), 3).flatten(1, 2)
            for memory, kept in (
                (self.mem_key, _take(key, picks_key)),
                (self.mem_value, _take(value, picks_key)),
            )
        )
        allowed, bias = self._pairs(picks_query, picks_key, dense, live_key, slots)
        queries = _take(query, picks_query).flatten(1, 2)
        out = self.attend(queries, keys, values, mask=allowed, bias=bias).out
        # Windows larger than the number of live queries are filled up with dead ones.
        counts = live_query[:, None].expand(batch, heads, tokens).gather(2, picks_query.flatten(2))
        weight = counts[..., None].to(out.dtype)
        out = out.unflatten(1, (heads, -1)).flatten(2, 3) * weight
        place = picks_query.flatten(2)[..., None]
        total = torch.zeros_like(query, dtype=out.dtype)
        total = total.scatter_add(2, place.expand_as(out), out)
        taken = total.new_zeros(batch, heads, tokens, 1).scatter_add(2, place, weight)
        return Routed(total / taken.clamp(min=1), taken, loss)

    def _choose(
        self, query: Tensor, key: Tensor, live_query: Tensor, live_key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss; the queries and the keys of each cluster, `(batch, heads, clusters, window)`."""
        # 16 bits would make ties among the candidates.
        with torch.autocast(query.device.type, enabled=False):
            dtype = torch.promote_types(query.dtype, torch.float32)
            if self.shared_qk:
                closeness, loss = self.kmeans(F.normalize(query.to(dtype), dim=-1), live_query)
                picks = self._closest(closeness, live_query)
                return loss, picks, picks
            both = F.normalize(torch.cat((query, key), 2).to(dtype), dim=-1)
            closeness, loss = self.kmeans(both, torch.cat((live_query, live_key), 1))
            of_query, of_key = closeness.chunk(2, 2)
        return loss, self._closest(of_query, live_query), self._closest(of_key, live_key)

    def _closest(self, closeness: Tensor, live: Tensor) -> Tensor:
        hidden = closeness.masked_fill(~live[:, None, :, None], float("-inf"))
        window = min(self.window_size, closeness.shape[2])
        return hidden.topk(window, dim=2).indices.transpose(2, 3)

    def _pairs(
        self, queries: Tensor, keys: Tensor, dense: Tensor | None, live_key: Tensor, slots: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Mask and bias in each cluster, `(batch, heads * clusters, window, slots + window)`."""
        batch, heads, clusters, _ = queries.shape
        here, there = queries[..., :, None], keys[..., None, :]
        allowed: Tensor | None = None
        if self.causal:
            allowed = here >= there
        if dense is not None:
            element = torch.arange(batch, device=queries.device)[:, None, None]
            seen = live_key[element, keys.flatten(2)].unflatten(2, (clusters, -1))[..., None, :]
            rows = torch.arange(batch, device=queries.device).view(-1, 1, 1, 1, 1)
            head = torch.arange(heads, device=queries.device).view(1, -1, 1, 1, 1)
            full = dense.expand(batch, heads, *(live_key.shape[1],) * 2)
            seen = seen & full[rows, head, here, there]
            allowed = seen if allowed is None else allowed & seen
        if allowed is not None:
            allowed = F.pad(allowed, (slots, 0), value=True).flatten(1, 2)
        if not self.shared_qk:
            return allowed, None
        own = F.pad(here == there, (slots, 0), value=False).flatten(1, 2)
        return allowed, own * OWN_POSITION


def update_means(model: nn.Module) -> None:
    """Move the cluster means of all routing layers, once after each optimiser step.

    It lets all other mixers do what they do after a step as well.
    """
    after_step(model)


def _visible(mask: Mask | None, query: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """The dense mask, and which tokens count as queries and as keys, `(batch, tokens)`."""
    batch, heads, tokens, _ = query.shape
    if mask is None:
        everything = torch.ones(batch, tokens, dtype=torch.bool, device=query.device)
        return None, everything, everything
    if isinstance(mask, KeyPadding):
        live = mask.keys(tokens)
        return mask.dense(Shape.of(query, query)), live, live
    dense = mask.dense(Shape.of(query, query)).expand(batch, heads, tokens, tokens)
    return dense, dense.any(-1).any(1), dense.any(-2).any(1)


def _take(tokens: Tensor, picks: Tensor) -> Tensor:
    """Tokens of each cluster, `(batch, heads, clusters, window, head_dim)`."""
    place = picks.flatten(2)[..., None].expand(-1, -1, -1, tokens.shape[-1])
    return tokens.gather(2, place).unflatten(2, picks.shape[2:])
