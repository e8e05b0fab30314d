"""Attention in the window of a convolution: taps, borders, dilation, shift and pooling."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.capture import gate_heads
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.msa_conv import ConvAttention, cyclic_shift, inter_pool
from manyhead_core.errors import ConfigError

Grid = tuple[int, int]
DIM = 6


def layer(**options) -> ConvAttention:
    net = ConvAttention(DIM, **options).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    return net


def tokens(height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(batch, height * width, DIM, generator=generator, dtype=torch.float64)


def projected(net: ConvAttention, x: Tensor) -> tuple[Tensor, ...]:
    return F.linear(x, net.qkv.weight.flatten(1), net.qkv.bias).chunk(3, -1)


def finished(net: ConvAttention, attended: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """What follows the attention."""
    picture = (attended + x).transpose(1, 2).unflatten(2, grid)
    weight, around = net.conv.weight, tuple(side // 2 for side in net.kernel_size)
    return F.conv2d(picture, weight, net.conv.bias, padding=around).relu().flatten(2).mT


def tap_by_tap(net: ConvAttention, x: Tensor, grid: Grid) -> Tensor:
    """The attention of each token alone."""
    query, key, value = (part.unflatten(1, grid) for part in projected(net, x))
    out = torch.zeros_like(query)
    reach = [side // 2 for side in net.kernel_size]
    for row in range(grid[0]):
        for column in range(grid[1]):
            scores, values = [], []
            for down in range(-reach[0], reach[0] + 1):
                for across in range(-reach[1], reach[1] + 1):
                    y, z = row + down * net.dilation, column + across * net.dilation
                    if 0 <= y < grid[0] and 0 <= z < grid[1]:
                        scores.append((query[:, row, column] * key[:, y, z]).sum(-1) * DIM**-0.5)
                        values.append(value[:, y, z])
                    elif not net.mask_padding:
                        scores.append(x.new_zeros(len(x)))
                        values.append(x.new_zeros(len(x), DIM))
            weights = torch.stack(scores, -1).softmax(-1)
            out[:, row, column] = (weights[..., None] * torch.stack(values, 1)).sum(1)
    return out.flatten(1, 2)


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    kernel=st.sampled_from([1, 3, (1, 3), (5, 3)]),
    dilation=st.integers(1, 3),
    hide=st.booleans(),
)
def test_msa_conv_attends_to_the_taps_around_each_token(
    height: int, width: int, kernel: int | Grid, dilation: int, hide: bool
) -> None:
    net = layer(kernel_size=kernel, dilation=dilation, mask_padding=hide)
    grid = (height, width)
    x = tokens(*grid)
    expected = tap_by_tap(net, x, grid)
    torch.testing.assert_close(net.attend_taps(x.unflatten(1, grid)).flatten(1, 2), expected)
    torch.testing.assert_close(net(x, grid=grid).y, finished(net, expected, x, grid))


@pytest.mark.parametrize("hide", [True, False])
@pytest.mark.parametrize("grid", [(1, 1), (4, 3)])
def test_msa_conv_of_one_tap_gives_the_values(grid: Grid, hide: bool) -> None:
    net = layer(kernel_size=1, mask_padding=hide)
    x = tokens(*grid)
    value = projected(net, x)[2]
    attended = net.attend_taps(x.unflatten(1, grid)).flatten(1, 2)
    torch.testing.assert_close(attended, value, rtol=0, atol=1e-15)
    torch.testing.assert_close(net(x, grid=grid).y, finished(net, value, x, grid))


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 4), (5, 1)])
def test_msa_conv_kernel_over_the_map_is_full_attention(grid: Grid) -> None:
    net = layer(kernel_size=(2 * grid[0] - 1, 2 * grid[1] - 1))
    x = tokens(*grid)
    query, key, value = projected(net, x)
    full = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(net(x, grid=grid).y, finished(net, full, x, grid))


@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"kernel_size": (5, 3)}])
def test_msa_conv_padding_is_outside_the_map(options: dict) -> None:
    net = layer(**options)
    x = tokens(4, 5)
    valid = torch.zeros(2, 6, 8, dtype=torch.bool)
    valid[:, :4, :5] = True
    padded = torch.full((2, 6, 8, DIM), 3.0, dtype=x.dtype)
    padded[:, :4, :5] = x.unflatten(1, (4, 5))
    found = net(padded.flatten(1, 2), grid=(6, 8), mask=KeyPadding(valid.flatten(1))).y
    found = found.unflatten(1, (6, 8))[:, :4, :5].flatten(1, 2)
    torch.testing.assert_close(found, net(x, grid=(4, 5)).y)


@pytest.mark.parametrize("hide", [True, False])
def test_msa_conv_hidden_tokens_change_nothing(hide: bool) -> None:
    net = layer(mask_padding=hide)
    x = tokens(3, 4)
    valid = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) > 0.3
    other = torch.where(valid[..., None], x, 7.0)
    mask = KeyPadding(valid)
    found, expected = net(other, grid=(3, 4), mask=mask).y, net(x, grid=(3, 4), mask=mask).y
    torch.testing.assert_close(found[valid], expected[valid])


def test_msa_conv_without_a_real_token_has_finite_gradients() -> None:
    net = layer()
    x = tokens(3, 3).requires_grad_()
    net(x, grid=(3, 3), mask=KeyPadding(torch.tensor([9, 0]))).y.sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum() > 0
    assert (x.grad[1] == 0).all()
    for weight in net.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"mask_padding": False, "dilation": 2}])
def test_msa_conv_gradients_are_those_of_finite_differences(options: dict) -> None:
    net = layer(**options)
    x = tokens(3, 2, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: net.attend_taps(x.unflatten(1, (3, 2))), (x,), fast_mode=True
    )


def test_msa_conv_maps_of_any_size_need_no_further_parameters() -> None:
    net = layer()
    for grid in ((1, 1), (5, 7), (9, 2)):
        assert net(tokens(*grid), grid=grid).y.shape == (2, grid[0] * grid[1], DIM)
    assert {name: tuple(w.shape) for name, w in net.state_dict().items()} == {
        "qkv.weight": (18, 6, 1, 1),
        "qkv.bias": (18,),
        "conv.weight": (6, 6, 3, 3),
        "conv.bias": (6,),
    }


def test_msa_conv_shift_rolls_channel_groups_four_ways() -> None:
    picture = torch.zeros(1, 3, 4, 4)
    picture[0, 1, 1] = 1
    places = [
        tuple(group.nonzero()[0, 1:3].tolist()) for group in cyclic_shift(picture, 1).split(1, -1)
    ]
    assert places == [(1, 0), (1, 2), (0, 1), (2, 1)]
    torch.testing.assert_close(cyclic_shift(cyclic_shift(picture, 1), -1), picture)


def test_msa_conv_shift_comes_before_the_layer() -> None:
    plain, shifted = layer(), layer(shift=1)
    x = tokens(3, 4)
    moved = cyclic_shift(x.unflatten(1, (3, 4)), 1).flatten(1, 2)
    torch.testing.assert_close(shifted(x, grid=(3, 4)).y, plain(moved, grid=(3, 4)).y)
    with pytest.raises(ConfigError, match="shift: rolls padding between real tokens; use 0"):
        shifted(x, grid=(3, 4), mask=KeyPadding(torch.tensor([12, 3])))


def test_msa_conv_pools_between_layers() -> None:
    x = torch.arange(15.0).reshape(1, 15, 1)
    pooled, grid = inter_pool(x, (3, 5))
    assert grid == (2, 3)
    assert pooled.flatten().tolist() == [3, 5, 6.5, 10.5, 12.5, 14]


def test_msa_conv_gate_of_a_sample_reaches_all_its_blocks() -> None:
    net = layer(dilation=2)
    x = tokens(5, 4)
    with gate_heads(net, {"attend": torch.tensor([[1.0], [0.0]])}):
        found = net.attend_taps(x.unflatten(1, (5, 4)))
    torch.testing.assert_close(found[0], net.attend_taps(x.unflatten(1, (5, 4)))[0])
    assert (found[1] == 0).all()


def test_msa_conv_refuses_other_patterns() -> None:
    net, x = layer(), tokens(2, 2)
    for context, mask in ((x, None), (None, Causal()), (x, Causal())):
        with pytest.raises(UnsupportedPattern, match="msa_conv: does not support"):
            net(x, context, grid=(2, 2), mask=mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2}, "kernel_size: needs one or two odd sides, got 2"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size: needs one or two odd sides"),
        ({"dilation": 0}, "dilation, shift: need 1 and 0 or more, got 0 and 0"),
        ({"shift": -1}, "dilation, shift: need 1 and 0 or more, got 1 and -1"),
    ],
)
def test_msa_conv_names_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvAttention(DIM, **options)


@pytest.mark.parametrize("options", [{}, {"dilation": 2, "shift": 1, "mask_padding": False}])
def test_msa_conv_exports_with_a_free_batch(options: dict) -> None:
    net = layer(**options)
    shapes = {"x": {0: torch.export.Dim("batch", min=2)}, "grid": (None, None)}
    program = torch.export.export(net, (tokens(5, 4),), {"grid": (5, 4)}, dynamic_shapes=shapes)
    x = tokens(5, 4, batch=5)
    torch.testing.assert_close(program.module()(x, grid=(5, 4)).y, net(x, grid=(5, 4)).y)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"dilation": 2, "shift": 1, "mask_padding": False}])
def test_msa_conv_compiles_to_one_graph_for_each_grid(options: dict) -> None:
    net = layer(**options).float()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    x = tokens(5, 4).float()
    torch.testing.assert_close(compiled(x, grid=(5, 4)).y, net(x, grid=(5, 4)).y)
    more = tokens(5, 4, batch=3).float()
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(more, grid=(5, 4)).y, net(more, grid=(5, 4)).y)
