"""Attention in windows: blocks with halos, and a neighbourhood for every token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.masks import Causal, KeyPadding, Shape, Window2D
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.halo import BlockAttention, HaloAttention
from manyhead_core.attention.mixers.neighborhood import NeighborhoodAttention
from manyhead_core.errors import ConfigError

Grid = tuple[int, int]


def randomised(net: BlockAttention) -> BlockAttention:
    net = net.double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    return net


def halo(block: int, size: int, **options) -> BlockAttention:
    return randomised(HaloAttention(8, 2, block_size=block, halo_size=size, **options))


def around(window: int, **options) -> BlockAttention:
    return randomised(NeighborhoodAttention(8, 2, window_size=window, **options))


def tokens(height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(batch, height * width, 8, generator=generator, dtype=torch.float64)


def dense(net: BlockAttention, x: Tensor, grid: Grid, visible: Tensor, shift: int) -> Tensor:
    """Attention over the whole map; the table is read at `key - query + shift`."""
    query = net.queries(x).unflatten(-1, (2, -1)).transpose(1, 2)
    key, value = net.keys_values(x).unflatten(-1, (2, -1)).transpose(1, 2).split([4, 4], -1)
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2)
    offset = place[None] - place[:, None] + shift
    last = len(net.pos_embed.height_rel) - 1
    down, across = offset.clamp(0, last).unbind(-1)
    table = net.pos_embed.height_rel[down] + net.pos_embed.width_rel[across]
    bias = torch.einsum("bhid,ijd->bhij", query, table)
    if net.scale_pos:
        bias = bias / 2
    scores = (query @ key.mT / 2 + bias).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def block_windows(grid: Grid, block: int, size: int) -> Tensor:
    """Which keys the block of each query sees."""
    pairs = []
    for length in grid:
        place = torch.arange(length)
        low = place // block * block - size
        pairs.append(
            (place[None] >= low[:, None]) & (place[None] < low[:, None] + block + 2 * size)
        )
    seen = pairs[0][:, None, :, None] & pairs[1][None, :, None, :]
    return seen.reshape(grid[0] * grid[1], -1)


def window_loop(net: HaloAttention, x: Tensor, grid: Grid) -> Tensor:
    """Block by block with a zero key and value for each place outside the map."""
    block, size = net.block_size, net.halo_size
    window = block + 2 * size
    query, both = net.queries(x).unflatten(1, grid), net.keys_values(x).unflatten(1, grid)
    out = torch.zeros(len(x), *grid, 8, dtype=x.dtype)
    for sample in range(len(x)):
        for row in range(grid[0]):
            for column in range(grid[1]):
                top, left = row // block * block, column // block * block
                for head in range(2):
                    q = query[sample, row, column].view(2, -1)[head]
                    scores, values = [], []
                    for down in range(window):
                        for across in range(window):
                            y, z = top - size + down, left - size + across
                            inside = 0 <= y < grid[0] and 0 <= z < grid[1]
                            kv = both[sample, y, z].view(2, -1)[head] if inside else q.new_zeros(8)
                            rel = (
                                net.pos_embed.height_rel[down - (row - top) + window - 1]
                                + net.pos_embed.width_rel[across - (column - left) + window - 1]
                            )
                            scores.append(q @ kv[:4] / 2 + q @ rel)
                            values.append(kv[4:])
                    weights = torch.stack(scores).softmax(0)
                    out[sample, row, column, 4 * head : 4 * head + 4] = weights @ torch.stack(
                        values
                    )
    return out.flatten(1, 2)


@pytest.mark.parametrize("scale_pos", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 4)])
def test_one_block_over_the_map_is_full_attention(grid: Grid, scale_pos: bool) -> None:
    net = halo(4, 0, scale_pos=scale_pos)
    x = tokens(*grid)
    visible = torch.ones(len(x[0]), len(x[0]), dtype=torch.bool)
    torch.testing.assert_close(net(x, grid=grid).y, dense(net, x, grid, visible, 3))


def test_halo_over_the_map_is_full_attention() -> None:
    net = halo(2, 4)
    x = tokens(6, 5)
    visible = torch.ones(30, 30, dtype=torch.bool)
    # A key's place in the window is that in the map plus the halo.
    torch.testing.assert_close(net(x, grid=(6, 5)).y, dense(net, x, (6, 5), visible, 4 + 9))


@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    block=st.integers(1, 4),
    size=st.integers(0, 3),
)
def test_each_block_sees_itself_and_its_halo(
    height: int, width: int, block: int, size: int
) -> None:
    net = halo(block, size)
    x = tokens(height, width)
    visible = block_windows((height, width), block, size)
    expected = dense(net, x, (height, width), visible, 3 * size + block - 1)
    torch.testing.assert_close(net(x, grid=(height, width)).y, expected)


def test_shown_padding_is_a_key_of_zeros() -> None:
    net = halo(2, 1, mask_padding=False)
    assert isinstance(net, HaloAttention)
    x = tokens(4, 2, batch=1)
    torch.testing.assert_close(net(x, grid=(4, 2)).y, window_loop(net, x, (4, 2)))


def test_maps_of_any_size_need_no_further_parameters() -> None:
    net = halo(3, 1)
    for grid in ((1, 1), (5, 7), (9, 3)):
        assert net(tokens(*grid), grid=grid).y.shape == (2, grid[0] * grid[1], 8)
    assert {name: tuple(w.shape) for name, w in net.state_dict().items()} == {
        "q.weight": (8, 8, 1, 1),
        "kv.weight": (16, 8, 1, 1),
        "pos_embed.height_rel": (9, 4),
        "pos_embed.width_rel": (9, 4),
    }


def test_queries_may_be_narrower_than_values() -> None:
    net = halo(2, 1, head_dim=3)
    assert net.kv.weight.shape[0] == 2 * (3 + 4)
    assert net(tokens(4, 4), grid=(4, 4)).y.shape == (2, 16, 8)


def test_stride_leaves_out_queries_or_averages_outputs() -> None:
    x = tokens(6, 10)
    whole = halo(4, 1)(x, grid=(6, 10)).y.mT.unflatten(2, (6, 10))
    thin = halo(4, 1, stride=2)(x, grid=(6, 10)).y
    torch.testing.assert_close(thin, whole[:, :, ::2, ::2].flatten(2).mT)
    mean = halo(4, 1, stride=2, downsample="average")(x, grid=(6, 10)).y
    torch.testing.assert_close(mean, F.avg_pool2d(whole, 2).flatten(2).mT)


@pytest.mark.parametrize("boundary", ["shift", "clip"])
@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(1, 11),
    width=st.integers(1, 8),
    window=st.sampled_from([1, 3, 5]),
    scale_pos=st.booleans(),
)
def test_neighborhood_is_a_window_for_every_token(
    boundary: str, height: int, width: int, window: int, scale_pos: bool
) -> None:
    if boundary == "shift":
        height, width = max(height, window), max(width, window)
    grid = (height, width)
    net = around(window, boundary=boundary, scale_pos=scale_pos)
    x = tokens(*grid)
    count = height * width
    mask = Window2D(grid, window, boundary=boundary)
    visible = mask.dense(Shape(2, 2, count, count, x.device))
    if boundary == "shift":
        assert (visible.sum(-1) == window**2).all()
    expected = dense(net, x, grid, visible, window - 1)
    torch.testing.assert_close(net(x, grid=grid).y, expected)


def test_neighborhood_over_the_map_is_full_attention() -> None:
    net = around(5)
    x = tokens(5, 5)
    visible = torch.ones(25, 25, dtype=torch.bool)
    torch.testing.assert_close(net(x, grid=(5, 5)).y, dense(net, x, (5, 5), visible, 4))


def test_clipped_neighborhood_is_a_halo_around_blocks_of_one_token() -> None:
    near, blocks = around(3, boundary="clip"), halo(1, 1)
    state = blocks.state_dict()
    for name in ("pos_embed.height_rel", "pos_embed.width_rel"):
        state[name] = state[name].roll(-1, 0)
    near.load_state_dict(state)
    x = tokens(5, 7)
    torch.testing.assert_close(near(x, grid=(5, 7)).y, blocks(x, grid=(5, 7)).y)


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_neighborhood_stride_leaves_out_queries(stride: int) -> None:
    x = tokens(10, 13)
    whole = around(3)(x, grid=(10, 13)).y.unflatten(1, (10, 13))
    thin = around(3, stride=stride)(x, grid=(10, 13)).y
    torch.testing.assert_close(thin, whole[:, ::stride, ::stride].flatten(1, 2))


MIXERS = [halo(2, 1), halo(3, 2, mask_padding=False), around(3), around(5, boundary="clip")]


@pytest.mark.parametrize("net", MIXERS, ids=["halo", "shown", "shift", "clip"])
def test_masked_tokens_change_nothing(net: BlockAttention) -> None:
    x = tokens(5, 6)
    valid = torch.rand(2, 30, generator=torch.Generator().manual_seed(3)) > 0.4
    other = torch.where(valid[..., None], x, x * 30 + 7)
    before, after = (net(v, grid=(5, 6), mask=KeyPadding(valid)).y for v in (x, other))
    torch.testing.assert_close(before[valid], after[valid], rtol=0, atol=1e-9)


@pytest.mark.parametrize("net", [MIXERS[0], *MIXERS[2:]], ids=["halo", "shift", "clip"])
def test_fully_masked_sample_gives_zero(net: BlockAttention) -> None:
    x = tokens(5, 6).requires_grad_()
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[0] = False
    y = net(x, grid=(5, 6), mask=KeyPadding(valid)).y
    assert not y[0].any()
    gradients = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    assert not gradients[0][0].any()
    assert gradients[0][1].any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("net", MIXERS, ids=["halo", "shown", "shift", "clip"])
@pytest.mark.parametrize("grid", [(3, 3), (5, 7)])
def test_gradients_are_finite(net: BlockAttention, grid: Grid) -> None:
    x = tokens(*grid).requires_grad_()
    y = net(x, grid=grid).y
    gradients = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)


@pytest.mark.parametrize("net", [MIXERS[0], MIXERS[2]], ids=["halo", "neighborhood"])
def test_undeclared_patterns_are_refused(net: BlockAttention) -> None:
    x = tokens(4, 4)
    with pytest.raises(UnsupportedPattern, match=f"{net.name}: does not support causal self"):
        net(x, grid=(4, 4), mask=Causal())
    with pytest.raises(UnsupportedPattern, match="cross-attention"):
        net(x, x, grid=(4, 4))


def test_mistakes_are_named() -> None:
    x = tokens(4, 3)
    for kind, options, message in (
        (HaloAttention, {"block_size": 0}, "block_size"),
        (HaloAttention, {"block_size": 4, "stride": 3}, "stride: 3 does not divide block_size=4"),
        (HaloAttention, {"downsample": "max"}, "downsample: 'max' is unknown"),
        (NeighborhoodAttention, {"window_size": 4}, "window_size"),
        (NeighborhoodAttention, {"boundary": "wrap"}, "boundary: 'wrap' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            kind(8, 2, **options)
    with pytest.raises(ConfigError, match="exceeds the grid"):
        around(5)(x, grid=(4, 3))
    with pytest.raises(ConfigError, match="does not divide the grid"):
        halo(2, 1, stride=2)(x, grid=(4, 3))
