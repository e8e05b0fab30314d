"""`match`: windows at continuous places, BilinearSoftmax (MatchAttention, arXiv 2510.14260)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend, HeadOutputs
from manyhead_core.attention.maps import MapRequest, pick_rows, reduce_weights
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer, UnsupportedPattern
from manyhead_core.attention.mixers.grids import known_grid
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.errors import ConfigError

# What keeps a centre below the last one whose window fits, so that it has a cell of its own.
EDGE = 1e-3

Radius = int | tuple[int, int]


class Windows(NamedTuple):
    """The keys around each centre and how its four sub-windows share them.

    Args:
        place: Key of each place in the window, row-major, `(batch, queries, heads, window)`.
        inside: Places that lie on the map, same shape; None if all do.
        share: Weights of the sub-windows north-west, north-east, south-west, south-east,
            `(batch, queries, heads, 4)`; they sum to one.
        parts: Places of each sub-window, boolean `(4, window)`.
    """

    place: Tensor
    inside: Tensor | None
    share: Tensor
    parts: Tensor


class MatchOutput(NamedTuple):
    """What `match_attend` gives.

    Args:
        out: `(batch, queries, heads, value_dim)` in the dtype of the values.
        weights: Weights of the window, `(batch, queries, heads, window)`, float32 for inputs up
            to float32; each row sums to one.
        place: Key of each place in the window, same shape.
    """

    out: Tensor
    weights: Tensor
    place: Tensor


def match_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    *,
    grid: tuple[int, int],
    radius: Radius = 1,
    scale: float | None = None,
    attend: Attend | None = None,
) -> MatchOutput:
    """Attend to a window around any point of the map, continuous in that point.

    The point lies between four tokens, so the window of `2 r + 2` tokens a side holds four of
    `2 r + 1`. Each of them has a softmax of its own over the scores `-scale * |q - k|_1`, and they
    are mixed with the bilinear weights of the point. Centres are moved inward until the window
    fits. Along an axis that is no longer than `2 r + 1` the window is the whole axis.

    Args:
        query: `(batch, tokens, heads, head_dim)`.
        key: `(batch, tokens, heads, head_dim)`, on the same grid.
        value: `(batch, tokens, heads, value_dim)`.
        offsets: Centre of each query's window, column and row in tokens from the first one,
            `(batch, tokens, heads, 2)`.
        grid: Height and width of the map in tokens.
        radius: Tokens of a sub-window on either side of its middle, or those along the height and
            along the width.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        attend: Layer that takes the softmax, for dropout.

    Raises:
        ConfigError: Shapes do not fit together.
    """
    _check(query, key, value, offsets, grid)
    attend = Attend(scale=1.0, backend="eager") if attend is None else attend
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    windows = sample_windows(offsets, grid, radius)
    keys, values = (_gather(part, windows.place) for part in (key, value))
    precise = torch.promote_types(query.dtype, torch.float32)
    distance = (query.to(precise).unsqueeze(-2) - keys.to(precise)).abs().sum(-1)
    allowed = windows.parts
    if windows.inside is not None:
        allowed = allowed & windows.inside.flatten(0, 1).unsqueeze(-2)
    rows = distance.flatten(0, 1).unsqueeze(-2)
    # The score is no product: it goes in as the bias of queries and keys without channels.
    found = attend(
        rows.new_zeros(*rows.shape[:2], len(windows.parts), 0),
        rows.new_zeros(*rows.shape[:2], rows.shape[-1], 0),
        values.flatten(0, 1),
        mask=allowed,
        bias=-scale * rows,
        maps=MapRequest(dtype=precise, detach=False),
    )
    assert found.maps is not None  # noqa: S101 - asked for
    share = windows.share.to(precise).flatten(0, 1).unsqueeze(-1)
    # Autocast would take matrix products to 16 bits.
    out, weights = ((share * part).sum(-2) for part in (found.out, found.maps))
    size = query.shape[:2]
    out = out.to(value.dtype).unflatten(0, size)
    return MatchOutput(out, weights.unflatten(0, size), windows.place)


def sample_windows(offsets: Tensor, grid: tuple[int, int], radius: Radius) -> Windows:
    """The window of each centre.

    Args:
        offsets: Column and row of each centre, `(batch, queries, heads, 2)`.
        grid: Height and width of the map in tokens.
        radius: As in `match_attend`.
    """
    down, across = (radius, radius) if isinstance(radius, int) else radius
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    columns, dx, seen_columns = _axis(offsets[..., 0], grid[1], across)
    rows, dy, seen_rows = _axis(offsets[..., 1], grid[0], down)
    place = (rows[..., :, None] * grid[1] + columns[..., None, :]).flatten(-2)
    inside = None
    if min(grid[0] - 2 * down, grid[1] - 2 * across) < 2:
        inside = (seen_rows[..., :, None] & seen_columns[..., None, :]).flatten(-2)
    share = torch.stack(((1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy), -1)
    return Windows(place, inside, share, _sub_windows(down, across, offsets.device))


def relative_positions(x: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Split tokens into features and the positions that `match` keeps in the last channels.

    Args:
        x: `(batch, tokens, dim)`.
        num_heads: Heads; each has two channels at the end.

    Returns:
        Features `(batch, tokens, dim - 2 * num_heads)`, and how many columns and rows away from
        its token each head looks, `(batch, tokens, num_heads, 2)`.
    """
    width = x.shape[-1] - 2 * num_heads
    return x[..., :width], x[..., width:].unflatten(-1, (num_heads, 2))


class MatchAttention(TokenMixer):
    """Attention to a window that each head of each token moves over the map.

    The last two channels of each head are no features: they hold how many columns and rows away
    from the token its window lies. The mixer reads them, and its output holds their change, so a
    residual connection updates them from layer to layer; a norm before the mixer has to leave
    them out (`relative_positions` splits them off). Zeros look at the token's own place.

    With a context on the same grid, such as the other view of a stereo pair, the attended values
    are gated by `silu(gate(x))` and the weights of the window join them before the output
    projection.

    Args:
        dim: Model width, of which `2 * num_heads` channels are positions.
        num_heads: Heads.
        radius: Tokens of a sub-window on either side of its middle, or those along the height and
            along the width.
        scale: Factor of the L1 distance of query and key; None means `head_dim ** -0.5`.
        cross: Have the parameters that a context needs. False saves them where there is none.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.

    Raises:
        ConfigError: A number does not fit.
    """

    name = "match"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "NC"}),
        layouts=frozenset({"2d"}),
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        radius: Radius = 1,
        scale: float | None = None,
        cross: bool = True,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads or dim < 3 * num_heads:
            raise ConfigError(
                f"dim: {dim} is no multiple of num_heads={num_heads} with 3 channels or more for "
                "each head, 2 of them for positions"
            )
        sides = (radius, radius) if isinstance(radius, int) else tuple(radius)
        if len(sides) != 2 or min(sides) < 0:
            raise ConfigError(f"radius: needs one or two numbers from 0, got {radius}")
        self.num_heads = num_heads
        self.radius = (sides[0], sides[1])
        self.scale = scale
        self.cross = cross
        features = dim - 2 * num_heads
        window = (2 * sides[0] + 2) * (2 * sides[1] + 2)
        self.q = nn.Linear(features, features, bias=qkv_bias)
        self.kv = nn.Linear(features, 2 * features, bias=qkv_bias)
        # With one query a row no fused kernel gains anything.
        self.attend = Attend(attention_dropout, scale=1.0, backend="eager", site=False)
        self.heads = HeadOutputs()
        self.proj = nn.Linear(features, dim)
        start_linear(self.q, self.kv, self.proj)
        if cross:
            self.gate = nn.Linear(features, features)
            # The part of the output projection that the weights of the window meet.
            self.proj_window = nn.Linear(num_heads * window, dim, bias=False)
            start_linear(self.gate, self.proj_window)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """The centre of a window is the token's own place and what its last channels hold.

        `head_gate`, `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
        """
        if context is not None and not self.cross:
            raise UnsupportedPattern("match: cross=False has no gate; build it with cross=True")
        if context is not None and context.shape[1] != x.shape[1]:
            raise ConfigError(
                f"context: has {context.shape[1]} tokens, but match needs the grid of x with "
                f"{x.shape[1]}"
            )
        grid = known_grid(grid)
        features, relative = relative_positions(x, self.num_heads)
        source = features
        if context is not None:
            source, _ = relative_positions(context, self.num_heads)
        heads = (self.num_heads, -1)
        key, value = self.kv(source).unflatten(-1, (2, *heads)).unbind(2)
        found = match_attend(
            self.q(features).unflatten(-1, heads),
            key,
            value,
            own_places(grid, x.device)[:, None] + relative,
            grid=grid,
            radius=self.radius,
            scale=self.scale,
            attend=self.attend,
        )
        out = found.out.transpose(1, 2)
        out = self.heads(out, partial(window_maps, found), head_gate=head_gate)
        out = out.transpose(1, 2).flatten(2)
        if context is None:
            y = self.proj(out)
        else:
            weights = found.weights.flatten(2).to(out.dtype)
            y = self.proj(out * F.silu(self.gate(features))) + self.proj_window(weights)
        return MixerOutput(y, {}, None if maps is None else window_maps(found, maps))


def own_places(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Column and row of each token, `(tokens, 2)`."""
    rows = torch.arange(grid[0], device=device)[:, None].expand(grid)
    columns = torch.arange(grid[1], device=device).expand(grid)
    return torch.stack((columns, rows), -1).flatten(0, 1)


def window_maps(found: MatchOutput, request: MapRequest) -> Tensor:
    """Weights of windows as weights of all keys, in the form of the request."""
    weights, place = (pick_rows(x.transpose(1, 2), request) for x in (found.weights, found.place))
    if request.detach:
        weights = weights.detach()
    keys = found.place.shape[1]
    full = weights.new_zeros(*weights.shape[:3], keys).scatter_add(-1, place, weights)
    return reduce_weights(full, request.reduce).to(request.dtype)


def _axis(centre: Tensor, length: int, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places along one axis, the fraction of the centre, and which places lie on the map."""
    # A window longer than the axis starts at its first place.
    low = float(radius)
    centre = centre.clamp(low, max(length - 1 - low - EDGE, low))
    cell = centre.detach().floor()
    steps = torch.arange(-radius, radius + 2, device=centre.device)
    place = cell.long()[..., None] + steps
    return place.clamp(max=length - 1), centre - cell, place < length


def _sub_windows(down: int, across: int, device: torch.device) -> Tensor:
    """Places of the sub-windows in the window, `(4, window)`."""
    axes = []
    for radius in (down, across):
        step = torch.arange(2 * radius + 2, device=device)
        axes.append(torch.stack((step < 2 * radius + 1, step > 0)))
    pairs = axes[0][:, None, :, None] & axes[1][None, :, None, :]
    return pairs.flatten(2, 3).flatten(0, 1)


def _gather(tokens: Tensor, place: Tensor) -> Tensor:
    """`(batch, tokens, heads, dim)` at places, `(batch, queries, heads, window, dim)`."""
    batch, queries, heads, window = place.shape
    index = place.transpose(2, 3).reshape(batch, queries * window, heads, 1)
    found = tokens.gather(1, index.expand(-1, -1, -1, tokens.shape[-1]))
    return found.unflatten(1, (queries, window)).transpose(2, 3)


def _check(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, grid: tuple[int, int]
) -> None:
    if query.shape != key.shape or value.shape[:3] != key.shape[:3]:
        raise ConfigError(
            f"query, key, value: shapes {tuple(query.shape)}, {tuple(key.shape)} and "
            f"{tuple(value.shape)} are not on one grid"
        )
    if offsets.shape != (*query.shape[:3], 2):
        raise ConfigError(
            f"offsets: shape {tuple(offsets.shape)} is not (batch, tokens, heads, 2) of the "
            f"queries {tuple(query.shape)}"
        )
    if grid[0] * grid[1] != query.shape[1]:
        raise ConfigError(f"grid: {grid} does not hold {query.shape[1]} tokens")
