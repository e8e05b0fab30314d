"""Windows at continuous places: what their weights are, and how the mixer moves them."""

import shutil
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.capture import capture, gate_heads
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.match import (
    EDGE,
    MatchAttention,
    MatchOutput,
    match_attend,
    own_places,
    relative_positions,
    window_maps,
)
from manyhead_core.errors import ConfigError

Grid = tuple[int, int]
HEADS, WIDTH = 2, 3
DIM = HEADS * (WIDTH + 2)
WHOLE = MapRequest(dtype=torch.float64)


def parts(grid: Grid, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(100 * grid[0] + grid[1])
    size = (3, batch, grid[0] * grid[1], HEADS, WIDTH)
    return torch.randn(size, generator=generator, dtype=torch.float64).unbind()


def somewhere(grid: Grid, batch: int = 2) -> Tensor:
    """Centres on the map and a little beyond."""
    generator = torch.Generator().manual_seed(7)
    unit = torch.rand(batch, grid[0] * grid[1], HEADS, 2, generator=generator, dtype=torch.float64)
    return unit * (torch.tensor([grid[1], grid[0]]) + 1.0) - 1.0


def layer(**options) -> MatchAttention:
    net = MatchAttention(DIM, HEADS, **options).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    return net


def tokens(grid: Grid, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * grid[0] + grid[1] + seed)
    return torch.randn(batch, grid[0] * grid[1], DIM, generator=generator, dtype=torch.float64)


def by_hand(
    inputs: tuple[Tensor, Tensor, Tensor], offsets: Tensor, grid: Grid, radius: Grid, scale: float
) -> Tensor:
    """Weights over all keys, one query at a time; the window has to fit the map."""
    query, key, _ = inputs
    batch, count = query.shape[:2]
    full = torch.zeros(batch, HEADS, count, count, dtype=torch.float64)
    for sample, token, head in product(range(batch), range(count), range(HEADS)):
        x, y = (
            min(max(float(offsets[sample, token, head, axis]), reach), length - 1 - reach - 1e-3)
            for axis, length, reach in ((0, grid[1], radius[1]), (1, grid[0], radius[0]))
        )
        left, top = int(x), int(y)
        dx, dy = x - left, y - top
        corners = {
            (0, 0): (1 - dx) * (1 - dy),
            (0, 1): dx * (1 - dy),
            (1, 0): (1 - dx) * dy,
            (1, 1): dx * dy,
        }
        for (down, right), share in corners.items():
            rows = range(top + down - radius[0], top + down + radius[0] + 1)
            columns = range(left + right - radius[1], left + right + radius[1] + 1)
            places = torch.tensor([row * grid[1] + column for row in rows for column in columns])
            distance = (query[sample, token, head] - key[sample, places, head]).abs().sum(-1)
            full[sample, head, token, places] += share * (-scale * distance).softmax(0)
    return full


def plain_windows(inputs: tuple[Tensor, Tensor, Tensor], visible: Tensor) -> Tensor:
    """One softmax over visible keys, `(batch, tokens, heads, width)`."""
    query, key, value = inputs
    scores = -torch.cdist(query.transpose(1, 2), key.transpose(1, 2), p=1) * WIDTH**-0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights @ value.transpose(1, 2)).transpose(1, 2)


def dense(found: MatchOutput) -> Tensor:
    return window_maps(found, WHOLE)


@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    down=st.integers(0, 2),
    across=st.integers(0, 2),
    scale=st.sampled_from([None, 0.3]),
)
def test_match_mixes_four_windows_around_each_centre(
    height: int, width: int, down: int, across: int, scale: float | None
) -> None:
    grid, radius = (height, width), (min(down, height // 2 - 1), min(across, width // 2 - 1))
    inputs, offsets = parts(grid, batch=1), somewhere(grid, batch=1)
    found = match_attend(*inputs, offsets, grid=grid, radius=radius, scale=scale)
    expected = by_hand(inputs, offsets, grid, radius, WIDTH**-0.5 if scale is None else scale)
    torch.testing.assert_close(dense(found), expected)
    out = (expected @ inputs[2].transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found.out, out)


@pytest.mark.parametrize(("grid", "radius"), [((7, 6), 1), ((6, 9), 2), ((4, 5), 0)])
def test_match_integer_centres_are_plain_windows(grid: Grid, radius: int) -> None:
    inputs = parts(grid)
    # The last row and column that a window may be centred on lie a little before the integer.
    last = torch.tensor([grid[1] - 2 - radius, grid[0] - 2 - radius])
    centres = own_places(grid).clamp(min=radius).minimum(last)
    offsets = centres.double()[:, None].expand(2, -1, HEADS, 2)
    visible = ((own_places(grid)[None] - centres[:, None]).abs() <= radius).all(-1)
    found = match_attend(*inputs, offsets, grid=grid, radius=radius)
    torch.testing.assert_close(found.out, plain_windows(inputs, visible), rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 6), width=st.integers(1, 6), radius=st.integers(0, 3))
def test_match_weights_sum_to_one(height: int, width: int, radius: int) -> None:
    grid = (height, width)
    inputs, offsets = parts(grid), somewhere(grid)
    found = match_attend(*inputs, offsets, grid=grid, radius=radius)
    ones = torch.ones(2, height * width, HEADS, dtype=torch.float64)
    torch.testing.assert_close(found.weights.sum(-1), ones)
    assert (found.weights >= 0).all()
    assert found.weights.shape[-1] == (2 * radius + 2) ** 2
    out = (dense(found) @ inputs[2].transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found.out, out)


@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (1, 3)])
def test_match_window_longer_than_the_map_is_full_attention(grid: Grid) -> None:
    inputs = parts(grid)
    found = match_attend(*inputs, somewhere(grid), grid=grid, radius=1)
    everything = torch.ones(grid[0] * grid[1], grid[0] * grid[1], dtype=torch.bool)
    torch.testing.assert_close(found.out, plain_windows(inputs, everything))


def test_match_one_short_axis_leaves_the_other_its_window() -> None:
    grid, inputs = (2, 7), parts((2, 7))
    centres = own_places(grid).clamp(1, 4)
    offsets = centres.double()[:, None].expand(2, -1, HEADS, 2)
    visible = (own_places(grid)[None, :, 0] - centres[:, None, 0]).abs() <= 1
    found = match_attend(*inputs, offsets, grid=grid, radius=1)
    torch.testing.assert_close(found.out, plain_windows(inputs, visible))


@pytest.mark.parametrize("axis", [0, 1])
def test_match_is_continuous_in_the_centre(axis: int) -> None:
    grid, inputs = (7, 8), parts((7, 8))
    start = torch.full((2, 56, HEADS, 2), 3.0, dtype=torch.float64)
    for border in (2.0, 3.0, 4.0):
        found = []
        for step in (-1e-9, 1e-9):
            offsets = start.clone()
            offsets[..., axis] = border + step
            found.append(match_attend(*inputs, offsets, grid=grid).out)
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-7)


def test_match_centres_move_inward_until_the_window_fits() -> None:
    grid, inputs = (5, 6), parts((5, 6))
    far = torch.tensor([-50.0, 80.0], dtype=torch.float64).expand(2, 30, HEADS, 2)
    near = torch.tensor([1.0, 3.0 - EDGE], dtype=torch.float64).expand(2, 30, HEADS, 2)
    found, expected = (match_attend(*inputs, places, grid=grid) for places in (far, near))
    torch.testing.assert_close(found.out, expected.out)
    assert sorted(set(found.place[0, 0, 0].tolist())) == [
        6 * row + c for row in (1, 2, 3, 4) for c in range(4)
    ]


@pytest.mark.parametrize(("grid", "radius"), [((4, 5), 1), ((3, 3), 0), ((1, 4), 1)])
def test_match_gradients_are_those_of_finite_differences(grid: Grid, radius: int) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [part.requires_grad_() for part in parts(grid, batch=1)]
    count = grid[0] * grid[1]
    # Away from the borders between cells, where the gradient jumps.
    cell = torch.randint(0, 5, (1, count, HEADS, 2), generator=generator)
    offsets = cell + 0.2 + 0.6 * torch.rand(cell.shape, generator=generator, dtype=torch.float64)
    offsets.requires_grad_()

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, places = tensors
        found = match_attend(query, key, value, places, grid=grid, radius=radius)
        return found.out, found.weights

    assert torch.autograd.gradcheck(run, (*inputs, offsets), fast_mode=count > 12)


@pytest.mark.parametrize("crossed", [False, True])
def test_match_gradients_of_the_mixer_are_those_of_finite_differences(crossed: bool) -> None:
    net, grid = layer(), (4, 5)
    x = tokens(grid, batch=1)
    x[..., -2 * HEADS :] = 0.3
    sources = (x.requires_grad_(), tokens(grid, batch=1, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, other: net(x, other if crossed else None, grid=grid).y, sources, fast_mode=True
    )


def test_match_reads_its_offsets_from_the_last_channels() -> None:
    net, grid = layer(), (5, 6)
    x = tokens(grid)
    features, relative = relative_positions(x, HEADS)
    assert relative.shape == (2, 30, HEADS, 2)
    query = net.q(features).unflatten(-1, (HEADS, WIDTH))
    key, value = (part.unflatten(-1, (HEADS, WIDTH)) for part in net.kv(features).chunk(2, -1))
    row, column = torch.arange(30) // 6, torch.arange(30) % 6
    offsets = relative + torch.stack((column, row), -1)[:, None]
    expected = match_attend(query, key, value, offsets, grid=grid).out.flatten(2)
    found = net(x, grid=grid).y
    torch.testing.assert_close(found, net.proj(expected))
    # What moves the windows of the next layer comes out at the same place.
    assert found.shape == x.shape


def test_match_updates_positions_through_the_residual_stream() -> None:
    net, grid = layer(), (5, 6)
    x = tokens(grid)
    x[..., -2 * HEADS :] = 0
    with torch.no_grad():
        net.proj.weight.zero_()
        net.proj.bias.zero_()
        # One column to the right for the first head, one row down for the second.
        net.proj.bias[-2 * HEADS :] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    moved = x + net(x, grid=grid).y
    _, relative = relative_positions(moved, HEADS)
    assert (relative == torch.tensor([[1.0, 0.0], [0.0, 1.0]])).all()
    with torch.no_grad():
        net.proj.weight.normal_()
    assert not torch.allclose(net(moved, grid=grid).y, net(x, grid=grid).y)


@pytest.mark.parametrize("grid", [(5, 6), (1, 1), (2, 3)])
def test_match_cross_form_is_gated_and_sees_its_weights(grid: Grid) -> None:
    net = layer()
    x, other = tokens(grid), tokens(grid, seed=1)
    features, relative = relative_positions(x, HEADS)
    source, _ = relative_positions(other, HEADS)
    query = net.q(features).unflatten(-1, (HEADS, WIDTH))
    key, value = (part.unflatten(-1, (HEADS, WIDTH)) for part in net.kv(source).chunk(2, -1))
    offsets = relative + own_places(grid)[:, None]
    found = match_attend(query, key, value, offsets, grid=grid)
    gated = found.out.flatten(2) * F.silu(net.gate(features))
    joined = torch.cat((gated, found.weights.flatten(2)), -1)
    weight = torch.cat((net.proj.weight, net.proj_window.weight), 1)
    expected = F.linear(joined, weight, net.proj.bias)
    torch.testing.assert_close(net(x, other, grid=grid).y, expected)


def test_match_reserved_channels_of_the_context_change_nothing() -> None:
    net, grid = layer(), (4, 4)
    x, other = tokens(grid), tokens(grid, seed=1)
    changed = other.clone()
    changed[..., -2 * HEADS :] += 5
    torch.testing.assert_close(net(x, changed, grid=grid).y, net(x, other, grid=grid).y)


def test_match_without_cross_saves_the_gate() -> None:
    net, grid = layer(cross=False), (4, 4)
    assert {name.split(".")[0] for name in net.state_dict()} == {"q", "kv", "proj"}
    x = tokens(grid)
    torch.testing.assert_close(net(x, grid=grid).y, layer()(x, grid=grid).y)
    with pytest.raises(UnsupportedPattern, match="match: cross=False has no gate"):
        net(x, x, grid=grid)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (2, 6)])
def test_match_gradients_are_finite(grid: Grid, crossed: bool) -> None:
    net = layer(cross=crossed)
    x = tokens(grid).requires_grad_()
    net(x, tokens(grid, seed=1) if crossed else None, grid=grid).y.square().sum().backward()
    for tensor in (x, *net.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_match_maps_are_the_weights_of_the_window() -> None:
    net, grid = layer(), (5, 6)
    x = tokens(grid)
    maps = net(x, grid=grid, maps=WHOLE).maps
    assert maps.shape == (2, HEADS, 30, 30)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, HEADS, 30, dtype=torch.float64))
    rows = torch.tensor([3, 20])
    picked = net(x, grid=grid, maps=MapRequest(queries=rows, heads=[1], dtype=torch.float64)).maps
    torch.testing.assert_close(picked, maps[:, 1:, rows])
    mean = net(x, grid=grid, maps=MapRequest(reduce="head_mean", dtype=torch.float64)).maps
    torch.testing.assert_close(mean, maps.mean(1))
    assert net(x, grid=grid, maps=MapRequest(detach=False)).maps.requires_grad
    assert not maps.requires_grad


def test_match_tools_find_its_heads() -> None:
    net, grid = layer(), (5, 6)
    x = tokens(grid)
    with capture(net) as captured:
        net(x, grid=grid)
    (site,) = captured.maps.values()
    torch.testing.assert_close(site[0], net(x, grid=grid, maps=MapRequest()).maps)
    with gate_heads(net, dict.fromkeys(captured.maps, torch.zeros(2, HEADS))):
        torch.testing.assert_close(net(x, grid=grid).y, net.proj.bias.expand(2, 30, DIM))


def test_match_scores_in_float32_under_autocast() -> None:
    net, grid = layer().float(), (6, 6)
    x, other = tokens(grid).float(), tokens(grid, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, other, grid=grid, maps=MapRequest())
    assert found.y.dtype == torch.bfloat16
    torch.testing.assert_close(found.maps.sum(-1), torch.ones(2, HEADS, 36))
    torch.testing.assert_close(found.y.float(), net(x, other, grid=grid).y, rtol=0, atol=0.3)


def test_match_drops_weights_only_while_training() -> None:
    net, grid = layer(attention_dropout=0.5), (4, 5)
    x = tokens(grid)
    torch.testing.assert_close(net(x, grid=grid).y, layer()(x, grid=grid).y)
    net.train()
    assert not torch.equal(net(x, grid=grid).y, net(x, grid=grid).y)


def test_match_refuses_causal_calls_and_masks() -> None:
    net, grid = layer(), (2, 2)
    x = tokens(grid)
    for context in (None, x):
        with pytest.raises(UnsupportedPattern, match="match: does not support causal"):
            net(x, context, grid=grid, mask=Causal())
    with pytest.raises(UnsupportedPattern, match="match: does not support masks"):
        net(x, grid=grid, mask=KeyPadding(torch.tensor([4, 2])))
    with pytest.raises(ConfigError, match="context: has 6 tokens, but match needs the grid of x"):
        net(x, tokens((2, 3)), grid=grid)


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (9, {}, "dim: 9 is no multiple of num_heads=2 with 3 channels or more"),
        (4, {}, "dim: 4 is no multiple of num_heads=2 with 3 channels or more"),
        (10, {"radius": -1}, "radius: needs one or two numbers from 0, got -1"),
    ],
)
def test_match_names_wrong_options(dim: int, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MatchAttention(dim, HEADS, **options)


def test_match_names_shapes_that_do_not_fit() -> None:
    query, key, value = parts((2, 3))
    offsets = somewhere((2, 3))
    with pytest.raises(ConfigError, match="are not on one grid"):
        match_attend(query, key[:, :4], value, offsets, grid=(2, 3))
    with pytest.raises(ConfigError, match="offsets: shape"):
        match_attend(query, key, value, offsets[..., :1], grid=(2, 3))
    with pytest.raises(ConfigError, match="does not hold 6 tokens"):
        match_attend(query, key, value, offsets, grid=(2, 2))


def test_match_exports_with_a_free_batch() -> None:
    net, grid = layer(), (5, 4)
    batch = {0: torch.export.Dim("batch", min=2)}
    shapes = {"x": batch, "context": batch, "grid": (None, None)}
    inputs = (tokens(grid), tokens(grid, seed=1))
    program = torch.export.export(net, inputs, {"grid": grid}, dynamic_shapes=shapes)
    x, other = tokens(grid, 5), tokens(grid, 5, seed=1)
    torch.testing.assert_close(program.module()(x, other, grid=grid).y, net(x, other, grid=grid).y)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("crossed", [False, True])
def test_match_compiles_to_one_graph_for_each_grid(crossed: bool) -> None:
    net, grid = layer().float(), (5, 4)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = tokens(grid, batch).float()
        other = tokens(grid, batch, seed=1).float() if crossed else None
        found = compiled(x, other, grid=grid).y
        torch.testing.assert_close(found, net(x, other, grid=grid).y, rtol=1e-4, atol=1e-5)
