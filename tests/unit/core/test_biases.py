"""What each bias adds, stated a second time in plain loops, and in both of its forms."""

from collections.abc import Callable
from math import log2
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.biases import (
    Alibi,
    Bias,
    ContinuousBias,
    Dense,
    KeyBias,
    Lookup,
    MLPBias,
    RelPos1D,
    RelPos2D,
    alibi_slopes,
)
from manyhead_core.attention.masks import Shape
from manyhead_core.errors import ConfigError

CPU = torch.device("cpu")
GRID = (2, 3)

MAKERS: dict[str, Callable[[Shape], Bias]] = {
    "dense": lambda s: Dense(torch.randn(s.batch, s.heads, s.queries, s.keys)),
    "dense_shared": lambda s: Dense(torch.randn(s.queries, 1)),
    "number": lambda s: Dense(torch.tensor(0.7)),
    "keys": lambda s: KeyBias(torch.randn(s.batch, s.heads, s.keys)),
    "keys_shared": lambda s: KeyBias(torch.randn(s.batch, 1, s.keys)),
    "alibi": lambda s: Alibi(alibi_slopes(s.heads)),
    "line": lambda s: RelPos1D(torch.randn(16, s.heads)),
    "line_shared": lambda s: RelPos1D(torch.randn(16, 1)),
    "line_clamped": lambda s: RelPos1D(torch.randn(4, s.heads), clamp=True),
    "lookup": lambda s: Lookup(torch.randn(5, s.heads), torch.randint(0, 5, (s.queries, s.keys))),
}
ON_GRID: dict[str, Callable[[], Bias]] = {
    "grid": lambda: RelPos2D(torch.randn(15, 2), GRID),
    "grid_shared": lambda: RelPos2D(torch.randn(15, 1), GRID),
    "network": lambda: warm(MLPBias(4, 2, grid=GRID)),
    "continuous": lambda: warm(ContinuousBias(2, GRID, hidden=8)),
}


def warm(module: Any) -> Any:
    """Weights large enough that the bias is no zero."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def dense(bias: Bias, shape: Shape) -> Tensor:
    return bias.dense(shape).expand(shape.batch, shape.heads, shape.queries, shape.keys)


def by_index(bias: Bias, shape: Shape) -> Tensor:
    sizes = (shape.batch, shape.heads, shape.queries, shape.keys)
    index = [
        torch.arange(n).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(sizes)
    ]
    return bias.score_mod(shape)(torch.zeros(sizes), *index)


@settings(deadline=None, max_examples=60)
@given(
    first=st.sampled_from(sorted(MAKERS)),
    second=st.sampled_from(sorted(MAKERS)),
    sizes=st.tuples(*(st.integers(1, 3),) * 2, *(st.integers(0, 6),) * 2),
    seed=st.integers(0, 999),
)
def test_index_form_is_the_dense_form(
    first: str, second: str, sizes: tuple[int, int, int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    shape = Shape(*sizes, CPU)
    one, other = MAKERS[first](shape), MAKERS[second](shape)
    for bias in (one, one + other, one + (other + one)):
        found, expected = by_index(bias, shape), dense(bias, shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(dense(one + other, shape), dense(one, shape) + dense(other, shape))


@pytest.mark.parametrize("name", sorted(ON_GRID))
def test_index_form_on_a_grid_is_the_dense_form(name: str) -> None:
    shape = Shape(2, 2, 6, 6, CPU)
    bias = ON_GRID[name]()
    found = by_index(bias, shape)
    torch.testing.assert_close(found, dense(bias, shape), rtol=0, atol=1e-6)
    assert found.std() > 0.1


@settings(deadline=None, max_examples=20)
@given(queries=st.integers(1, 5), keys=st.integers(1, 6), clamp=st.booleans())
def test_rel_pos_1d_counts_from_the_end_of_the_keys(queries: int, keys: int, clamp: bool) -> None:
    reach = 3 if clamp else 6
    table = torch.randn(2 * reach, 2)
    found = dense(RelPos1D(table, clamp=clamp), Shape(1, 2, queries, keys, CPU))[0]
    for i in range(queries):
        for j in range(keys):
            entry = j - (keys - queries) - i + reach
            assert torch.equal(found[:, i, j], table[min(max(entry, 0), 2 * reach - 1)])


def test_rel_pos_2d_is_the_offset_of_query_and_key() -> None:
    table = torch.randn(15, 2)
    found = dense(RelPos2D(table, GRID), Shape(1, 2, 6, 6, CPU))[0]
    for i in range(6):
        for j in range(6):
            down, across = i // 3 - j // 3, i % 3 - j % 3
            assert torch.equal(found[:, i, j], table[(down + 1) * 5 + across + 2])


def test_alibi_falls_with_the_distance_by_the_published_slopes() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(4).tolist() == [2.0**-i for i in (2, 4, 6, 8)]
    assert alibi_slopes(6).tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    with pytest.raises(ConfigError, match="must be 1 or more, got 0"):
        alibi_slopes(0)
    found = dense(Alibi(alibi_slopes(2)), Shape(1, 2, 2, 4, CPU))[0, 0] * 16
    assert found.tolist() == [[-2, -1, 0, -1], [-3, -2, -1, 0]]


def test_mlp_bias_is_its_network_at_every_offset() -> None:
    bias = warm(MLPBias(5, 2, grid=GRID))
    found = dense(bias, Shape(1, 2, 6, 6, CPU))[0]
    for i in range(6):
        for j in range(6):
            offset = torch.tensor([i // 3 - j // 3, i % 3 - j % 3]).float()
            expected = bias.pos3(bias.pos2(bias.pos1(bias.pos_proj(offset))))
            torch.testing.assert_close(found[:, i, j], expected)


def test_mlp_bias_takes_grids_of_any_size_with_the_same_parameters() -> None:
    bias = warm(MLPBias(4, 3))
    names = {f"{part}.{kind}" for part in ("pos_proj",) for kind in ("weight", "bias")}
    names |= {
        f"pos{i}.{j}.{kind}" for i in (1, 2, 3) for j in (0, 2) for kind in ("weight", "bias")
    }
    assert set(bias.state_dict()) == names
    large, small = (dense(bias, Shape(1, 3, n * n, n * n, CPU)) for n in (4, 2))
    corner = torch.tensor([0, 1, 4, 5])
    torch.testing.assert_close(large[:, :, corner][..., corner], small)
    with pytest.raises(ConfigError, match=r"6 queries are no square grid; pass grid=\(height"):
        bias.dense(Shape(1, 3, 6, 6, CPU))
    with pytest.raises(ConfigError, match="width: must be 4 or more, got 3"):
        MLPBias(3, 2)


@pytest.mark.parametrize(
    ("size", "keys", "trained"), [((4, 4), (2, 2), (4, 4)), ((3, 5), (1, 2), (7, 9))]
)
def test_continuous_bias_is_its_network_of_the_log_distance(
    size: tuple[int, int], keys: tuple[int, int], trained: tuple[int, int]
) -> None:
    bias = warm(ContinuousBias(2, size, keys=keys, pretrain_size=trained, hidden=6))
    tokens, pooled = size[0] * size[1], keys[0] * keys[1]
    found = dense(bias, Shape(1, 2, tokens, pooled, CPU))[0]
    places = [
        F.adaptive_avg_pool1d(torch.arange(n).float()[None], k)[0]
        for n, k in zip(size, keys, strict=True)
    ]
    for i in range(tokens):
        for j in range(pooled):
            query, key = divmod(i, size[1]), divmod(j, keys[1])
            logs = []
            for axis in (0, 1):
                far = float(query[axis] - places[axis][key[axis]]) / (trained[axis] - 1) * 8
                logs.append(log2(1 + abs(far)) / log2(8) * (1 if far >= 0 else -1))
            expected = bias.cpb_fc2(F.relu(bias.cpb_fc1(torch.tensor(logs))))
            torch.testing.assert_close(found[:, i, j], expected, rtol=1e-4, atol=1e-5)
    assert set(bias.state_dict()) == {f"cpb_fc{i}.{k}" for i in (1, 2) for k in ("weight", "bias")}


@pytest.mark.parametrize("form", [dense, by_index])
def test_gradients_reach_the_tables(form: Callable[[Bias, Shape], Tensor]) -> None:
    shape = Shape(2, 2, 6, 6, CPU)
    table = torch.randn(15, 2, requires_grad=True)
    form(RelPos2D(table, GRID), shape).sum().backward()
    # Each offset occurs as often as the grid has room for it.
    room = torch.tensor([[1, 2, 1]]).T * torch.tensor([[1, 2, 3, 2, 1]])
    assert torch.equal(table.grad, 2.0 * room.reshape(-1, 1).expand(15, 2))
    line = torch.randn(16, 2, requires_grad=True)
    form(RelPos1D(line) + RelPos1D(line), Shape(1, 2, 2, 3, CPU)).sum().backward()
    assert line.grad[:, 0].tolist() == [0.0] * 6 + [2, 4, 4, 2] + [0.0] * 6
    network = warm(MLPBias(16, 2, grid=GRID))
    (form(network, shape) * torch.randn(2, 2, 6, 6)).sum().backward()
    assert all(p.grad.any() for p in network.parameters())


def test_learning_is_known_of_every_part() -> None:
    fixed, learned = torch.randn(16, 2), torch.randn(16, 2, requires_grad=True)
    assert not RelPos1D(fixed).requires_grad
    assert (RelPos1D(fixed) + RelPos1D(learned)).requires_grad
    network = MLPBias(4, 2)
    assert network.requires_grad
    assert not network.requires_grad_(False).requires_grad


def test_a_learning_tensor_is_read_once() -> None:
    learned = torch.randn(16, 2, requires_grad=True)
    one = RelPos1D(learned)
    (copy,) = one.cloned().tensors()
    assert copy is not learned
    assert copy.requires_grad
    shape = Shape(1, 2, 3, 3, CPU)
    cells = [
        cell.cell_contents
        for part in (one + one).score_mod(shape).__closure__ or ()
        for cell in part.cell_contents.__closure__
        if isinstance(cell.cell_contents, Tensor)
    ]
    assert len(cells) == 2
    assert cells[0] is not cells[1]
    fixed = RelPos1D(learned.detach())
    assert fixed.cloned() is fixed


def test_biases_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="table of 4 distances is short of 3 to either side"):
        RelPos1D(torch.zeros(4, 2)).dense(Shape(1, 2, 3, 3, CPU))
    with pytest.raises(ConfigError, match=r"the grid \(2, 3\) has 15 offsets, the table 9 rows"):
        RelPos2D(torch.zeros(9, 2), GRID)
    with pytest.raises(ConfigError, match="for 6 queries and keys, got 6 and 5"):
        RelPos2D(torch.zeros(15, 2), GRID).score_mod(Shape(1, 2, 6, 5, CPU))
    with pytest.raises(ConfigError, match=r"built for \(6, 6\) queries and keys, got 6 and 5"):
        ContinuousBias(2, GRID, hidden=4).dense(Shape(1, 2, 6, 5, CPU))
