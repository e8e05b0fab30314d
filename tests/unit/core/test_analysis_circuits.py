"""Circuits of known weights, and how many pairs a head can hold."""

import numpy as np
import pytest
import torch
from torch import nn

from manyhead_core.analysis.capacity import capacity
from manyhead_core.analysis.circuits import HeadWeights, circuits, cka, spectrum, weights_of
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def layer(dim: int = 8, heads: int = 2, **options) -> Attention:
    torch.manual_seed(0)
    net = Attention(dim, heads, qkv_bias=False, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_()
    return net


@pytest.mark.parametrize("options", [{}, {"num_key_heads": 1}, {"head_dim": 3}])
def test_weights_of_a_layer_give_its_scores_and_outputs(options: dict[str, int]) -> None:
    net = layer(**options)
    (found,) = weights_of(net)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    query, key, value = net.project(x, x)
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    scores = x @ (found.query @ found.key.mT) @ x.mT
    torch.testing.assert_close(scores, (query @ key.mT)[0].detach())
    written = (x @ found.value @ found.output).sum(0)
    expected = net.proj(value.transpose(1, 2).flatten(2)) - net.proj.bias
    torch.testing.assert_close(written, expected[0].detach())


def test_spectrum_equals_that_of_the_large_product() -> None:
    left, right = torch.randn(2, 9, 3).double(), torch.randn(2, 3, 9).double()
    expected = torch.linalg.svdvals(left @ right)[:, :3]
    torch.testing.assert_close(spectrum(left, right), expected)


def test_circuit_numbers_equal_those_of_the_large_product() -> None:
    net = layer()
    (weights,) = weights_of(net)
    found = circuits(net)
    large = weights.value @ weights.output
    rows = found.table.query("circuit == 'ov'")
    for head, matrix in enumerate(large):
        row, norm = rows.iloc[head], float(torch.linalg.matrix_norm(matrix))
        assert row["norm"] == pytest.approx(norm)
        assert row["copying"] == pytest.approx(float(matrix.trace()) / norm)
        even = float(torch.linalg.matrix_norm((matrix + matrix.T) / 2))
        assert row["symmetric"] == pytest.approx(even**2 / norm**2)
    np.testing.assert_allclose(found.overlap["ov"], cka(large), rtol=1e-9)


def known() -> HeadWeights:
    """Head 0 copies and is symmetric, head 1 rotates, both in 4 dimensions."""
    eye = torch.eye(4)
    turn = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
    first = torch.stack([eye, eye])
    return HeadWeights(first, torch.stack([eye, turn.T]), first, torch.stack([2 * eye, turn]))


def test_circuits_of_known_heads() -> None:
    found = circuits([known()])
    table = found.table.set_index(["layer", "head", "circuit"])
    copy, turn = table.loc[0, 0, "ov"], table.loc[0, 1, "ov"]
    assert copy["copying"] == pytest.approx(8 / 4)
    assert copy["symmetric"] == pytest.approx(1)
    assert copy["norm"] == pytest.approx(4)
    assert copy["largest"] == pytest.approx(2)
    assert copy["rank"] == pytest.approx(4)
    assert turn["copying"] == pytest.approx(0)
    assert turn["symmetric"] == pytest.approx(0)
    assert table.loc[0, 1, "qk"]["symmetric"] == pytest.approx(0)
    np.testing.assert_allclose(found.spectra["ov"][0], [[2] * 4, [1] * 4])
    assert found.heads == [(0, 0), (0, 1)]
    np.testing.assert_allclose(np.diag(found.overlap["ov"]), 1)


def test_cka_is_one_up_to_rotation_and_scale_and_zero_for_separate_inputs() -> None:
    matrix = torch.randn(6, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    found = cka([matrix, 3 * matrix @ rotation])
    torch.testing.assert_close(found, torch.ones(2, 2, dtype=torch.float64))
    one, other = torch.zeros(2, 6, 2, dtype=torch.float64)
    one[0, 0], one[1, 0] = 1, -1
    other[2, 0], other[3, 0] = 1, -1
    assert float(cka([one, other])[0, 1]) == pytest.approx(0)


def test_circuits_cover_all_layers_and_need_one() -> None:
    found = circuits(nn.ModuleList([layer(), layer(heads=4)]))
    assert len(found.table) == 2 * (2 + 4)
    assert found.overlap["qk"].shape == (6, 6)
    assert [len(part) for part in found.spectra["qk"]] == [2, 4]
    with pytest.raises(ConfigError, match="no layer of plain attention"):
        circuits(nn.Linear(2, 2))


def test_capacity_of_linear_retrieval_grows_in_proportion_to_the_width() -> None:
    found = [capacity("linear", width, trials=4).pairs for width in (32, 64, 128)]
    # cosine = d / sqrt(d^2 + n d) up to spread: 0.9 at n = 0.23 d.
    np.testing.assert_allclose(np.array(found) / [32, 64, 128], 0.23, rtol=0.35)
    assert 1.6 < found[2] / found[1] < 2.5


def test_capacity_of_softmax_exceeds_that_of_linear() -> None:
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    soft = capacity("softmax", 64, counts=counts, trials=2)
    linear = capacity("linear", 64, counts=counts, trials=2)
    overlapping = capacity("linear_elu", 64, counts=counts, trials=2)
    assert soft.pairs > 4 * linear.pairs > 8 * overlapping.pairs
    assert soft.table["cosine"].iloc[0] == pytest.approx(1)
    assert list(linear.table["n"]) == list(counts)


def test_capacity_marks_what_is_never_and_always_lost() -> None:
    assert capacity(lambda q, k, v: v, 4, counts=(1, 2), trials=2).pairs == float("inf")
    assert capacity(lambda q, k, v: -v, 4, counts=(1, 2), trials=2).pairs == 0.0
