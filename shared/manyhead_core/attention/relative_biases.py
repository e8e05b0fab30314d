"""Biases from the distance or offset of query and key, by a table or a small network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.bias_base import Bias, OneTensor, ScoreMod, steps
from manyhead_core.attention.mask_base import Shape, on
from manyhead_core.errors import ConfigError

Size = tuple[int, int]
Entry = Callable[[Tensor, Tensor], Tensor]

# A layer norm over fewer values is all but a sign.
MIN_WIDTH = 4


@dataclass(frozen=True, eq=False)
class RelPos1D(OneTensor):
    """A learned number for each distance of key and query along a sequence.

    The last query is on the last key: with `M` keys more than queries, query `i` and key `j` take
    entry `j - M - i + P` of a table of `2 P`.

    Args:
        values: The table, `(2 P, heads)`; heads may be 1.
        clamp: Whether farther pairs share the outermost entries; otherwise they are an error.

    Raises:
        ConfigError: From `dense` and `score_mod`: pairs are farther apart than the table reaches.
    """

    clamp: bool = False

    def dense(self, shape: Shape) -> Tensor:
        """`(heads, queries, keys)`."""
        table, reach = self._table(shape)
        entry = (steps(shape) + reach).clamp(0, 2 * reach - 1)
        return table[entry].movedim(-1, 0)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads the table at the distance."""
        table, reach = self._table(shape)
        shift, last = reach - (shape.keys - shape.queries), 2 * reach - 1

        def entry(q: Tensor, k: Tensor) -> Tensor:
            return (k - q + shift).clamp(0, last)

        return _reading(table, entry)

    def _table(self, shape: Shape) -> tuple[Tensor, int]:
        reach = self.values.shape[0] // 2
        farthest = max(shape.keys - 1, shape.queries)
        if farthest > reach and not self.clamp:
            raise ConfigError(
                f"bias: a table of {2 * reach} distances is short of {farthest} to either side for "
                f"{shape.queries} queries and {shape.keys} keys; enlarge it or set clamp=True"
            )
        return on(self.values, shape.device), reach


@dataclass(frozen=True, eq=False)
class RelPos2D(OneTensor):
    """A learned number for each offset of query and key on a grid of tokens, row-major.

    Offsets are coordinates of the query less those of the key; the table holds them row-major from
    `(1 - height, 1 - width)`.

    Args:
        values: The table, `((2 height - 1) (2 width - 1), heads)`; heads may be 1.
        grid: Height and width in tokens.

    Raises:
        ConfigError: The table is not that of the grid; from `dense` and `score_mod`, the scores are
            not those of the grid.
    """

    grid: tuple[int, int]

    def __post_init__(self) -> None:
        """Check the size of the table."""
        height, width = self.grid
        entries = (2 * height - 1) * (2 * width - 1)
        if self.values.shape[0] != entries:
            raise ConfigError(
                f"bias: the grid {self.grid} has {entries} offsets, the table "
                f"{self.values.shape[0]} rows; pass the table of that grid"
            )

    def dense(self, shape: Shape) -> Tensor:
        """`(heads, queries, keys)`."""
        self._check(shape)
        token = torch.arange(shape.queries, device=shape.device)
        entry = _offsets(self.grid)(token[:, None], token[None, :])
        return on(self.values, shape.device)[entry].movedim(-1, 0)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads the table at the offset."""
        self._check(shape)
        return _reading(on(self.values, shape.device), _offsets(self.grid))

    def _check(self, shape: Shape) -> None:
        tokens = self.grid[0] * self.grid[1]
        if shape.queries != tokens or shape.keys != tokens:
            raise ConfigError(
                f"bias: offsets on the grid {self.grid} are for {tokens} queries and keys, got "
                f"{shape.queries} and {shape.keys}; pass the grid of the tokens"
            )


@dataclass(frozen=True, eq=False)
class Lookup(OneTensor):
    """Any table that pairs of query and key share in.

    Args:
        values: The table, `(entries, heads)`; heads may be 1.
        place: Entry of each pair, `(queries, keys)`.
    """

    place: Tensor

    def dense(self, shape: Shape) -> Tensor:
        """`(heads, queries, keys)`."""
        return on(self.values, shape.device)[on(self.place, shape.device)].movedim(-1, 0)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads the entry, and the table at it."""
        place = on(self.place, shape.device)

        def entry(q: Tensor, k: Tensor) -> Tensor:
            return place[q, k]

        return _reading(on(self.values, shape.device), entry)


class MLPBias(nn.Module, Bias):
    """Dynamic position bias: a small network turns the offset of query and key into their bias.

    Wang et al., arXiv 2108.00154, section 3.3. Offsets are coordinates of the query less those of
    the key, in tokens, so that grids of any size need no further parameters.

    Args:
        width: Width of the network, 4 or more.
        num_heads: Heads, each with its own bias.
        grid: Height and width in tokens; None takes a square one.

    Raises:
        ConfigError: The network is too narrow; from `dense` and `score_mod`, the tokens are not
            those of the grid.
    """

    def __init__(self, width: int, num_heads: int, *, grid: Size | None = None) -> None:
        super().__init__()
        if width < MIN_WIDTH:
            raise ConfigError(f"width: must be {MIN_WIDTH} or more, got {width}")
        self.grid = grid
        self.pos_proj = nn.Linear(2, width)
        self.pos1 = _stage(width, width)
        self.pos2 = _stage(width, width)
        self.pos3 = _stage(width, num_heads)
        _start(*(layer for layer in self.modules() if isinstance(layer, nn.Linear)))

    def forward(self, grid: Size) -> RelPos2D:
        """The bias on a grid, its table computed once.

        Args:
            grid: Height and width in tokens.
        """
        weight = self.pos_proj.weight
        rows, columns = (
            torch.arange(1 - length, length, device=weight.device, dtype=weight.dtype)
            for length in grid
        )
        offsets = torch.cartesian_prod(rows, columns)
        return RelPos2D(self.pos3(self.pos2(self.pos1(self.pos_proj(offsets)))), grid)

    def dense(self, shape: Shape) -> Tensor:
        """`(heads, queries, keys)`."""
        return self(self._grid(shape)).dense(shape)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads a table of the network's outputs."""
        return self(self._grid(shape)).score_mod(shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters."""
        return tuple(self.parameters())

    def _grid(self, shape: Shape) -> Size:
        side = isqrt(shape.queries)
        if self.grid is None and side * side != shape.queries:
            raise ConfigError(
                f"bias: {shape.queries} queries are no square grid; pass grid=(height, width)"
            )
        return self.grid or (side, side)


class ContinuousBias(nn.Module, Bias):
    """Continuous position bias: a network of the log-scaled distance to keys of a pooled map.

    Shi, CVPR 2024, arXiv 2311.17132, equation 9. The coordinate of a pooled key is the mean of
    those it covers.

    Args:
        num_heads: Heads, each with its own bias.
        size: Height and width of the map of the queries.
        keys: Height and width of the map of the keys; None means `size`.
        pretrain_size: Height and width of the map of the pre-training, by which distances are
            measured; None means `size`.
        hidden: Width of the network.
    """

    relative: Tensor
    place: Tensor

    def __init__(
        self,
        num_heads: int,
        size: Size,
        *,
        keys: Size | None = None,
        pretrain_size: Size | None = None,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.cpb_fc1 = nn.Linear(2, hidden)
        self.cpb_fc2 = nn.Linear(hidden, num_heads)
        _start(self.cpb_fc1, self.cpb_fc2)
        relative, place = position_table(size, keys or size, pretrain_size or size)
        self.register_buffer("relative", relative, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(self) -> Lookup:
        """The bias, its table computed once."""
        offsets = self.relative.to(self.cpb_fc1.weight.dtype)
        return Lookup(self.cpb_fc2(F.relu(self.cpb_fc1(offsets))), self.place)

    def dense(self, shape: Shape) -> Tensor:
        """`(heads, queries, keys)`."""
        self._check(shape)
        return self().dense(shape)

    def score_mod(self, shape: Shape) -> ScoreMod:
        """Reads a table of the network's outputs."""
        self._check(shape)
        return self().score_mod(shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters."""
        return tuple(self.parameters())

    def _check(self, shape: Shape) -> None:
        if tuple(self.place.shape) != (shape.queries, shape.keys):
            raise ConfigError(
                f"bias: built for {tuple(self.place.shape)} queries and keys, got "
                f"{shape.queries} and {shape.keys}; build it for the maps in use"
            )


def position_table(size: Size, keys: Size, pretrain_size: Size) -> tuple[Tensor, Tensor]:
    """Differences of position that occur between tokens and pooled tokens, on a log scale.

    Args:
        size: Height and width of the map.
        keys: Height and width of the pooled map.
        pretrain_size: Map in whose extent differences are measured.

    Returns:
        Different pairs `(pairs, 2)`, and for each query and key the row of its pair
        `(tokens, pooled)`.
    """
    rows, columns = (_differences(*axis) for axis in zip(size, keys, pretrain_size, strict=True))
    shape = (size[0], size[1], keys[0], keys[1])
    pairs = torch.stack(
        [rows[:, None, :, None].expand(shape), columns[None, :, None, :].expand(shape)], -1
    )
    table, place = torch.unique(pairs.reshape(-1, 2), dim=0, return_inverse=True)
    return table, place.view(size[0] * size[1], keys[0] * keys[1])


def _differences(length: int, keys: int, pretrain_length: int) -> Tensor:
    """Of each query from each key along an axis, `sign log2(1 + 8 |d|) / log2(8)`."""
    # On the CPU whatever the default device is: the table is looked at.
    query = torch.arange(length, dtype=torch.float32, device="cpu")
    key = F.adaptive_avg_pool1d(query[None], keys)[0]
    distance = (query[:, None] - key) * 8 / max(pretrain_length - 1, 1)
    return distance.sign() * (1 + distance.abs()).log2() / 3


def _offsets(grid: Size) -> Entry:
    height, width = grid

    def entry(q: Tensor, k: Tensor) -> Tensor:
        rows = q // width - k // width + height - 1
        return rows * (2 * width - 1) + q % width - k % width + width - 1

    return entry


def _reading(table: Tensor, entry: Entry) -> ScoreMod:
    if table.shape[1] == 1:
        column = table[:, 0]

        def add_shared(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            return score + column[entry(q, k)].to(score.dtype)

        return add_shared

    def add(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return score + table[entry(q, k), h].to(score.dtype)

    return add


def _stage(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out))


def _start(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(layer.bias)
