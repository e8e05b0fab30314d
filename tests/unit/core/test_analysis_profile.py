from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead_core.analysis.layout import Layout, layout_of
from manyhead_core.analysis.plots_heads import head_heatmap, ring_figure
from manyhead_core.analysis.profile import Profile, attention_profile
from manyhead_core.analysis.run import Study
from manyhead_core.attention import Attend
from manyhead_core.attention.capture import capture
from manyhead_core.attention.masks import Causal, Dense, KeyPadding
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError, DataError


class Planted(nn.Module):
    """One layer whose weights are those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = Attend(scale=1.0)

    def forward(self, weights: Tensor) -> Tensor:
        keys = weights.shape[-1]
        eye = torch.eye(keys).expand(*weights.shape[:2], keys, keys)
        mask = weights > 0
        return self.attend(weights.clamp_min(1e-30).log(), eye, eye, mask=mask).out.mean((1, 2))


def planted(weights: Tensor, groups: Any = None, parts: int = 1) -> Study:
    batches = [{"w": part, "group": groups} for part in weights.chunk(parts)]
    net = Planted()
    return Study(net, lambda batch: net(batch["w"]), batches)


def random_weights(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return (2 * torch.randn(shape)).softmax(-1)


def value(profile: Profile, measure: str, head: int = 0) -> float:
    table = profile.table
    return float(table[(table["measure"] == measure) & (table["head"] == head)]["value"].iloc[0])


def test_uniform_attention_has_the_entropy_of_its_keys() -> None:
    profile = attention_profile(planted(torch.full((2, 1, 7, 7), 1 / 7)))
    assert value(profile, "entropy") == pytest.approx(math.log(7))
    assert value(profile, "entropy_normalised") == pytest.approx(1)
    assert value(profile, "share_self") == pytest.approx(1 / 7)


def test_entropy_is_normalised_by_the_visible_keys() -> None:
    causal = torch.ones(6, 6).tril()
    weights = (causal / causal.sum(-1, keepdim=True)).expand(1, 1, 6, 6)
    profile = attention_profile(planted(weights))
    assert value(profile, "entropy_normalised") == pytest.approx(1)
    expected = np.mean([math.log(k) for k in range(1, 7)])
    assert value(profile, "entropy") == pytest.approx(expected)
    # One key that weight has almost left counts as visible, as the mask says.
    net = nn.ModuleList([Attend(scale=1.0)])
    scores = torch.tensor([0.0, 0.0, -500.0]).expand(1, 1, 3, 3)
    eye = torch.eye(3)[None, None]
    own = Study(net, lambda b: net[0](b["s"], eye, eye).out.mean((1, 2)), [{"s": scores}])
    found = value(attention_profile(own), "entropy_normalised")
    assert found == pytest.approx(math.log(2) / math.log(3))


def test_measures_follow_their_formulas_on_random_maps() -> None:
    weights = random_weights(3, 2, 12, 12)
    layout = Layout.grid((3, 4), spacing=(2.0, 0.5))
    profile = attention_profile(planted(weights), layouts=layout)
    places = np.array([(2.0 * i, 0.5 * j) for i in range(3) for j in range(4)])
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    p = weights.double().numpy()
    for head in range(2):
        own = p[:, head]
        assert value(profile, "entropy", head) == pytest.approx(
            -(own * np.log(own)).sum(-1).mean(), 1e-5
        )
        assert value(profile, "distance", head) == pytest.approx((own * apart).sum(-1).mean(), 1e-5)
        diagonal = np.trace(own, axis1=1, axis2=2).mean() / 12
        assert value(profile, "share_self", head) == pytest.approx(diagonal, 1e-5)
    np.testing.assert_allclose(profile.received[0], p.mean((0, 2)), rtol=1e-5)


def test_rings_hold_the_weight_at_each_chebyshev_distance() -> None:
    weights = random_weights(2, 2, 12, 12)
    profile = attention_profile(planted(weights), layouts=Layout.grid((3, 4)))
    expected = np.zeros((2, 4))
    for i in range(12):
        for j in range(12):
            ring = max(abs(i // 4 - j // 4), abs(i % 4 - j % 4))
            expected[:, ring] += weights[:, :, i, j].mean(0).numpy() / 12
    np.testing.assert_allclose(profile.rings[0], expected, rtol=1e-5)
    np.testing.assert_allclose(profile.rings[0].sum(1), 1, rtol=1e-5)


def test_a_planted_distance_is_found() -> None:
    weights = torch.zeros(1, 1, 8, 8)
    for i in range(8):
        weights[0, 0, i, i + 3 if i < 4 else i - 3] = 1
    profile = attention_profile(planted(weights), layouts=Layout.grid((8,), spacing=1.5))
    assert value(profile, "distance") == pytest.approx(4.5)
    np.testing.assert_allclose(profile.rings[0][0], [0, 0, 0, 1, 0, 0, 0, 0])
    assert value(profile, "entropy") == 0
    assert value(profile, "share_self") == 0


def test_class_and_memory_tokens_have_shares_and_no_place() -> None:
    weights = random_weights(2, 1, 7, 7)
    layout = Layout.grid((2, 2), class_tokens=1, memory_tokens=2)
    profile = attention_profile(planted(weights), layouts=layout)
    p = weights[:, 0].double().numpy()
    assert value(profile, "share_class") == pytest.approx(p[:, :, 0].mean(), 1e-5)
    assert value(profile, "share_memory") == pytest.approx(p[:, :, 1:3].sum(-1).mean(), 1e-5)
    places = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    inside = p[:, 3:, 3:] / p[:, 3:, 3:].sum(-1, keepdims=True)
    assert value(profile, "distance") == pytest.approx((inside * apart).sum(-1).mean(), 1e-5)
    assert profile.rings[0].shape == (1, 2)
    assert profile.rings[0].sum() == pytest.approx(p[:, 3:, 3:].sum(-1).mean(), 1e-5)


def test_padding_gets_nothing_and_does_not_count() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Attention(8, 2)])
    lengths = torch.tensor([5, 3])
    padding = torch.arange(5) >= lengths[:, None]
    x = torch.randn(2, 5, 8)

    def study(x: Tensor, mask: Any) -> Study:
        return Study(net, lambda b: net[0](b["x"], mask=mask).y.mean(1), [{"x": x}])

    masked = study(x, KeyPadding(lengths))
    profile = attention_profile(masked, layouts=Layout(padding=padding))
    assert value(profile, "share_padding") == 0
    alone = [attention_profile(study(x[n : n + 1, :m], None)) for n, m in ((0, 5), (1, 3))]
    for measure in ("entropy", "entropy_normalised", "distance", "share_self"):
        expected = np.mean([value(one, measure, 1) for one in alone])
        assert value(profile, measure, 1) == pytest.approx(expected, 1e-5)
    both = np.stack([one.received[0][:, :3] for one in alone]).mean(0)
    np.testing.assert_allclose(profile.received[0][:, :3], both, rtol=1e-5)
    np.testing.assert_allclose(profile.received[0][:, 3:], alone[0].received[0][:, 3:], rtol=1e-5)
    leaking = attention_profile(study(x, None), layouts=Layout(padding=padding))
    assert value(leaking, "share_padding") > 0.1


def test_blind_rows_do_not_count() -> None:
    weights = random_weights(1, 1, 4, 4)
    whole = value(attention_profile(planted(weights[:, :, :, :])), "entropy")
    rows = -(weights * weights.log()).sum(-1)[0, 0]
    blind = weights.clone()
    blind[:, :, 2] = 0
    found = value(attention_profile(planted(blind)), "entropy")
    assert found == pytest.approx(float(rows[[0, 1, 3]].mean()), 1e-5)
    assert found != pytest.approx(whole, 1e-4)


@pytest.mark.parametrize("mask", [None, Causal()])
def test_blocks_of_rows_give_the_profile_of_whole_maps(mask: Any) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Attention(8, 2), Attention(8, 4)])

    def forward(batch: Any) -> Tensor:
        x = net[0](batch["x"], mask=mask).y
        return net[1](x, mask=mask).y.mean(1)

    own = Study(net, forward, [{"x": 9 * torch.randn(2, 9, 8)}, {"x": 9 * torch.randn(1, 6, 8)}])
    whole = attention_profile(own)
    cut = attention_profile(own, budget=50)
    np.testing.assert_allclose(cut.table["value"], whole.table["value"], rtol=1e-6)
    for layer in (0, 1):
        np.testing.assert_allclose(cut.rings[layer], whole.rings[layer], rtol=1e-6)
        np.testing.assert_allclose(cut.received[layer], whole.received[layer], rtol=1e-6)
    assert whole.rings[1].shape == whole.received[1].shape == (4, 9)


def test_long_inputs_are_never_held_whole() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Attention(8, 2)])
    own = Study(net, lambda b: net[0](b["x"]).y.mean(1), [{"x": torch.randn(1, 600, 8)}])
    from manyhead_core.analysis.stream import stream_maps

    sizes = [
        rows.weights.numel() for rows in stream_maps(own, own.batches[0], {0: "0.attend"}, 50_000)
    ]
    assert max(sizes) <= 50_000
    assert sum(sizes) == 2 * 600 * 600


def test_cross_attention_needs_the_places_of_the_queries() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Attention(8, 2)])
    context = torch.randn(2, 6, 8)
    own = Study(net, lambda b: net[0](b["x"], context).y.mean(1), [{"x": torch.randn(2, 4, 8)}])
    plain = attention_profile(own)
    assert set(plain.table["measure"]) == {"entropy", "entropy_normalised"}
    assert plain.rings == {}
    assert len(plain.ring_table) == 0
    layout = Layout.grid((2, 3))
    queries = Layout(cells=torch.tensor([[0.0, 0.0], [0, 1], [1, 1], [1, 2]]))
    placed = Layout(layout.cells, query=queries)
    found = attention_profile(own, layouts={0: placed})
    with capture(net) as maps, torch.no_grad():
        own.forward(own.batches[0])
    p = maps.maps["0.attend"][0]
    apart = torch.cdist(queries.cells, layout.cells)
    expected = (p * apart).sum(-1).mean((0, 2))
    assert value(found, "distance", 1) == pytest.approx(float(expected[1]), 1e-5)
    assert "share_self" not in set(found.table["measure"])


def test_windows_are_averaged_within_their_sample() -> None:
    weights = random_weights(6, 1, 4, 4)
    net = Planted()
    one = [{"x": torch.zeros(2, 1), "group": ["a", "b"]}]
    folded = Study(net, lambda batch: net(weights)[:2], one)
    profile = attention_profile(folded, layouts=Layout.grid((2, 2)))
    assert value(profile, "entropy") == pytest.approx(
        value(attention_profile(planted(weights)), "entropy"), 1e-6
    )


def test_intervals_of_rings_are_about_their_values() -> None:
    torch.manual_seed(0)
    weights = torch.randn(24, 1, 4, 4).softmax(-1)
    profile = attention_profile(planted(weights, [n // 2 for n in range(24)]), draws=100)
    assert (profile.ring_table["lo"] < profile.ring_table["value"]).all()
    assert (profile.ring_table["hi"] > profile.ring_table["value"]).all()
    np.testing.assert_allclose(profile.ring_table["value"], profile.rings[0].ravel())


def test_layouts_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="it has 9 tokens, the layer has 4"):
        attention_profile(planted(random_weights(1, 1, 4, 4)), layouts=Layout.grid((3, 3)))
    assert layout_of(lambda batch, layer: Layout(class_tokens=[layer]), None, 3).class_tokens == [3]


def test_a_click_model_is_profiled_by_field() -> None:
    torch.manual_seed(0)
    net = AutoInt(AutoIntConfig(num_features=40, num_fields=5, dim=8, widths=(8, 8), num_heads=2))
    inputs = net.example_inputs(12)
    own = Study(net, lambda batch: net(batch["index"], batch["value"]).logits, [inputs])
    profile = attention_profile(own)
    maps = net.eval().attention_maps(**inputs)
    np.testing.assert_allclose(
        profile.received[1], maps[1].mean((0, 2)).numpy(), rtol=1e-5, atol=1e-6
    )
    axes = head_heatmap(profile.table, "entropy_normalised").axes[0]
    assert len(axes.get_xticks()) == 2
    with pytest.raises(DataError, match="'none' is not in the table; it has entropy"):
        head_heatmap(profile.table, "none")
    figure = ring_figure(profile.ring_table, [(0, 0), (1, 1)])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), profile.rings[0][0])


def test_masks_that_differ_by_sample_are_read() -> None:
    allowed = torch.rand(2, 1, 5, 5) > 0.4
    allowed[..., 0] = True
    net = nn.ModuleList([Attention(8, 2)])
    own = Study(
        net, lambda b: net[0](b["x"], mask=Dense(allowed)).y.mean(1), [{"x": torch.zeros(2, 5, 8)}]
    )
    found = value(attention_profile(own), "entropy")
    assert found == pytest.approx(float(allowed.sum(-1).double().log().mean()), 1e-5)
