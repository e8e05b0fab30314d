"""`bra`: bi-level routing attention of BiFormer (Zhu et al., CVPR 2023, arXiv 2303.08810)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.grids import known_grid
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.errors import ConfigError

KeyPooling = Literal["identity", "ada_avgpool", "avgpool", "maxpool"]
ALL_REGIONS = -2


class Routing(NamedTuple):
    """Which regions serve which.

    Args:
        regions: Regions that each region attends to, best first, int64 `(batch, regions, topk)`;
            regions are numbered row-major.
        weight: Softmax of their affinities, `(batch, regions, topk)`.
    """

    regions: Tensor
    weight: Tensor


class BiLevelRoutingAttention(TokenMixer):
    """Attention in which each region of the map sees the few regions that suit it best.

    The affinity of two regions is the product of their mean query and mean key (eq. 3 and 4 of the
    paper); every token then attends to all tokens of the `topk` best regions (eq. 6 and 7). A
    depth-wise convolution of the values (LePE) adds local position.

    Args:
        dim: Model width.
        num_heads: Heads.
        num_windows: Regions along each side of the map.
        topk: Regions that a region attends to; -2 attends to all, without routing.
        qk_dim: Width of queries and keys over all heads; None means `dim`.
        scale: Factor of the scores and affinities; None means `qk_dim ** -0.5`, not that of one
            head.
        lepe_kernel: Side of the depth-wise convolution, odd.
        kv_downsample: How keys and values of a region are pooled before attention: `ada_avgpool`
            to `kv_size` by `kv_size` tokens, `avgpool` and `maxpool` by a factor of `kv_size`.
        kv_size: Size or factor of `kv_downsample`.
        auto_pad: Pad maps that `num_windows` does not divide with zeros at the bottom and right.
        mask_padding: Hide the padding from keys, region means and the convolution. False treats
            it as tokens, as published weights expect.
        soft_routing: Multiply gathered keys and values by the softmax of their affinities.
        routing_gradient: With `soft_routing`, train the affinities.
        attention_dropout: Probability of dropping a weight while training.
    """

    name = "bra"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"2d"}),
        mask="keys",
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_windows: int = 7,
        topk: int = 4,
        qk_dim: int | None = None,
        scale: float | None = None,
        lepe_kernel: int = 5,
        kv_downsample: KeyPooling = "identity",
        kv_size: int = 4,
        auto_pad: bool = True,
        mask_padding: bool = True,
        soft_routing: bool = False,
        routing_gradient: bool = False,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        _check_options(dim, num_heads, num_windows, topk, qk_dim, lepe_kernel)
        _check_routing(topk, kv_downsample, kv_size, soft_routing, routing_gradient)
        self.num_heads = num_heads
        self.num_windows = num_windows
        self.topk = topk
        self.qk_dim = qk_dim
        self.scale = qk_dim**-0.5 if scale is None else scale
        self.auto_pad = auto_pad
        self.mask_padding = mask_padding
        self.soft_routing = soft_routing
        self.routing_gradient = routing_gradient
        self.qkv = Projection(dim, qk_dim)
        self.pool = RegionPool(kv_downsample, kv_size)
        self.lepe = nn.Conv2d(dim, dim, lepe_kernel, padding=lepe_kernel // 2, groups=dim)
        self.attend = Attend(attention_dropout, scale=self.scale)
        self.wo = nn.Linear(dim, dim)
        start_linear(self.wo)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """The steps of the class docstring."""
        height, width = grid = known_grid(grid)
        picture, valid = self._padded(x, grid, mask)
        query, key, value = self.qkv(picture)
        seen = value if valid is None else value * valid.unsqueeze(-1)
        local = self.lepe(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.topk == ALL_REGIONS:
            out = self._full(query, key, value, valid, head_gate)
        else:
            out = self._routed(picture, query, key, value, valid, head_gate)
        y = self.wo((out + local)[:, :height, :width])
        return MixerOutput(y.flatten(1, 2), {})

    def routing(
        self, x: Tensor, grid: tuple[int, int], *, mask: KeyPadding | None = None
    ) -> Routing:
        """Routes that the layer takes for these tokens.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            grid: Height and width in tokens.
            mask: Which tokens are real.
        """
        if self.topk == ALL_REGIONS:
            raise ConfigError(f"topk: {ALL_REGIONS} attends to all regions and routes nothing")
        return self._route(*self._padded(x, grid, mask))

    def _padded(
        self, x: Tensor, grid: tuple[int, int], mask: Mask | None
    ) -> tuple[Tensor, Tensor | None]:
        """Map `(batch, height, width, dim)` in whole regions and its real tokens, None for all."""
        picture = x.unflatten(1, grid)
        valid = None
        if isinstance(mask, KeyPadding):
            valid = mask.keys(x.shape[1]).unflatten(1, grid)
        if self.topk == ALL_REGIONS:
            return picture, valid
        down, right = (-length % self.num_windows for length in grid)
        if down == 0 and right == 0:
            return picture, valid
        if not self.auto_pad:
            raise ConfigError(
                f"num_windows: {self.num_windows} does not divide the grid {grid}; "
                "set auto_pad=True"
            )
        if valid is None and self.mask_padding:
            valid = x.new_ones(picture.shape[:3], dtype=torch.bool)
        if valid is not None:
            valid = F.pad(valid, (0, right, 0, down), value=not self.mask_padding)
        return F.pad(picture, (0, 0, 0, right, 0, down)), valid

    def _route(self, picture: Tensor, valid: Tensor | None) -> Routing:
        # The mean of a projection is the projection of the mean. It is taken in float32 whatever
        # the layer runs in: rounding to 16 bits would change which regions are chosen.
        precise = torch.promote_types(picture.dtype, torch.float32)
        with (
            torch.set_grad_enabled(self.routing_gradient and torch.is_grad_enabled()),
            torch.autocast(picture.device.type, enabled=False),
        ):
            regions = split_regions(picture.to(precise), self.num_windows)
            if valid is None:
                mean, empty = regions.mean(2), None
            else:
                real = split_regions(valid.unsqueeze(-1), self.num_windows)
                count = real.sum(2)
                mean = (regions * real).sum(2) / count.clamp(min=1)
                empty = (count == 0).transpose(1, 2)
            query, key = self.qkv.routing(mean, self.qk_dim)
            logits = (query * self.scale) @ key.transpose(1, 2)
            if empty is not None:
                # Finite, so that a map without any real token still has a softmax.
                logits = logits.masked_fill(empty, torch.finfo(precise).min)
            best, index = logits.topk(self.topk, -1)
            return Routing(index, best.softmax(-1))

    def _routed(
        self,
        picture: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid: Tensor | None,
        head_gate: Tensor | None,
    ) -> Tensor:
        batch, height, width, _ = picture.shape
        index, weight = self._route(picture, valid)
        sides = self.num_windows
        keys, real = self.pool(key, valid, sides)
        values, _ = self.pool(value, valid, sides)
        sample = torch.arange(batch, device=index.device)[:, None, None]
        keys, values = keys[sample, index], values[sample, index]
        if self.soft_routing:
            factor = weight[..., None, None].to(keys.dtype)
            keys, values = keys * factor, values * factor
        allowed = None if real is None else real[sample, index].flatten(2).flatten(0, 1)
        found = self.attend(
            self._heads(split_regions(query, sides).flatten(0, 1)),
            self._heads(keys.flatten(2, 3).flatten(0, 1)),
            self._heads(values.flatten(2, 3).flatten(0, 1)),
            mask=None if allowed is None else allowed[:, None, None],
            head_gate=head_gate,
        )
        out = found.out.transpose(1, 2).flatten(2)
        return join_regions(out.unflatten(0, (batch, sides**2)), sides, (height, width))

    def _full(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid: Tensor | None,
        head_gate: Tensor | None,
    ) -> Tensor:
        query, keys, values = (self._heads(part.flatten(1, 2)) for part in (query, key, value))
        allowed = None if valid is None else valid.flatten(1)[:, None, None]
        out = self.attend(query, keys, values, mask=allowed, head_gate=head_gate).out
        return out.transpose(1, 2).flatten(2).unflatten(1, value.shape[1:3])

    def _heads(self, tokens: Tensor) -> Tensor:
        """`(groups, tokens, width)` as `(groups, heads, tokens, head_dim)`."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Projection(nn.Module):
    """Queries, keys and values in one linear layer.

    Args:
        dim: Model width, and width of the values.
        qk_dim: Width of queries and keys.
    """

    def __init__(self, dim: int, qk_dim: int) -> None:
        super().__init__()
        self.widths = [qk_dim, qk_dim, dim]
        self.qkv = nn.Linear(dim, sum(self.widths))
        start_linear(self.qkv)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        query, key, value = self.qkv(x).split(self.widths, -1)
        return query, key, value

    def routing(self, x: Tensor, qk_dim: int) -> tuple[Tensor, Tensor]:
        """Queries and keys in the precision of `x`."""
        weight, bias = (part[: 2 * qk_dim].to(x.dtype) for part in (self.qkv.weight, self.qkv.bias))
        query, key = F.linear(x, weight, bias).split(qk_dim, -1)
        return query, key


class RegionPool(nn.Module):
    """Keys or values of each region, pooled or as they are; hidden tokens are left out.

    Args:
        kind: How they are pooled.
        size: Side of the pooled region, or factor of the pooling.
    """

    def __init__(self, kind: KeyPooling, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.size = size

    def forward(
        self, picture: Tensor, valid: Tensor | None, sides: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens `(batch, regions, tokens, width)` and which are real, `(batch, regions, tokens)`.

        Args:
            picture: `(batch, height, width, width of a token)`.
            valid: Real tokens, `(batch, height, width)`; None means all.
            sides: Regions along each side.
        """
        if self.kind == "identity":
            real = None if valid is None else split_regions(valid.unsqueeze(-1), sides).squeeze(-1)
            return split_regions(picture, sides), real
        stacked = _stack(picture, sides)
        if valid is None:
            return self._unstack(self._pool(stacked), picture.shape[0]), None
        real = _stack(valid.unsqueeze(-1), sides)
        if self.kind == "maxpool":
            floor = torch.finfo(stacked.dtype).min
            pooled = self._pool(stacked.masked_fill(~real, floor))
            share = self._pool(real.to(stacked.dtype))
            pooled = pooled.masked_fill(share == 0, 0.0)
        else:
            share = self._pool(real.to(stacked.dtype))
            pooled = self._pool(stacked * real) / share.masked_fill(share == 0, 1.0)
        batch = picture.shape[0]
        return self._unstack(pooled, batch), self._unstack(share > 0, batch).squeeze(-1)

    def _pool(self, stacked: Tensor) -> Tensor:
        if self.kind == "ada_avgpool":
            return F.adaptive_avg_pool2d(stacked, self.size)
        pool = F.max_pool2d if self.kind == "maxpool" else F.avg_pool2d
        return pool(stacked, self.size)

    @staticmethod
    def _unstack(pooled: Tensor, batch: int) -> Tensor:
        return pooled.flatten(2).transpose(1, 2).unflatten(0, (batch, -1))

    def extra_repr(self) -> str:
        """Settings for `print(model)`."""
        return f"kind={self.kind!r}, size={self.size}"


def split_regions(picture: Tensor, sides: int) -> Tensor:
    """`(batch, height, width, dim)` as `(batch, regions, tokens, dim)`, both row-major."""
    batch, height, width, dim = picture.shape
    rows, columns = height // sides, width // sides
    split = picture.reshape(batch, sides, rows, sides, columns, dim).transpose(2, 3)
    return split.reshape(batch, sides * sides, rows * columns, dim)


def join_regions(regions: Tensor, sides: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `split_regions`."""
    batch, dim = regions.shape[0], regions.shape[-1]
    rows, columns = grid[0] // sides, grid[1] // sides
    split = regions.reshape(batch, sides, sides, rows, columns, dim).transpose(2, 3)
    return split.reshape(batch, *grid, dim)


def _stack(picture: Tensor, sides: int) -> Tensor:
    """Regions in the batch, channels first: `(batch * regions, dim, rows, columns)`."""
    rows, columns = picture.shape[1] // sides, picture.shape[2] // sides
    regions = split_regions(picture, sides).flatten(0, 1)
    return regions.transpose(1, 2).unflatten(2, (rows, columns))


def _check_options(
    dim: int, num_heads: int, num_windows: int, topk: int, qk_dim: int, lepe_kernel: int
) -> None:
    for option, width in (("dim", dim), ("qk_dim", qk_dim)):
        if width % num_heads:
            raise ConfigError(f"{option}: {width} is no multiple of num_heads={num_heads}")
    if num_windows < 1:
        raise ConfigError(f"num_windows: must be 1 or more, got {num_windows}")
    if topk != ALL_REGIONS and not 1 <= topk <= num_windows**2:
        raise ConfigError(
            f"topk: {topk} of {num_windows**2} regions; use 1 to {num_windows**2}, "
            f"or {ALL_REGIONS} for all"
        )
    if lepe_kernel < 1 or lepe_kernel % 2 == 0:
        raise ConfigError(f"lepe_kernel: must be odd, got {lepe_kernel}")


def _check_routing(topk: int, pooling: str, size: int, soft: bool, gradient: bool) -> None:
    if pooling not in ("identity", "ada_avgpool", "avgpool", "maxpool"):
        raise ConfigError(
            f"kv_downsample: {pooling!r} is unknown; use identity, ada_avgpool, avgpool or maxpool"
        )
    if size < 1:
        raise ConfigError(f"kv_size: must be 1 or more, got {size}")
    if topk == ALL_REGIONS and (pooling != "identity" or soft):
        raise ConfigError(f"topk: {ALL_REGIONS} has no regions to pool or weight")
    if gradient and not soft:
        raise ConfigError("routing_gradient: only the weights of soft_routing=True have one")
