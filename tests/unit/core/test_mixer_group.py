"""`group`: its two layers against masked attention over all tokens."""

import shutil

import pytest
import torch
from torch import Tensor

from manyhead_core.attention.masks import Both, Causal, Dense, KeyPadding, SameId
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.group import GroupAttention
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError

GRIDS = [(3, 4), (1, 1), (1, 5), (5, 1), (7, 3)]


def mixer(**options: object) -> GroupAttention:
    torch.manual_seed(0)
    made = GroupAttention(12, 3, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def tokens(grid: tuple[int, int], batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, grid[0] * grid[1], 12, generator=generator, dtype=torch.float64)


def masked_form(made: GroupAttention, x: Tensor, grid: tuple[int, int], mask=None) -> Tensor:
    """Plain attention over all tokens with `SameId` masks."""
    instance = torch.arange(grid[0]).repeat_interleave(grid[1])
    kind = torch.arange(grid[1]).repeat(grid[0])
    layers = [(made.within, made.within_norm, instance), (made.across, made.across_norm, kind)]
    for layer, norm, ids in layers:
        same = SameId(ids)
        x = norm(x + layer(x, mask=same if mask is None else Both(same, mask)).y)
    return x


@pytest.mark.parametrize("grid", GRIDS)
def test_equals_attention_masked_to_same_instance_then_same_type(grid: tuple[int, int]) -> None:
    made, x = mixer(), tokens(grid)
    torch.testing.assert_close(made(x, grid=grid).y, masked_form(made, x, grid))


@pytest.mark.parametrize("heads", [1, 3])
def test_any_mask_is_combined_with_the_groups(heads: int) -> None:
    grid = (3, 4)
    made, x = mixer(), tokens(grid)
    mask = Dense(torch.rand(2, heads, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.4)
    torch.testing.assert_close(made(x, grid=grid, mask=mask).y, masked_form(made, x, grid, mask))


def test_key_padding_is_that_of_the_dense_form() -> None:
    grid = (3, 4)
    made, x = mixer(), tokens(grid)
    valid = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) > 0.3
    found = made(x, grid=grid, mask=KeyPadding(valid)).y
    torch.testing.assert_close(found, masked_form(made, x, grid, KeyPadding(valid)))


def test_masked_instances_and_types_change_nothing() -> None:
    made, x = mixer(), tokens((4, 5))
    table = x.unflatten(1, (4, 5))
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    valid[:, :3, :4] = True
    found = made(x, grid=(4, 5), mask=KeyPadding(valid.flatten(1))).y.unflatten(1, (4, 5))
    alone = made(table[:, :3, :4].flatten(1, 2), grid=(3, 4)).y.unflatten(1, (3, 4))
    torch.testing.assert_close(found[:, :3, :4], alone, atol=1e-6, rtol=0)


def test_fully_masked_row_gets_nothing_and_gives_no_gradient() -> None:
    made, x = mixer(), tokens((2, 3)).requires_grad_()
    allowed = torch.ones(6, 6, dtype=torch.bool)
    allowed[4] = False
    y = made(x, grid=(2, 3), mask=Dense(allowed)).y
    alone = made.across_norm(
        made.within_norm(x[:, 4] + made.within.proj.bias) + made.across.proj.bias
    )
    torch.testing.assert_close(y[:, 4], alone)
    gradient = torch.autograd.grad(y[:, 4].square().sum(), x)[0]
    assert torch.isfinite(gradient).all()
    assert gradient[:, [0, 1, 2, 3, 5]].abs().max() == 0


@pytest.mark.parametrize("bias", [True, False])
def test_position_reaches_queries_and_keys_of_the_first_layer_only(bias: bool) -> None:
    grid = (3, 4)
    made, x = mixer(qkv_bias=bias), tokens(grid)
    position = torch.randn(4, 12, generator=torch.Generator().manual_seed(4)).double().repeat(3, 1)
    layer: Attention = made.within
    query, key, _ = layer.project(x + position, x + position)
    value = layer.project(x, x)[2]
    instance = torch.arange(3).repeat_interleave(4)
    out = layer.attend(query, key, value, mask=SameId(instance)).out
    first = made.within_norm(x + layer.proj(out.transpose(1, 2).flatten(2)))
    same = SameId(torch.arange(4).repeat(3))
    expected = made.across_norm(first + made.across(first, mask=same).y)
    torch.testing.assert_close(made(x, grid=grid, position=position).y, expected)


def test_pos_to_value_adds_the_position_to_everything() -> None:
    made, x = mixer(pos_to_value=True), tokens((3, 4))
    position = torch.full((12,), 0.3, dtype=torch.float64)
    found = made(x, grid=(3, 4), position=position).y
    torch.testing.assert_close(found, made(x + position, grid=(3, 4)).y)


def test_gradients_reach_every_weight() -> None:
    made = mixer()
    made(tokens((3, 4)), grid=(3, 4)).y.pow(3).sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_undeclared_uses_are_refused() -> None:
    made, x = mixer(), tokens((2, 2))
    with pytest.raises(UnsupportedPattern):
        made(x, x, grid=(2, 2))
    with pytest.raises(UnsupportedPattern):
        made(x, grid=(2, 2), mask=Causal())
    with pytest.raises(ConfigError, match="grid"):
        made(x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    made, x = mixer(), tokens((3, 4))
    compiled = torch.compile(made, fullgraph=True, dynamic=True)
    valid = KeyPadding(torch.arange(12).expand(2, 12) < 9)
    for mask in (None, valid):
        found = compiled(x, grid=(3, 4), mask=mask).y
        torch.testing.assert_close(found, made(x, grid=(3, 4), mask=mask).y)
