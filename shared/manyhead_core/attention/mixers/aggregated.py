"""`aggregated`: pixel-focused aggregated attention of Shi, CVPR 2024, arXiv 2311.17132."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from math import exp, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend, HeadOutputs
from manyhead_core.attention.maps import MapRequest, pick_rows, reduce_weights
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.shifts import shifts, start_linear
from manyhead_core.attention.relative_biases import position_table
from manyhead_core.errors import ConfigError

Size = tuple[int, int]

# softplus of it is 1 / 0.24.
TEMPERATURE = log(exp(1 / 0.24) - 1)


class _Cosine(TokenMixer):
    """What both forms share: cosine scores with a temperature, and the position bias.

    Args:
        dim: Model width.
        num_heads: Heads.
        pretrain_size: Height and width of the map that position differences are measured by.
        cpb_hidden: Hidden width of the position bias.
        dropout: Probability of dropping an entry of the output while training.
    """

    relative: Tensor
    place: Tensor

    def __init__(
        self, dim: int, num_heads: int, pretrain_size: Size, cpb_hidden: int, dropout: float
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        self.num_heads, self.pretrain_size = num_heads, pretrain_size
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), TEMPERATURE))
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, dim // num_heads))
        nn.init.trunc_normal_(self.query_embedding, std=0.02, a=-0.04, b=0.04)
        self.cpb_fc1 = nn.Linear(2, cpb_hidden)
        self.cpb_fc2 = nn.Linear(cpb_hidden, num_heads)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        start_linear(self.cpb_fc1, self.cpb_fc2, self.proj)

    def _heads(self, x: Tensor) -> Tensor:
        """`(batch, heads, tokens, head_dim)`, float32 or wider."""
        precise = torch.promote_types(x.dtype, torch.float32)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).to(precise)

    def _scaled(self, query: Tensor, log_keys: Tensor | float) -> Tensor:
        """Normalised queries with embedding, temperature and length scale (equations 7, 10)."""
        heat = F.softplus(self.temperature.to(query.dtype))
        return (query + self.query_embedding.to(query.dtype)) * heat * log_keys

    def _position_bias(self) -> Tensor:
        """Bias of each query and key, `(heads, queries, keys)` (equation 9)."""
        table = self.cpb_fc2(F.relu(self.cpb_fc1(self.relative.to(self.cpb_fc1.weight.dtype))))
        return table.mT[:, self.place]

    def _set_positions(self, size: Size, keys: Size) -> None:
        """Buffers of the position bias; each pair of differences is evaluated once."""
        device = self.temperature.device
        table, place = position_table(size, keys, self.pretrain_size)
        self.register_buffer("relative", table.to(device), persistent=False)
        self.register_buffer("place", place.to(device), persistent=False)

    def _grid_must_be(self, size: Size, grid: Size | None) -> None:
        if grid != size:
            raise ConfigError(
                f"{self.name}: built for a map of {size}, got {grid}; call resize({grid})"
            )


class AggregatedAttention(_Cosine):
    """Every token attends to a window around it and, in the same softmax, to a pooled map.

    On top of the softmax weights of the window come learned ones, a part of them dependent on the
    query (equation 8), so the weights of a query need not sum to one. Maps hold the final weights
    of the `window ** 2` offsets, row-major, and then of the pooled tokens.

    Args:
        dim: Model width.
        num_heads: Heads.
        size: Height and width of the map in tokens; `resize` changes it.
        window: Side of the window, odd.
        sr_ratio: The pooled map is smaller than the map by this factor.
        pool_size: Height and width of the pooled map instead.
        pretrain_size: Height and width of the map of the pre-training, by which position
            differences are measured; None means `size`.
        qkv_bias: Whether query, key and value projections have a bias.
        cpb_hidden: Hidden width of the continuous position bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "aggregated"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"2d"}),
        maps=True,
        heads=True,
        fixed_size=True,
    )
    outside: Tensor
    log_keys: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        size: Sequence[int],
        window: int = 3,
        sr_ratio: int = 8,
        pool_size: Sequence[int] | None = None,
        pretrain_size: Sequence[int] | None = None,
        qkv_bias: bool = True,
        cpb_hidden: int = 512,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        trained = _pair("pretrain_size", size if pretrain_size is None else pretrain_size)
        super().__init__(dim, num_heads, trained, cpb_hidden, dropout)
        if window < 1 or window % 2 == 0:
            raise ConfigError(f"window: {window} is not odd and positive")
        self.window, self.sr_ratio = window, sr_ratio
        self.given_pool = None if pool_size is None else _pair("pool_size", pool_size)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        taps, width = window**2, dim // num_heads
        self.relative_pos_bias_local = nn.Parameter(torch.empty(num_heads, taps))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, width, taps))
        self.learnable_bias = nn.Parameter(torch.zeros(num_heads, 1, taps))
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=4e-4, a=-8e-4, b=8e-4)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02, a=-0.04, b=0.04)
        start_linear(self.q, self.kv)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.heads = HeadOutputs()
        self.resize(size)

    def resize(self, size: Sequence[int]) -> None:
        """Work on maps of another size from now on; parameters stay.

        Args:
            size: Height and width in tokens.

        Raises:
            ConfigError: The pooled map would be empty.
        """
        self.size = _pair("size", size)
        ratio = self.sr_ratio
        self.pool_size = self.given_pool or (self.size[0] // ratio, self.size[1] // ratio)
        if min(self.pool_size) < 1:
            raise ConfigError(f"sr_ratio: {ratio} leaves nothing of a map of {self.size}")
        self._set_positions(self.size, self.pool_size)
        inside = torch.ones(self.size, device=self.temperature.device)
        inside = torch.stack(shifts(inside, (self.window, self.window)), -1).flatten(0, 1) > 0
        keys = inside.sum(-1, keepdim=True) + self.pool_size[0] * self.pool_size[1]
        self.register_buffer("outside", ~inside, persistent=False)
        self.register_buffer("log_keys", keys.float().log(), persistent=False)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Project, attend to window and pooled map, project."""
        self._grid_must_be(self.size, grid)
        query = F.normalize(self._heads(self.q(x)), dim=-1)
        near, pooled = self.kv(x), self.kv(self._pooled(x))
        bias = self._position_bias()
        with torch.autocast(x.device.type, enabled=False):
            out, weights = self._aggregate(query, near, pooled, bias)
        out = self.heads(out, partial(_maps, weights), head_gate=head_gate)
        y = self.proj(out.transpose(1, 2).flatten(2).to(x.dtype))
        found = None if maps is None else _maps(weights, maps)
        return MixerOutput(self.dropout(y), {}, found)

    def _pooled(self, x: Tensor) -> Tensor:
        """Tokens of the pooled map, `(batch, pooled, dim)`."""
        activated = F.gelu(self.sr(x.mT.unflatten(-1, self.size)))
        return self.norm(F.adaptive_avg_pool2d(activated, self.pool_size).flatten(2).mT)

    def _aggregate(
        self, query: Tensor, near: Tensor, pooled: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output of the heads, and the final weights before dropout."""
        key, value = (self._heads(part) for part in near.chunk(2, -1))
        pooled_key, pooled_value = (self._heads(part) for part in pooled.chunk(2, -1))
        scaled = self._scaled(query, self.log_keys.to(query.dtype))
        local = [(scaled * k).sum(-1) for k in self._neighbours(F.normalize(key, dim=-1))]
        place = self.relative_pos_bias_local.to(query.dtype)[:, None]
        scores = (torch.stack(local, -1) + place).masked_fill(self.outside, float("-inf"))
        far = scaled @ F.normalize(pooled_key, dim=-1).mT + bias.to(query.dtype)
        # A query always sees itself: no row is without a key.
        softmax = torch.cat([scores, far], -1).softmax(-1)
        extra = query @ self.learnable_tokens.to(query.dtype)
        extra = extra + self.learnable_bias.to(query.dtype)
        extra = F.pad(extra.masked_fill(self.outside, 0.0), (0, far.shape[-1]))
        weights = self.attention_dropout(softmax) + extra
        taps = self.window**2
        out = weights[..., taps:] @ pooled_value
        for tap, neighbour in enumerate(self._neighbours(value)):
            out = torch.addcmul(out, weights[..., tap, None], neighbour)
        return out, softmax + extra

    def _neighbours(self, x: Tensor) -> list[Tensor]:
        """For each offset of the window, `(batch, heads, tokens, head_dim)`."""
        image = x.mT.unflatten(-1, self.size)
        return [part.flatten(-2).mT for part in shifts(image, (self.window, self.window))]


class AggregatedFullAttention(_Cosine):
    """The form of the last stage: cosine attention over all tokens with the same position bias.

    Args:
        dim: Model width.
        num_heads: Heads.
        size: Height and width of the map in tokens; `resize` changes it.
        pretrain_size: As in `AggregatedAttention`.
        qkv_bias: Whether query, key and value projections have a bias.
        cpb_hidden: Hidden width of the continuous position bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "aggregated_full"
    capabilities = AggregatedAttention.capabilities

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        size: Sequence[int],
        pretrain_size: Sequence[int] | None = None,
        qkv_bias: bool = True,
        cpb_hidden: int = 512,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        trained = _pair("pretrain_size", size if pretrain_size is None else pretrain_size)
        super().__init__(dim, num_heads, trained, cpb_hidden, dropout)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        start_linear(self.qkv)
        self.attend = Attend(attention_dropout, scale=1.0)
        self.resize(size)

    def resize(self, size: Sequence[int]) -> None:
        """Work on maps of another size from now on; parameters stay.

        Args:
            size: Height and width in tokens.
        """
        self.size = _pair("size", size)
        self._set_positions(self.size, self.size)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Project, attend, project."""
        self._grid_must_be(self.size, grid)
        query, key, value = (self._heads(part) for part in self.qkv(x).chunk(3, -1))
        bias = self._position_bias()
        query = self._scaled(F.normalize(query, dim=-1), log(x.shape[1]))
        found = self.attend(
            query,
            F.normalize(key, dim=-1),
            value,
            bias=bias.to(query.dtype),
            maps=maps,
            head_gate=head_gate,
        )
        y = self.proj(found.out.transpose(1, 2).flatten(2).to(x.dtype))
        return MixerOutput(self.dropout(y), {}, found.maps)


def _maps(weights: Tensor, request: MapRequest) -> Tensor:
    if request.reduce == "entropy":
        raise ConfigError(
            "aggregated: weights can be negative and have no entropy; use another reduce"
        )
    with torch.no_grad() if request.detach else nullcontext():
        return reduce_weights(pick_rows(weights, request), request.reduce).to(request.dtype)


def _pair(name: str, size: Sequence[int]) -> Size:
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"{name}: {size} is not a height and a width")
    return size[0], size[1]
