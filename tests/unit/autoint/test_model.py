from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyhead.autoint import AutoInt, AutoIntConfig
from manyhead.autoint.baselines import MLP, BaselineConfig, FactorisationMachine, LogisticRegression
from manyhead.autoint.model import FieldEmbedding
from manyhead_core.attention import MapRequest
from manyhead_core.errors import ConfigError


def rows(batch: int = 5, single: int = 3, features: int = 20) -> tuple[Tensor, Tensor, tuple]:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(features, (batch, single), generator=generator, dtype=torch.int32)
    ids = torch.randint(features, (batch, 4), generator=generator, dtype=torch.int32)
    weights = torch.rand(batch, 4, generator=generator)
    return index, torch.rand(batch, single, generator=generator), ((ids, weights),)


def small(**options: object) -> AutoInt:
    torch.manual_seed(0)
    sizes = {"num_features": 20, "num_fields": 4, "dim": 6, "widths": (8, 4)}
    return AutoInt(AutoIntConfig(**sizes | options)).eval()


@pytest.mark.parametrize(("fields", "expected"), [(39, 40_513), (23, 39_489), (7, 38_465)])
def test_number_of_parameters_beside_the_table(fields: int, expected: int) -> None:
    net = AutoInt(AutoIntConfig(num_features=1, num_fields=fields))
    assert sum(p.numel() for p in net.parameters()) - 16 == expected


def test_tower_of_criteo_adds_410801_parameters() -> None:
    plain = AutoInt(AutoIntConfig(num_features=1, num_fields=39))
    plus = AutoInt(AutoIntConfig(num_features=1, num_fields=39, tower=(400, 400)))
    count = [sum(p.numel() for p in net.parameters()) for net in (plain, plus)]
    assert count[1] - count[0] == 410_801


def test_a_layer_is_the_formula_of_the_paper() -> None:
    net = small(widths=(8,))
    x = net.embedding(*rows())
    layer = net.layers[0]
    query, key, value, residual = torch.relu(layer.project(x)).chunk(4, -1)
    mixed = torch.empty_like(residual)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 4**0.5
        mixed[..., part] = scores.softmax(-1) @ value[..., part]
    mixed = torch.relu(mixed + residual)
    centred = mixed - mixed.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_form_of_the_paper_has_no_bias_norm_scale_or_activation() -> None:
    net = small(widths=(8,), qkv_activation="none", qkv_bias=False, scale="none", norm="none")
    x = net.embedding(*rows())
    query, key, value, residual = net.layers[0].project(x).chunk(4, -1)
    heads = [
        (query[..., s] @ key[..., s].transpose(1, 2)).softmax(-1) @ value[..., s]
        for s in (slice(0, 4), slice(4, 8))
    ]
    expected = torch.relu(torch.cat(heads, -1) + residual)
    torch.testing.assert_close(net.layers[0](x)[0], expected)


def test_missing_values_are_zero_vectors_and_lists_are_weighted_means() -> None:
    table = FieldEmbedding(20, 6)
    index, value, ((ids, weights),) = rows()
    value[0, 1] = 0
    weights[2] = 0
    fields = table(index, value, ((ids, weights),))
    assert not fields[0, 1].any()
    assert not fields[2, 3].any(), "a row without any entry gives zeros, not NaN"
    expected = (table.table(ids[1]) * weights[1, :, None]).sum(0) / weights[1].sum()
    torch.testing.assert_close(fields[1, 3], expected)


def test_gradients_are_finite_when_a_list_is_empty() -> None:
    net = small().train()
    index, value, ((ids, weights),) = rows()
    net(index, value, ((ids, torch.zeros_like(weights)),)).logits.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_maps_are_distributions_of_the_forward_pass() -> None:
    net = small()
    maps = net.attention_maps(*rows())
    assert [tuple(m.shape) for m in maps] == [(5, 2, 4, 4)] * 2
    for layer in maps:
        torch.testing.assert_close(layer.sum(-1), torch.ones(5, 2, 4))
    means = net.attention_maps(*rows(), MapRequest(reduce="head_mean"))
    torch.testing.assert_close(means[0], maps[0].mean(1))


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(0, 6), heads=st.sampled_from([1, 2, 4]), residual=st.booleans())
def test_any_batch_gives_that_many_logits(batch: int, heads: int, residual: bool) -> None:
    net = small(num_heads=heads, residual=residual)
    assert net(*rows(batch)).logits.shape == (batch,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "widths: 8 is no multiple of num_heads=3; use 9"),
        ({"widths": ()}, "widths must name at least one layer"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"tower": (0,)}, "tower: sizes must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_logistic_regression_is_a_weighted_sum() -> None:
    net = LogisticRegression(BaselineConfig(num_features=20, num_fields=4))
    torch.nn.init.normal_(net.linear.table.weight)
    index, value, lists = rows()
    weight = net.linear.table.weight[:, 0]
    means = (weight[lists[0][0]] * lists[0][1]).sum(1) / lists[0][1].sum(1)
    expected = (weight[index] * value).sum(1) + means + net.bias
    torch.testing.assert_close(net(index, value, lists).logits, expected)


def test_factorisation_machine_sums_all_pairs() -> None:
    net = FactorisationMachine(BaselineConfig(num_features=20, num_fields=4, dim=6))
    torch.nn.init.normal_(net.embedding.table.weight)
    inputs = rows()
    fields = net.embedding(*inputs)
    pairs = sum((fields[:, i] * fields[:, j]).sum(-1) for i, j in combinations(range(4), 2))
    torch.testing.assert_close(net(*inputs).logits, pairs, rtol=1e-4, atol=1e-4)


def test_mlp_scores_rows() -> None:
    net = MLP(BaselineConfig(num_features=20, num_fields=4, hidden=(5,)))
    assert net(*rows()).logits.shape == (5,)
    with pytest.raises(ConfigError, match="hidden must name at least one layer"):
        BaselineConfig(hidden=())


def test_double_precision_stays_double() -> None:
    index, value, lists = rows()
    net = small(tower=(5,))
    single = net(index, value, lists).logits
    net.double()
    doubled = net(index, value.double(), [(ids, w.double()) for ids, w in lists]).logits
    assert doubled.dtype == torch.float64
    torch.testing.assert_close(doubled.float(), single)
