"""Long and short distance attention: groups, position network, padding; cross-scale embedding."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manyhead_core.attention.masks import Causal, KeyPadding, Shape
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.cel import CrossScaleEmbedding
from manyhead_core.attention.mixers.lsda import (
    LongShortAttention,
    LongShortBlock,
)
from manyhead_core.attention.relative_biases import MLPBias
from manyhead_core.errors import ConfigError


def randomised(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5)
    return net.eval()


def layer(dim: int = 8, num_heads: int = 2, **options) -> LongShortAttention:
    """A layer in float64 with weights large enough for clear differences."""
    torch.manual_seed(0)
    net = randomised(LongShortAttention(dim, num_heads, **options).double())
    assert isinstance(net, LongShortAttention)
    return net


def tokens(height: int, width: int, dim: int = 8, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(batch, height * width, dim, generator=generator, dtype=torch.float64)


def by_group(
    net: LongShortAttention, x: Tensor, grid: tuple[int, int], size: int, step: int
) -> Tensor:
    """Dense attention with the rule of the paper: same group, bias from the offset in steps."""
    height, width = grid
    top, left = (
        (-length % (size * step)) // 2 if net.pad_type else 0 for length in (height, width)
    )
    places = [(y + top, x + left) for y in range(height) for x in range(width)]
    offsets = torch.zeros(len(places), len(places), 2, dtype=x.dtype)
    same = torch.zeros(len(places), len(places), dtype=torch.bool)
    for i, (y1, x1) in enumerate(places):
        for j, (y2, x2) in enumerate(places):
            same[i, j] = all(
                a // (size * step) == b // (size * step) and a % step == b % step
                for a, b in ((y1, y2), (x1, x2))
            )
            offsets[i, j] = torch.tensor([(y1 - y2) // step, (x1 - x2) // step])
    pos = net.pos
    bias = pos.pos3(pos.pos2(pos.pos1(pos.pos_proj(offsets)))).permute(2, 0, 1)
    query, key, value = net.qkv(x).unflatten(-1, (3, net.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    weights = scores.masked_fill(~same, float("-inf")).softmax(-1)
    return net.proj((weights @ value).transpose(1, 2).flatten(2))


@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    size=st.integers(1, 3),
    step=st.integers(1, 3),
    pad_type=st.sampled_from([0, 1]),
)
def test_long_groups_are_lattices(
    height: int, width: int, size: int, step: int, pad_type: int
) -> None:
    net = layer(group_size=size, mode="long", interval=step, pad_type=pad_type)
    x = tokens(height, width)
    expected = by_group(net, x, (height, width), size, step)
    torch.testing.assert_close(net(x, grid=(height, width)).y, expected)


@pytest.mark.parametrize("pad_type", [0, 1])
def test_short_groups_are_blocks(pad_type: int) -> None:
    net = layer(group_size=3, mode="short", interval=5, pad_type=pad_type)
    x = tokens(7, 5)
    torch.testing.assert_close(net(x, grid=(7, 5)).y, by_group(net, x, (7, 5), 3, 1))


def test_long_with_interval_one_is_short() -> None:
    long, short = (layer(group_size=2, mode=m, interval=1) for m in ("long", "short"))
    x = tokens(5, 6)
    assert torch.equal(long(x, grid=(5, 6)).y, short(x, grid=(5, 6)).y)


@pytest.mark.parametrize("mode", ["short", "long"])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_group_as_large_as_the_map_is_full_attention_with_bias(mode: str, size: int) -> None:
    net = layer(group_size=6, mode=mode, interval=3)
    x = tokens(size, size)
    expected = by_group(net, x, (size, size), size, 1)
    torch.testing.assert_close(net(x, grid=(size, size)).y, expected)


def test_narrow_map_has_short_groups_of_its_shorter_side() -> None:
    net = layer(group_size=4, mode="long", interval=2)
    x = tokens(3, 8)
    torch.testing.assert_close(net(x, grid=(3, 8)).y, by_group(net, x, (3, 8), 3, 1))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_bias_is_a_lookup_of_the_outputs_of_the_network(size: int) -> None:
    torch.manual_seed(0)
    pos = MLPBias(4, 3).double()
    randomised(pos)
    found = pos((size, size))
    shape = Shape(1, 3, size**2, size**2, torch.device("cpu"))
    bias, (table,) = found.dense(shape), found.tensors()
    assert table.shape == ((2 * size - 1) ** 2, 3)
    for query in range(size**2):
        for key in range(size**2):
            down, across = query // size - key // size, query % size - key % size
            row = (down + size - 1) * (2 * size - 1) + across + size - 1
            offset = torch.tensor([down, across], dtype=torch.float64)
            alone = pos.pos3(pos.pos2(pos.pos1(pos.pos_proj(offset))))
            torch.testing.assert_close(bias[:, query, key], alone)
            torch.testing.assert_close(table[row], alone)


def test_maps_of_any_size_need_no_further_parameters() -> None:
    net = layer(group_size=3, mode="long", interval=2)
    before = set(net.state_dict())
    for grid in ((1, 1), (4, 9), (13, 5)):
        assert net(tokens(*grid), grid=grid).y.shape == (2, grid[0] * grid[1], 8)
    assert set(net.state_dict()) == before


@pytest.mark.parametrize("mode", ["short", "long"])
@pytest.mark.parametrize("grid", [(4, 4), (5, 7)])
def test_masked_tokens_change_nothing(mode: str, grid: tuple[int, int]) -> None:
    net = layer(group_size=2, mode=mode, interval=2, pad_type=1)
    x = tokens(*grid)
    valid = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(3)) > 0.4
    other = torch.where(valid[..., None], x, x * 30 + 7)
    before, after = (net(v, grid=grid, mask=KeyPadding(valid)).y for v in (x, other))
    torch.testing.assert_close(before[valid], after[valid], rtol=0, atol=1e-9)


def test_masked_rows_are_as_good_as_padding() -> None:
    net = layer(group_size=4)
    x = tokens(5, 6)
    wide = nn.functional.pad(x.unflatten(1, (5, 6)), (0, 0, 0, 2, 0, 3), value=9.0)
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[:, :5, :6] = True
    y = net(wide.flatten(1, 2), grid=(8, 8), mask=KeyPadding(valid.flatten(1))).y
    shown = y.unflatten(1, (8, 8))[:, :5, :6].flatten(1, 2)
    torch.testing.assert_close(shown, net(x, grid=(5, 6)).y)


def test_fully_masked_sample_attends_to_nothing() -> None:
    net = layer(group_size=2, mode="long", interval=2)
    x = tokens(5, 6).requires_grad_()
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[0] = False
    y = net(x, grid=(5, 6), mask=KeyPadding(valid)).y
    torch.testing.assert_close(y[0], net.proj.bias.expand(30, -1))
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad[0].any()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(w.grad).all() for w in net.parameters())


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (8, 8)])
def test_gradients_are_finite(grid: tuple[int, int]) -> None:
    net = layer(group_size=2, mode="long", interval=3, pad_type=1)
    x = tokens(*grid).requires_grad_()
    net(x, grid=grid).y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(w.grad).all() for w in net.parameters())


def test_position_network_is_not_too_narrow_for_its_norm() -> None:
    assert LongShortAttention(32, 2).pos.pos_proj.out_features == 4
    assert LongShortAttention(96, 2).pos.pos_proj.out_features == 6


def test_block_adds_attention_and_network_to_its_input() -> None:
    torch.manual_seed(0)
    block = LongShortBlock(16, 2, group_size=2, mlp_ratio=2).double()
    randomised(block)
    x = tokens(4, 4, 16)
    middle = x + block.attn(block.norm1(x), grid=(4, 4)).y
    hidden = nn.functional.gelu(block.mlp.fc1(block.norm2(middle)))
    torch.testing.assert_close(block(x, grid=(4, 4)), middle + block.mlp.fc2(hidden))


def test_names_of_the_weights_are_the_public_ones() -> None:
    names = set(LongShortBlock(64, 4).state_dict())
    layers = ["norm1", "attn.qkv", "attn.proj", "attn.pos.pos_proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers += [f"attn.pos.pos{n}.{part}" for n in (1, 2, 3) for part in (0, 2)]
    assert names == {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}


def test_undeclared_patterns_are_refused() -> None:
    net = layer(group_size=2)
    x = tokens(4, 4)
    with pytest.raises(UnsupportedPattern, match="lsda: does not support causal self-attention"):
        net(x, grid=(4, 4), mask=Causal())
    with pytest.raises(UnsupportedPattern, match="cross-attention"):
        net(x, x, grid=(4, 4))


@pytest.mark.parametrize(
    "options", [{"group_size": 0}, {"interval": 0}, {"mode": "far"}, {"pad_type": 2}]
)
def test_mistakes_in_the_options_are_named(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        LongShortAttention(8, 2, **options)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize(
    ("backend", "grids"), [("inductor", [(5, 7)]), ("aot_eager", [(8, 8), (5, 7)])]
)
@pytest.mark.filterwarnings("ignore")
def test_compiles_to_one_graph_for_each_grid(backend: str, grids: list[tuple[int, int]]) -> None:
    net = layer(group_size=2, mode="long", interval=2).float()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    for grid in grids:
        x = tokens(*grid).float()
        torch.testing.assert_close(compiled(x, grid=grid).y, net(x, grid=grid).y)
        more = tokens(*grid, batch=3).float()
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(compiled(more, grid=grid).y, net(more, grid=grid).y)


def test_embedding_has_every_scale_at_every_place() -> None:
    torch.manual_seed(0)
    net = CrossScaleEmbedding(3, 16, kernels=(8, 2, 4))
    image = torch.randn(2, 3, 11, 8)
    y, grid = net(image)
    assert grid == (5, 4)
    assert [proj.out_channels for proj in net.projs] == [8, 4, 4]
    parts = [
        nn.functional.conv2d(image, proj.weight, proj.bias, stride=2, padding=pad)
        for proj, pad in zip(net.projs, (0, 1, 3), strict=True)
    ]
    expected = torch.cat(parts, 1).flatten(2).mT
    torch.testing.assert_close(y, nn.functional.layer_norm(expected, (16,)))


def test_embedding_between_stages_halves_the_map() -> None:
    net = CrossScaleEmbedding(8, 16, kernels=(2, 4))
    x = torch.randn(2, 24, 8)
    y, grid = net(x, (6, 4))
    assert grid == (3, 2)
    assert torch.equal(y, net(x.mT.unflatten(2, (6, 4)))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": ()}, "kernels: at least one"),
        ({"kernels": (4, 7)}, "kernels: 7 and stride 4"),
        ({"kernels": (2, 4, 8, 16)}, "dim: 12 is no multiple of 8"),
    ],
)
def test_embedding_names_mistakes(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CrossScaleEmbedding(3, 12, **options)


def test_embedding_refuses_a_map_below_its_stride() -> None:
    with pytest.raises(ConfigError, match="stride: 4 exceeds"):
        CrossScaleEmbedding(3, 8, kernels=(4, 8))(torch.zeros(1, 3, 3, 9))
