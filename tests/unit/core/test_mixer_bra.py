"""Bi-level routing attention: what it equals without routing, its routes, padding and masks."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers import bra as module
from manyhead_core.attention.mixers.bra import BiLevelRoutingAttention, Routing
from manyhead_core.errors import ConfigError


def layer(dim: int = 8, num_heads: int = 2, **options) -> BiLevelRoutingAttention:
    """A layer in float64 with weights large enough for clear choices."""
    torch.manual_seed(0)
    net = BiLevelRoutingAttention(dim, num_heads, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5)
    return net.eval()


def tokens(height: int, width: int, dim: int = 8, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(batch, height * width, dim, generator=generator, dtype=torch.float64)


def heads(net: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (net.num_heads, -1)).transpose(-3, -2)


def full(net: BiLevelRoutingAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Plain attention with the scale of the whole width, and LePE."""
    query, key, value = net.qkv(x)
    scores = heads(net, query) @ heads(net, key).mT * net.qk_dim**-0.5
    out = (scores.softmax(-1) @ heads(net, value)).transpose(-3, -2).flatten(-2)
    local = net.lepe(value.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
    return net.wo(out + local)


def by_region(net: BiLevelRoutingAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Region by region and in plain loops, for maps that need no padding."""
    height, width = grid
    rows, columns = height // net.num_windows, width // net.num_windows
    place = torch.arange(height * width).reshape(grid)
    members = [
        place[r : r + rows, c : c + columns].flatten()
        for r in range(0, height, rows)
        for c in range(0, width, columns)
    ]
    query, key, value = net.qkv(x)
    out = torch.zeros_like(value)
    for sample in range(len(x)):
        mean_query = torch.stack([query[sample, m].mean(0) for m in members])
        mean_key = torch.stack([key[sample, m].mean(0) for m in members])
        affinity = mean_query @ mean_key.T * net.qk_dim**-0.5
        for region, own in enumerate(members):
            chosen = affinity[region].argsort(descending=True)[: net.topk].tolist()
            seen = torch.cat([members[c] for c in chosen])
            scores = heads(net, query[sample, own]) @ heads(net, key[sample, seen]).mT
            weights = (scores * net.qk_dim**-0.5).softmax(-1)
            mixed = weights @ heads(net, value[sample, seen])
            out[sample, own] = mixed.transpose(0, 1).flatten(1)
    local = net.lepe(value.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
    return net.wo(out + local)


@pytest.mark.parametrize(
    "options",
    [
        {"num_windows": 1, "topk": 1},
        {"num_windows": 2, "topk": 4},
        {"num_windows": 3, "topk": 9, "qk_dim": 4, "lepe_kernel": 3},
        {"num_windows": 3, "topk": -2},
    ],
)
def test_all_regions_are_full_attention_with_lepe(options: dict) -> None:
    net = layer(**options)
    x = tokens(6, 6)
    torch.testing.assert_close(net(x, grid=(6, 6)).y, full(net, x, (6, 6)))


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (3, 4), (1, 9)])
@pytest.mark.parametrize("options", [{"num_windows": 3, "topk": 9}, {"topk": -2}])
def test_hidden_padding_changes_nothing(height: int, width: int, options: dict) -> None:
    net = layer(**options)
    x = tokens(height, width)
    y = net(x, grid=(height, width)).y
    torch.testing.assert_close(y, full(net, x, (height, width)))


@settings(deadline=None, max_examples=15)
@given(sides=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3), data=st.data())
def test_each_region_attends_to_its_best_regions(
    sides: int, rows: int, columns: int, data: st.DataObject
) -> None:
    net = layer(num_windows=sides, topk=data.draw(st.integers(1, sides**2)), qk_dim=4)
    grid = (sides * rows, sides * columns)
    x = tokens(*grid)
    torch.testing.assert_close(net(x, grid=grid).y, by_region(net, x, grid))


def test_order_of_the_chosen_regions_is_irrelevant(monkeypatch: pytest.MonkeyPatch) -> None:
    net = layer(num_windows=3, topk=4, soft_routing=True)
    x = tokens(6, 9)
    before = net(x, grid=(6, 9)).y
    route = net._route
    monkeypatch.setattr(net, "_route", lambda *a: Routing(*(part.flip(-1) for part in route(*a))))
    torch.testing.assert_close(net(x, grid=(6, 9)).y, before)


def test_routing_lists_the_best_regions_first_with_weights_that_sum_to_one() -> None:
    net = layer(num_windows=3, topk=4)
    routing = net.routing(tokens(6, 6), (6, 6))
    assert routing.regions.shape == (2, 9, 4)
    assert (routing.weight.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(routing.weight.sum(-1), torch.ones(2, 9, dtype=torch.float64))
    assert all(len(set(row)) == 4 for row in routing.regions.flatten(0, 1).tolist())


def test_shown_padding_is_a_map_padded_with_zeros() -> None:
    net = layer(num_windows=3, topk=2, mask_padding=False)
    x = tokens(7, 8)
    wide = F.pad(x.unflatten(1, (7, 8)), (0, 0, 0, 1, 0, 2)).flatten(1, 2)
    expected = net(wide, grid=(9, 9)).y.unflatten(1, (9, 9))[:, :7, :8].flatten(1, 2)
    torch.testing.assert_close(net(x, grid=(7, 8)).y, expected)


def test_padding_only_regions_are_chosen_last() -> None:
    # A map of 6 rows in 5 regions: the padding fills the last two rows of regions and columns.
    net = layer(num_windows=5, topk=9)
    routing = net.routing(tokens(6, 6), (6, 6))
    real = [row * 5 + column for row in range(3) for column in range(3)]
    assert all(sorted(row) == real for row in routing.regions.flatten(0, 1).tolist())


@pytest.mark.parametrize("pooling", ["identity", "ada_avgpool", "avgpool", "maxpool"])
@pytest.mark.parametrize("topk", [2, 4])
def test_masked_tokens_change_nothing(pooling: str, topk: int) -> None:
    net = layer(num_windows=2, topk=topk, kv_downsample=pooling, kv_size=2)
    x = tokens(8, 8)
    valid = torch.rand(2, 64, generator=torch.Generator().manual_seed(3)) > 0.4
    other = torch.where(valid[..., None], x, x * 30 + 7)
    before, after = (net(v, grid=(8, 8), mask=KeyPadding(valid)).y for v in (x, other))
    torch.testing.assert_close(before[valid], after[valid], rtol=0, atol=1e-9)


@pytest.mark.parametrize("topk", [2, -2])
def test_masked_tokens_change_nothing_against_a_smaller_map(topk: int) -> None:
    net = layer(num_windows=2, topk=topk)
    x = tokens(4, 6)
    wide = F.pad(x.unflatten(1, (4, 6)), (0, 0, 0, 0, 0, 4), value=5.0)
    valid = torch.zeros(2, 8, 6, dtype=torch.bool)
    valid[:, :4] = True
    small = layer(num_windows=1, topk=1) if topk > 0 else net
    y = net(wide.flatten(1, 2), grid=(8, 6), mask=KeyPadding(valid.flatten(1))).y
    torch.testing.assert_close(y.unflatten(1, (8, 6))[:, :4].flatten(1, 2), full(small, x, (4, 6)))


@pytest.mark.parametrize("options", [{"topk": 3}, {"topk": -2}, {"topk": 3, "soft_routing": True}])
def test_fully_masked_sample_attends_to_nothing(options: dict) -> None:
    net = layer(num_windows=3, **options)
    x = tokens(7, 6).requires_grad_()
    valid = torch.ones(2, 42, dtype=torch.bool)
    valid[0] = False
    y = net(x, grid=(7, 6), mask=KeyPadding(valid)).y
    torch.testing.assert_close(y[0], net.wo(net.lepe.bias).expand(42, -1))
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad[0].any()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(w.grad).all() for w in net.parameters())


@pytest.mark.parametrize(("pooling", "size"), [("ada_avgpool", 3), ("avgpool", 1), ("maxpool", 1)])
def test_pooling_to_the_size_of_a_region_is_none(pooling: str, size: int) -> None:
    plain = layer(num_windows=2, topk=2)
    pooled = layer(num_windows=2, topk=2, kv_downsample=pooling, kv_size=size)
    x = tokens(5, 6)
    torch.testing.assert_close(pooled(x, grid=(5, 6)).y, plain(x, grid=(5, 6)).y)


@pytest.mark.parametrize(("pooling", "size"), [("ada_avgpool", 1), ("avgpool", 2), ("maxpool", 2)])
def test_pooled_regions_leave_hidden_tokens_out(pooling: str, size: int) -> None:
    pool = module.RegionPool(pooling, size)
    x = tokens(4, 4).unflatten(1, (4, 4))
    valid = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(8)) > 0.6
    found, real = pool(x, valid, 2)
    assert found.shape == (2, 4, 1, 8)
    cells = module.split_regions(x, 2)
    shown = module.split_regions(valid[..., None], 2)[..., 0]
    assert torch.equal(real[..., 0], shown.any(-1))
    assert not real.all()
    for sample, region in real[..., 0].nonzero().tolist():
        kept = cells[sample, region, shown[sample, region]]
        expected = kept.amax(0) if pooling == "maxpool" else kept.mean(0)
        torch.testing.assert_close(found[sample, region, 0], expected)


def test_routes_do_not_depend_on_autocast() -> None:
    net = layer(num_windows=4, topk=3).float()
    x = tokens(8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = net.routing(x, (8, 8))
        assert torch.isfinite(net(x, grid=(8, 8)).y).all()
    high = net.routing(x, (8, 8))
    assert low.weight.dtype == torch.float32
    assert torch.equal(low.regions, high.regions)
    torch.testing.assert_close(low.weight, high.weight)


def test_soft_routing_multiplies_keys_and_values() -> None:
    # With one region the only weight is 1.
    x = tokens(4, 4)
    one = layer(num_windows=1, topk=1, soft_routing=True)
    torch.testing.assert_close(one(x, grid=(4, 4)).y, full(one, x, (4, 4)))
    net = layer(num_windows=2, topk=4, soft_routing=True)
    routing = net.routing(x, (4, 4))
    with torch.no_grad():
        net.qkv.qkv.weight[:16] = 0
        net.qkv.qkv.bias[:16] = 0
    # Equal scores and weights of 1/4: the mean value, a quarter of it with soft weights.
    value = net.qkv(x)[2]
    local = net.lepe(value.mT.unflatten(2, (4, 4))).flatten(2).mT
    expected = net.wo(value.mean(1, keepdim=True) / 4 + local)
    torch.testing.assert_close(net(x, grid=(4, 4)).y, expected)
    assert routing.weight.std() > 0


@pytest.mark.parametrize("trained", [False, True])
def test_routing_has_gradients_only_when_asked(trained: bool) -> None:
    net = layer(num_windows=2, topk=2, soft_routing=True, routing_gradient=trained)
    assert net.routing(tokens(4, 4), (4, 4)).weight.requires_grad == trained


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (1, 1)])
def test_gradients_are_finite(grid: tuple[int, int]) -> None:
    net = layer(num_windows=3, topk=4)
    x = tokens(*grid).requires_grad_()
    net(x, grid=grid).y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(w.grad).all() for w in net.parameters())


def test_names_of_the_weights_are_the_public_ones() -> None:
    net = BiLevelRoutingAttention(8, 2, qk_dim=4, lepe_kernel=3)
    assert {name: tuple(w.shape) for name, w in net.state_dict().items()} == {
        "qkv.qkv.weight": (16, 8),
        "qkv.qkv.bias": (16,),
        "lepe.weight": (8, 1, 3, 3),
        "lepe.bias": (8,),
        "wo.weight": (8, 8),
        "wo.bias": (8,),
    }


def test_undeclared_patterns_are_refused() -> None:
    net = layer(num_windows=2)
    x = tokens(4, 4)
    with pytest.raises(UnsupportedPattern, match="bra: does not support causal self-attention"):
        net(x, grid=(4, 4), mask=Causal())
    with pytest.raises(UnsupportedPattern, match="cross-attention"):
        net(x, x, grid=(4, 4))
    with pytest.raises(ConfigError, match="grid"):
        net(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_windows": 2, "topk": 5}, "topk: 5 of 4 regions"),
        ({"topk": 0}, "topk"),
        ({"lepe_kernel": 4}, "lepe_kernel: must be odd"),
        ({"qk_dim": 3}, "qk_dim: 3 is no multiple of num_heads=2"),
        ({"kv_downsample": "mean"}, "kv_downsample: 'mean' is unknown"),
        ({"topk": -2, "kv_downsample": "avgpool"}, "no regions"),
        ({"routing_gradient": True}, "soft_routing"),
    ],
)
def test_mistakes_in_the_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BiLevelRoutingAttention(8, 2, **options)


def test_maps_in_parts_of_regions_need_padding() -> None:
    net = layer(num_windows=3, topk=2, auto_pad=False)
    with pytest.raises(ConfigError, match="set auto_pad=True"):
        net(tokens(7, 6), grid=(7, 6))


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize(
    ("backend", "grids"), [("inductor", [(5, 7)]), ("aot_eager", [(8, 8), (5, 7)])]
)
@pytest.mark.filterwarnings("ignore")
def test_compiles_to_one_graph_for_each_grid(backend: str, grids: list[tuple[int, int]]) -> None:
    net = layer(num_windows=2, topk=2).float()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    for grid in grids:
        x = tokens(*grid).float()
        torch.testing.assert_close(compiled(x, grid=grid).y, net(x, grid=grid).y)
        more = tokens(*grid, batch=3).float()
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(compiled(more, grid=grid).y, net(more, grid=grid).y)
