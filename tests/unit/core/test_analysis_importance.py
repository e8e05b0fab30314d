from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead_core.analysis.importance import (
    ABLATION,
    head_importance,
    importance_rows,
    rank_agreement,
    ranked_heads,
)
from manyhead_core.analysis.outputs import (
    cosine_change,
    embedding,
    jensen_shannon,
    probabilities,
    sample_loss,
    true_probability,
)
from manyhead_core.analysis.plots_heads import head_heatmap, pruning_figure
from manyhead_core.analysis.profile import attention_profile
from manyhead_core.analysis.pruning import accuracy, pruning_curve
from manyhead_core.analysis.run import Study
from manyhead_core.analysis.sinks import find_sinks
from manyhead_core.analysis.soft_ablation import soft_ablation, soften
from manyhead_core.attention.capture import capture
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixers.lsda import LongShortAttention
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.registry import build
from manyhead_core.errors import ConfigError

HEADS = ((0, 0), (0, 1), (1, 0), (1, 1))


class Net(nn.Module):
    """Two residual layers of two heads, and three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Attention(8, 2), Attention(8, 2)])
        self.out = nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, mask=mask).y
        return self.out(x.mean(1))


def study(net: nn.Module, batches: int = 2, size: int = 6, mask: Any = None) -> Study:
    torch.manual_seed(1)
    parts = [
        {"x": torch.randn(size, 4, 8), "label": torch.randint(3, (size,))} for _ in range(batches)
    ]
    return Study(net, lambda batch: net(batch["x"], mask), parts)


def without(net: Net, layer: int, head: int) -> Net:
    """A copy whose output projection ignores a head."""
    copy = Net()
    copy.load_state_dict(net.state_dict())
    with torch.no_grad():
        copy.layers[layer].proj.weight[:, 4 * head : 4 * head + 4] = 0
    return copy


def value(table: pd.DataFrame, layer: int, head: int, measure: str) -> float:
    rows = table[(table["layer"] == layer) & (table["head"] == head)]
    return float(rows[rows["measure"] == measure]["value"].iloc[0])


@torch.no_grad()
def test_ablation_equals_a_model_with_the_head_cut_out() -> None:
    net = Net()
    own = study(net)
    table = head_importance(own, draws=20)
    x = torch.cat([batch["x"] for batch in own.batches])
    labels = torch.cat([batch["label"] for batch in own.batches])
    p = net(x).softmax(1)
    for layer, head in ((0, 1), (1, 0)):
        q = without(net, layer, head)(x).softmax(1)
        change = -(q[range(12), labels].log() - p[range(12), labels].log())
        assert value(table, layer, head, "loss_change") == pytest.approx(float(change.mean()), 1e-4)
        drop = p[range(12), labels] - q[range(12), labels]
        found = value(table, layer, head, "probability_drop")
        assert found == pytest.approx(float(drop.mean()), 1e-4)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
        found = value(table, layer, head, "divergence")
        assert found == pytest.approx(float(js.mean()), rel=1e-3, abs=1e-7)


@torch.no_grad()
def test_embedding_change_is_that_of_the_pooled_layer_outputs() -> None:
    net = Net()
    own = study(net, batches=1)
    table = head_importance(own, draws=20, pool=1)
    x = own.batches[0]["x"]

    def outputs(model: Net) -> list[Tensor]:
        first = model.layers[0](x).y
        return [first[:, 1], model.layers[1](x + first).y[:, 1]]

    for before, after, measure in zip(
        outputs(net), outputs(without(net, 0, 1)), ("layer", "last"), strict=True
    ):
        expected = float((1 - F.cosine_similarity(before, after)).mean())
        found = value(table, 0, 1, f"embedding_{measure}")
        assert found == pytest.approx(expected, rel=1e-3)
    last = [value(table, 1, 0, f"embedding_{measure}") for measure in ("layer", "last")]
    assert last[0] == last[1]


@torch.no_grad()
def test_gradient_score_is_the_mean_absolute_slope_in_the_gate() -> None:
    net = Net()
    own = study(net)
    table = head_importance(own, draws=20, pool=None)
    step = 1e-2
    slopes = []
    for batch in own.batches:
        losses = []
        for factor in (1 + step, 1 - step):
            scaled = Net()
            scaled.load_state_dict(net.state_dict())
            with torch.no_grad():
                scaled.layers[0].proj.weight[:, 4:] *= factor
                losses.append(sample_loss(scaled(batch["x"]), batch["label"]))
        slopes.append((losses[0] - losses[1]).abs() / (2 * step))
    assert value(table, 0, 1, "gradient") == pytest.approx(float(torch.cat(slopes).mean()), 1e-2)
    assert set(table["measure"]) == {*ABLATION, "gradient"}


def test_a_head_without_output_has_no_importance() -> None:
    table = head_importance(study(without(Net(), 1, 1)), draws=20)
    dead = table[(table["layer"] == 1) & (table["head"] == 1)]
    assert len(dead) == 6
    assert (dead["value"] == 0).all()
    other = table[(table["layer"] == 1) & (table["head"] == 0)]
    assert (other["value"] != 0).all()


def test_divergence_is_between_zero_and_ln_two() -> None:
    sure = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    other = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(jensen_shannon(sure, other), torch.tensor([math.log(2), 0.0]))


def test_two_classes_are_one_logit() -> None:
    logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1, 1])
    p = torch.sigmoid(logits).double()
    torch.testing.assert_close(probabilities(logits[:, None]), torch.stack([1 - p, p], 1))
    torch.testing.assert_close(true_probability(probabilities(logits), labels), p)
    torch.testing.assert_close(sample_loss(logits, labels).double(), -p.log())


def test_dense_predictions_are_averaged_over_places() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    expected = F.cross_entropy(logits, labels, reduction="none").mean((1, 2))
    torch.testing.assert_close(sample_loss(logits, labels), expected)
    p = probabilities(logits)
    assert true_probability(p, labels).shape == jensen_shannon(p, p.flip(1)).shape == (2,)


def test_equal_embeddings_do_not_differ_even_at_zero() -> None:
    zero = torch.zeros(2, 3)
    assert cosine_change(zero, zero).tolist() == [0.0, 0.0]
    picture = torch.randn(2, 3, 4, 4)
    with pytest.raises(ConfigError, match="pool: stem gives"):
        embedding(picture, "mean", "stem")
    assert embedding(picture, lambda found: found.mean((2, 3)), "stem").shape == (2, 3)


def test_windows_of_a_sample_share_its_gate() -> None:
    torch.manual_seed(0)
    mixer = LongShortAttention(16, 2, group_size=2)
    head = nn.Linear(16, 3)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)

    def forward(batch: Any) -> Tensor:
        return head(mixer(batch["x"], grid=(4, 4)).y.mean(1))

    parts = [{"x": torch.randn(3, 16, 16), "label": torch.tensor([0, 1, 2])}]
    net = nn.ModuleList([nn.ModuleList([mixer]), head])
    rows = importance_rows(Study(net, forward, parts), pool=None)
    slopes = rows[rows["measure"] == "gradient"]
    one = [{"x": parts[0]["x"][1:2], "label": torch.tensor([1])}]
    alone = importance_rows(Study(net, forward, one), pool=None)
    expected = alone[alone["measure"] == "gradient"]["value"]
    np.testing.assert_allclose(slopes[slopes["sample"] == 1]["value"], expected, rtol=1e-4)


def test_rank_agreement_is_spearman() -> None:
    table = head_importance(study(Net()), draws=20)
    found = rank_agreement(table)
    wide = table.pivot(index=["layer", "head"], columns="measure", values="value")
    expected = spearmanr(wide["loss_change"], wide["gradient"]).statistic
    assert found.loc["loss_change", "gradient"] == pytest.approx(expected)
    assert found.loc["gradient", "gradient"] == pytest.approx(1)
    flat = table.assign(value=table["value"].where(table["measure"] != "divergence", 1.0))
    assert rank_agreement(flat).loc["divergence"].isna().all()


def test_greedy_pruning_removes_the_best_head_at_each_step() -> None:
    net = without(Net(), 0, 0)
    own = study(net, batches=4)
    curve = pruning_curve(own, lambda logits, labels: -float(loss(logits, labels)), draws=20)
    assert curve["removed"].tolist() == [0, 1, 2, 3, 4]
    assert curve["layer"].isna().tolist() == [True, False, False, False, False]
    assert (curve["layer"][1], curve["head"][1]) == (0, 0) or curve["value"][1] > curve["value"][0]
    singles = {}
    for head in HEADS:
        singles[head] = pruning_curve(own, order=[head], draws=20)["loss"][1]
    best = min(singles, key=singles.__getitem__)
    assert (curve["layer"][1], curve["head"][1]) == best
    assert curve["loss"][1] == pytest.approx(singles[best], 1e-5)
    assert sorted(zip(curve["layer"][1:], curve["head"][1:], strict=True)) == sorted(singles)


def loss(logits: np.ndarray, labels: np.ndarray) -> Tensor:
    return F.cross_entropy(torch.as_tensor(logits), torch.as_tensor(labels))


def test_figures_show_the_numbers_of_the_tables() -> None:
    own = study(Net())
    table = head_importance(own, draws=20, pool=None)
    panel = head_heatmap(table, "loss_change").axes[0]
    shown = [text.get_text() for text in panel.texts]
    expected = [f"{value(table, layer, head, 'loss_change'):.2f}" for layer, head in HEADS]
    assert shown == expected
    curve = pruning_curve(own, limit=2, draws=20)
    line = pruning_figure({"greedy": curve}).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(line.get_ydata(), curve["value"])


@torch.no_grad()
def test_pruning_in_a_given_order_follows_it() -> None:
    own = study(Net())
    order = ranked_heads(head_importance(own, draws=20, pool=None), "divergence")
    curve = pruning_curve(own, order=order, limit=3, draws=50)
    assert list(zip(curve["layer"][1:], curve["head"][1:], strict=True)) == order[:3]
    cut = without(without(Net(), *order[0]), *order[1])
    x = torch.cat([batch["x"] for batch in own.batches])
    labels = torch.cat([batch["label"] for batch in own.batches])
    right = (cut(x).argmax(1) == labels).double().mean()
    assert curve["value"][2] == pytest.approx(float(right))
    assert (curve["lo"] <= curve["value"]).all()
    assert (curve["hi"] >= curve["value"]).all()


def test_accuracy_of_one_logit_and_of_several() -> None:
    labels = np.array([1, 0])
    assert accuracy(np.array([2.0, 3.0]), labels) == 0.5
    assert accuracy(np.array([[2.0], [-3.0]]), labels) == 1.0
    assert accuracy(np.array([[0.0, 1.0], [1.0, 0.0]]), labels) == 1.0


@pytest.mark.parametrize("pattern", ["self", "uniform"])
def test_softened_weights_are_the_mixture(pattern: Any) -> None:
    own = study(Net(), mask=Causal())
    x = own.batches[0]
    site = "layers.1.attend"
    with capture(own.model, [site]) as plain:
        own.forward(x)
    with soften(own.model, {(1, 1): 0.25}, pattern), capture(own.model, [site]) as found:
        own.forward(x)
    before, after = plain.maps[site][0], found.maps[site][0]
    uniform = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    target = torch.eye(4) if pattern == "self" else uniform
    torch.testing.assert_close(after[:, 1], 0.75 * before[:, 1] + 0.25 * target.expand(6, 4, 4))
    torch.testing.assert_close(after[:, 0], before[:, 0])


def test_softening_never_shows_what_is_masked() -> None:
    own = study(Net(), mask=KeyPadding(torch.tensor([4, 2, 1, 4, 3, 0])))
    site = "layers.0.attend"
    strengths = {(0, 0): 1.0, (0, 1): 1.0}
    for pattern in ("self", "uniform"):
        with soften(own.model, strengths, pattern), capture(own.model, [site]) as found:
            own.forward(own.batches[0])
        weights = found.maps[site][0]
        assert (weights[1, :, :, 2:] == 0).all()
        assert (weights[5] == 0).all()
        torch.testing.assert_close(weights[:5].sum(-1), torch.ones(5, 2, 4))


def test_soft_ablation_of_strength_zero_changes_nothing() -> None:
    table = soft_ablation(study(Net()), strengths=(0.0, 1.0), draws=20)
    assert list(table) == [
        "layer", "head", "pattern", "strength", "measure", "value", "lo", "hi",
    ]  # fmt: skip
    assert table[table["strength"] == 0]["value"].abs().max() < 1e-6
    assert table[(table["strength"] == 1) & (table["measure"] == "divergence")]["value"].min() > 0


def test_soften_refuses_what_it_cannot_do() -> None:
    net = Net()
    for strengths, pattern, words in (
        ({(0, 0): 1.5}, "self", "not between 0 and 1"),
        ({(5, 0): 0.5}, "self", "layers: 5 is not a site"),
        ({(0, 0): 0.5}, "none", "use self or uniform"),
    ):
        with pytest.raises(ConfigError, match=words), soften(net, strengths, pattern):
            pass
    x = torch.randn(1, 3, 8)
    with pytest.raises(ConfigError, match="heads: 7"), soften(net, {(0, 7): 0.5}):
        net(x)
    with pytest.raises(ConfigError, match="self needs"), soften(net, {(0, 0): 0.5}, "self"):
        net.layers[0](x, torch.randn(1, 5, 8))


def test_a_click_model_is_analysed_like_any_other() -> None:
    torch.manual_seed(0)
    config = AutoIntConfig(
        num_features=40, num_fields=5, dim=8, widths=(8, 12), num_heads=2, tower=(6,)
    )
    net = AutoInt(config)
    inputs = net.example_inputs(30)
    parts = [{**inputs, "label": torch.arange(30) % 2, "group": [n // 2 for n in range(30)]}]
    own = Study(net, lambda batch: net(batch["index"], batch["value"]).logits, parts)
    table = head_importance(own, draws=50)
    assert len(table) == 2 * 2 * 6
    assert table[["value", "lo", "hi"]].notna().all().all()
    assert (table["lo"] <= table["hi"]).all()
    assert len(pruning_curve(own, limit=2, draws=20)) == 3
    assert net.training


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moh", {}),
        ("linear", {}),
        ("lsda", {"group_size": 2}),
        ("bra", {"num_windows": 2}),
        ("halo", {}),
        ("group", {}),
    ],
)
def test_layers_of_every_kind_can_be_analysed(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {k: build(name, dim=16, num_heads=2, **options) for k in "ab"} | {"out": nn.Linear(16, 3)}
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)

    def forward(batch: Any) -> Tensor:
        x = batch["x"]
        for key in "ab":
            x = x + net[key](x, grid=(4, 4)).y
        return net["out"](x.mean(1))

    parts = [{"x": torch.randn(3, 16, 16), "label": torch.tensor([0, 1, 2])}]
    own = Study(net, forward, parts)
    table = head_importance(own, draws=5)
    assert (table["value"] != 0).all()
    assert table["value"].notna().all()
    entropy = attention_profile(own, draws=5).table
    entropy = entropy[entropy["measure"] == "entropy_normalised"]["value"]
    assert entropy.between(0, 1 + 1e-9).all()
    assert find_sinks(own, draws=5).table["layer"].nunique() == table["layer"].nunique()
