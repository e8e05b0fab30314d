from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead_core.analysis.calibrate_sinks import (
    act_weights,
    calibrate_sinks,
    choose_heads,
    move_weight,
    redistribute_sinks,
    var_weights,
)
from manyhead_core.analysis.plots_heads import sink_figure
from manyhead_core.analysis.run import Study
from manyhead_core.analysis.sinks import (
    activation_test,
    columns_of,
    find_sinks,
    is_sink,
    massive_activations,
)
from manyhead_core.attention import Attend
from manyhead_core.attention.capture import capture
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError

ALL = torch.ones(1, 1, 1, 1, dtype=torch.bool)
REAL = torch.ones(1, 1, dtype=torch.bool)


class Layer(nn.Module):
    """Weights given from outside, over the values of the hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = Attend(scale=1.0)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        keys = weights.shape[-1]
        eye = torch.eye(keys).expand(*weights.shape[:2], keys, keys)
        value = x[:, None].expand(-1, weights.shape[1], -1, -1)
        out = self.attend(weights.clamp_min(1e-30).log(), eye, value, mask=weights > 0).out
        return out.mean(1)


class Net(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(layers)])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, weights)
        return x.mean(1)


def study(weights: Tensor, x: Tensor | None = None, layers: int = 2, **batch: Any) -> Study:
    x = torch.randn(weights.shape[0], weights.shape[-1], 4) if x is None else x
    net = Net(layers)
    return Study(net, lambda b: net(b["x"], b["w"]), [{"x": x, "w": weights, **batch}])


def sinky(tokens: int = 30, sinks: tuple[int, ...] = (0, 7), mass: float = 0.3) -> Tensor:
    """One sample, two heads: the first gives `mass` to each sink, the second is uniform."""
    torch.manual_seed(0)
    weights = torch.rand(1, 2, tokens, tokens)
    weights[..., list(sinks)] = 0
    weights = weights / weights.sum(-1, keepdim=True) * (1 - mass * len(sinks))
    weights[..., list(sinks)] = mass
    weights[:, 1] = 1 / tokens
    return weights


def value(table: Any, measure: str, head: int, layer: int = 0) -> float:
    rows = table[(table["measure"] == measure) & (table["head"] == head)]
    return float(rows[rows["layer"] == layer]["value"].iloc[0])


def test_column_score_is_the_mean_over_the_rows_that_may_look() -> None:
    causal = torch.ones(6, 6).tril().bool()
    weights = torch.rand(2, 3, 6, 6) * causal
    weights = weights / weights.sum(-1, keepdim=True)
    score = columns_of(weights, causal[None, None], REAL).score
    for j in range(6):
        torch.testing.assert_close(score[..., j], weights[:, :, j:, j].mean(-1))


@pytest.mark.parametrize(("keys", "threshold"), [(10, 0.3), (20, 0.15), (21, 0.1), (50, 0.1)])
def test_the_threshold_is_three_times_uniform_for_few_keys(keys: int, threshold: float) -> None:
    for mass, expected in ((threshold + 1e-3, True), (threshold - 1e-3, False)):
        weights = torch.full((1, 1, 4, keys), (1 - mass) / (keys - 1))
        weights[..., 2] = mass
        found = is_sink(columns_of(weights, ALL, REAL))
        assert found[0, 0].nonzero().ravel().tolist() == ([2] if expected else [])
    weights = torch.full((1, 1, 4, keys), 1 / keys)
    assert is_sink(columns_of(weights, ALL, REAL), 0.5 / keys).all()


def test_padding_does_not_raise_the_number_of_keys() -> None:
    weights = torch.zeros(1, 1, 4, 40)
    weights[..., :4] = torch.tensor([0.7, 0.1, 0.1, 0.1])
    visible = (torch.arange(40) < 4)[None, None, None]
    assert not is_sink(columns_of(weights, visible, REAL)).any()
    assert is_sink(columns_of(weights, ALL, REAL))[0, 0, 0]


def test_rows_of_padding_do_not_count() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Attention(8, 2)])
    nn.init.normal_(net[0].qkv.weight)
    x = torch.randn(1, 9, 8)

    def study(x: Tensor, mask: Any) -> Study:
        return Study(net, lambda b: net[0](b["x"], mask=mask).y.mean(1), [{"x": x}])

    padded = find_sinks(study(x, KeyPadding(torch.tensor([5]))), alpha=0.25)
    alone = find_sinks(study(x[:, :5], None), alpha=0.25)
    np.testing.assert_allclose(padded.table["value"], alone.table["value"], rtol=1e-5)
    np.testing.assert_allclose(padded.positions, alone.positions, rtol=1e-5)
    assert len(alone.positions)
    cut = find_sinks(study(x, KeyPadding(torch.tensor([5]))), alpha=0.25, budget=20)
    np.testing.assert_allclose(cut.table["value"], alone.table["value"], rtol=1e-5)
    heads = [(0, 0), (0, 1)]
    with calibrate_sinks(net, heads, beta=0.1, alpha=0.25), capture(net) as found:
        net[0](x, mask=KeyPadding(torch.tensor([5])))
        net[0](x[:, :5])
    whole, short = found.maps["0.attend"]
    torch.testing.assert_close(whole[:, :, :5, :5], short)


def test_planted_sinks_are_reported() -> None:
    x = torch.randn(1, 30, 4)
    x = x / x.norm(dim=-1, keepdim=True)
    x[0, 0], x[0, 7] = 5 * x[0, 0], 9 * x[0, 7]
    report = find_sinks(study(sinky(), x))
    assert value(report.table, "number", 0) == 2
    assert value(report.table, "number", 1) == 0
    assert value(report.table, "mass", 0) == pytest.approx(0.6, 1e-5)
    assert value(report.table, "mass", 1) == 0
    assert value(report.table, "norm_ratio", 0) == pytest.approx(7, 1e-4)
    assert np.isnan(value(report.table, "norm_ratio", 1))
    first = report.positions[report.positions["layer"] == 0]
    assert first["position"].tolist() == [0, 7]
    assert first["share"].tolist() == [1, 1]
    np.testing.assert_allclose(first["score"], 0.3, rtol=1e-5)
    assert len(report.massive) == 0
    assert len(sink_figure(report.table).axes) == 2
    assert set(find_sinks(study(sinky(), x), hidden=False).table["measure"]) == {"number", "mass"}


def test_sinks_are_the_same_in_blocks_of_rows() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Attention(8, 2), Attention(8, 2)])
    nn.init.normal_(net[0].qkv.weight)

    def forward(batch: Any) -> Tensor:
        return net[1](net[0](batch["x"], mask=Causal()).y, mask=Causal()).y.mean(1)

    own = Study(net, forward, [{"x": torch.randn(3, 25, 8), "group": list("abc")}])
    whole, cut = find_sinks(own), find_sinks(own, budget=200)
    np.testing.assert_allclose(cut.table["value"], whole.table["value"], rtol=1e-6)
    assert value(whole.table, "number", 0) > 0
    np.testing.assert_array_equal(cut.positions["position"], whole.positions["position"])


def test_massive_activations_pass_both_thresholds() -> None:
    state = torch.full((2, 4, 8), 0.15)
    state[0, 1, 3], state[0, 2, 5], state[1, 0, 0] = -400.0, 120.0, 99.0
    found = massive_activations(state).nonzero().tolist()
    assert found == [[0, 1, 3]]
    assert massive_activations(100 * state).sum() == 1
    report = find_sinks(study(torch.full((2, 1, 4, 4), 0.25), state))
    row = report.massive.iloc[0]
    assert row[["sample", "layer", "token", "dim"]].tolist() == [0, 0, 1, 3]
    assert row["value"] == -400
    assert row["ratio"] == pytest.approx(400 / 0.15, 1e-4)


def test_activation_test_compares_with_the_root_mean_square() -> None:
    state = torch.full((1, 3, 1000), 0.1)
    state[0, 0, 4], state[0, 1, 4], state[0, 2, 6] = 100.0, 1.0, 100.0
    root = state.square().mean(-1).sqrt()
    ratio = state[..., 4].abs() / root
    assert activation_test(state, [4, 5])[0].tolist() == [True, False, False]
    tau = float(ratio[0, 1])
    assert activation_test(state, [4], tau - 1e-3)[0].tolist() == [True, True, False]
    assert not activation_test(state, []).any()


def test_act_keeps_the_first_sink_and_the_row_sums() -> None:
    weights = sinky(sinks=(3, 7, 12), mass=0.2)
    found = act_weights(weights, ALL, beta=0.4)
    torch.testing.assert_close(found.sum(-1), weights.sum(-1))
    torch.testing.assert_close(found[:, :, 0], weights[:, :, 0])
    torch.testing.assert_close(found[:, 1], weights[:, 1])
    own, old = found[0, 0, 1:], weights[0, 0, 1:]
    torch.testing.assert_close(own[:, [7, 12]], 0.4 * old[:, [7, 12]])
    removed = 0.6 * (old[:, 7] + old[:, 12])
    others = [j for j in range(30) if j not in (7, 12)]
    share = old[:, others] / old[:, others].sum(-1, keepdim=True)
    torch.testing.assert_close(own[:, others], old[:, others] + removed[:, None] * share)
    assert (own[:, 3] > old[:, 3]).all()
    torch.testing.assert_close(act_weights(weights, ALL, beta=1.0), weights)


def test_act_shows_no_masked_key() -> None:
    causal = torch.ones(30, 30).tril().bool()
    weights = torch.rand(1, 2, 30, 30) * causal
    weights[..., [0, 2]] *= 20
    weights = weights / weights.sum(-1, keepdim=True)
    found = act_weights(weights, causal[None, None])
    assert (found[..., ~causal] == 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 30))
    assert not torch.equal(found, weights)


def test_a_row_with_nothing_to_give_to_stays() -> None:
    weights = torch.tensor([[[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]]])
    givers = torch.tensor([False, True, False])
    found = move_weight(weights, givers, ~givers, 0.5)
    torch.testing.assert_close(found, torch.tensor([[[[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]]]))


def var_case() -> tuple[Tensor, Tensor]:
    """Heads: on the subset; mostly on its sink; hardly on the subset. Keys 10 to 29 are it."""
    weights = torch.zeros(1, 3, 30, 30)
    weights[:, 0, :, 0], weights[:, 0, :, 10] = 0.3, 0.2
    weights[:, 0, :, 11:] = 0.5 / 19
    weights[:, 1, :, 0], weights[:, 1, :, 10], weights[:, 1, :, 11:] = 0.3, 0.5, 0.2 / 19
    weights[:, 2, :, 0], weights[:, 2, :, 10:] = 0.9, 0.1 / 20
    return weights, (torch.arange(30) >= 10)[None]


def test_var_moves_sinks_to_the_subset_of_heads_that_look_at_it() -> None:
    weights, subset = var_case()
    found = var_weights(weights, ALL, subset)
    torch.testing.assert_close(found.sum(-1), weights.sum(-1))
    torch.testing.assert_close(found[:, 1:], weights[:, 1:])
    own = found[0, 0]
    torch.testing.assert_close(own[:, [0, 10]], 0.6 * weights[0, 0][:, [0, 10]])
    torch.testing.assert_close(own[:, 11:], torch.full((30, 19), (0.5 + 0.4 * 0.5) / 19))
    assert (own[:, 1:10] == 0).all()
    on_all = var_weights(weights, ALL, subset, rho=1.0, min_mass=0.0)
    assert all(not torch.equal(on_all[:, h], weights[:, h]) for h in range(3))


def test_calibration_changes_the_named_heads_only_and_ends() -> None:
    weights = sinky(sinks=(0, 7)).expand(2, 2, 30, 30).clone()
    weights[:, 1] = weights[:, 0]
    own = study(weights)
    batch = own.batches[0]
    plain = own.forward(batch)
    with calibrate_sinks(own.model, [(1, 1)]), capture(own.model) as found:
        changed = own.forward(batch)
    expected = act_weights(weights, ALL)
    maps = found.maps
    torch.testing.assert_close(maps["layers.0.attend"][0], weights)
    torch.testing.assert_close(maps["layers.1.attend"][0][:, 0], weights[:, 0])
    torch.testing.assert_close(maps["layers.1.attend"][0][:, 1], expected[:, 1])
    assert not torch.allclose(changed, plain)
    torch.testing.assert_close(own.forward(batch), plain)


def test_redistribution_skips_the_last_layer() -> None:
    weights, subset = var_case()
    own = study(weights, layers=3)
    batch = own.batches[0]
    expected = var_weights(weights, ALL, subset)
    for keys in (subset, subset[0], range(10, 30)):
        with redistribute_sinks(own.model, keys), capture(own.model) as found:
            own.forward(batch)
        first, second, last = (maps[0] for maps in found.maps.values())
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(second, expected)
        torch.testing.assert_close(last, weights)


def test_heads_are_chosen_if_their_calibration_alone_raises_accuracy() -> None:
    weights = sinky(sinks=(0, 7), mass=0.4).expand(12, 2, 30, 30).clone()
    weights[:, 1] = 1 / 30
    x = torch.zeros(12, 30, 2)
    # Sink 7 speaks for the wrong class, all others for the right one, not quite as loudly.
    labels = torch.arange(12) % 2
    x[torch.arange(12), :, labels] = 1.0
    x[:, 0] = 0
    x[torch.arange(12), 7, 1 - labels] = 4.0
    x[torch.arange(12), 7, labels] = 0.0
    own = study(weights, x, layers=1, label=labels)
    heads, table = choose_heads(own, draws=20)
    assert heads == [(0, 0)]
    assert table["baseline"].tolist() == [0, 0]
    assert table["value"].tolist() == [1, 0]
    assert table["chosen"].tolist() == [True, False]
    with calibrate_sinks(own.model, heads):
        logits = own.forward(own.batches[0])
    assert (logits.argmax(1) == labels).all()


def test_options_out_of_range_are_refused() -> None:
    net = Net(2)
    with (
        pytest.raises(ConfigError, match="beta: 2"),
        calibrate_sinks(net, [], beta=2.0),
    ):
        pass
    with pytest.raises(ConfigError, match="keep: -1"), redistribute_sinks(net, [0], keep=-1):
        pass
    with (
        pytest.raises(ConfigError, match="layers: 4 is not a site"),
        calibrate_sinks(net, [(4, 0)]),
    ):
        pass
    with pytest.raises(ConfigError, match="hidden: 'stem' is not a module"):
        find_sinks(study(sinky()), hidden={0: "stem"})


def test_a_click_model_can_be_searched_and_calibrated() -> None:
    torch.manual_seed(0)
    net = AutoInt(AutoIntConfig(num_features=40, num_fields=5, dim=8, widths=(8, 8), num_heads=2))
    nn.init.normal_(net.embedding.table.weight, std=3.0)
    inputs = {**net.example_inputs(12), "label": torch.arange(12) % 2}
    own = Study(net, lambda b: net(b["index"], b["value"]).logits, [inputs])
    report = find_sinks(own)
    assert report.table["value"].notna().any()
    assert {"number", "mass", "norm_ratio"} == set(report.table["measure"])
    _, table = choose_heads(own, alpha=0.25, draws=20)
    assert len(table) == 4
    every = [(layer, head) for layer in range(2) for head in range(2)]
    plain = own.forward(inputs)
    with calibrate_sinks(net, every, alpha=0.1), capture(net) as found:
        assert not torch.allclose(own.forward(inputs), plain)
    for maps in found.maps.values():
        torch.testing.assert_close(maps[0].sum(-1), torch.ones(12, 2, 5))
