"""Reports of gaam, moh, bra and dynamic_mask, and the figures of maps."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead_core.analysis import plots_maps
from manyhead_core.analysis.capacity import capacity
from manyhead_core.analysis.mixer_reports import gate_statistics, gaussian_importance
from manyhead_core.analysis.routing_reports import (
    kept_keys,
    lesion_regions,
    routing_maps,
    serving,
)
from manyhead_core.analysis.run import Study
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixers.bra import BiLevelRoutingAttention
from manyhead_core.attention.mixers.dynamic_mask import DynamicMaskAttention
from manyhead_core.attention.mixers.gaam import GaussianAttention, importance_factors
from manyhead_core.attention.mixers.moh import MixtureOfHeads, load_balance
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError, DataError


def seeded(model: nn.Module, std: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=std)
    return model


def study(model: nn.Module, tokens: int = 6, count: int = 12, lengths: bool = False) -> Study:
    """Batches of one sample of each class, one group a batch."""
    generator = torch.Generator().manual_seed(1)
    data = [
        {
            "x": torch.randn(2, tokens, 8, generator=generator),
            "label": torch.tensor([0, 1]),
            "group": [f"p{n}"] * 2,
            "mask": KeyPadding(torch.tensor([tokens, tokens - 2])) if lengths else None,
        }
        for n in range(count)
    ]
    return Study(model, lambda batch: model(batch["x"], mask=batch["mask"]).y.mean(1), data)


@pytest.mark.parametrize("axis", ["features", "tokens"])
def test_gaam_importance_is_the_scaled_mean_of_the_weights(axis: str) -> None:
    model = GaussianAttention(8, 2, axis=axis)
    task = study(model)
    table = gaussian_importance(task)
    weights = torch.cat([model.weights(batch["x"]) for batch in task.batches]).detach()
    flat = weights.flatten(0, 1) if axis == "features" else weights.transpose(1, 2).flatten(0, 1)
    expected = importance_factors(flat)
    np.testing.assert_allclose(table["importance"], expected, rtol=1e-4, atol=1e-6)
    assert table["importance"].min() == 0
    assert table["importance"].max() == pytest.approx(1)
    assert set(table["axis"]) == {axis}


def test_gaam_importance_counts_real_tokens_only() -> None:
    model = GaussianAttention(8, 2)
    task = study(model, lengths=True)
    before = gaussian_importance(task)
    for batch in task.batches:
        batch["x"][1, 4:] = 77.0
    np.testing.assert_allclose(gaussian_importance(task)["weight"], before["weight"], rtol=1e-6)


def test_gaam_importance_over_tokens_needs_one_length() -> None:
    model = GaussianAttention(8, 2, axis="tokens")
    task = study(model)
    task.batches.append({**task.batches[0], "x": torch.randn(2, 9, 8)})
    with pytest.raises(DataError, match="needs one length"):
        gaussian_importance(task)


def test_moh_statistics_are_shares_of_tokens() -> None:
    model = seeded(MixtureOfHeads(8, 4, shared_heads=1, routed_heads=2))
    task = study(model)
    found = gate_statistics(task)
    model.eval()
    routing = [model.route(b["x"], model.project(b["x"], b["x"])[0]) for b in task.batches]
    active = torch.cat([r.active for r in routing])
    gates = torch.cat([r.gates for r in routing]).detach()
    share = found.heads.query("measure == 'share'").set_index(["class", "head"])["value"]
    gate = found.heads.query("measure == 'gate'").set_index(["class", "head"])["value"]
    for label in (0, 1):
        assert share[label, 0] == 1
        for head in range(3):
            assert share[label, head + 1] == pytest.approx(float(active[label::2, :, head].mean()))
        assert gate[label, 2] == pytest.approx(float(gates[label::2, :, 2].mean()), rel=1e-5)
        assert share[label].sum() == pytest.approx(1 + 2)
    whole = type(routing[0])(gates, torch.cat([r.probabilities for r in routing]), active)
    expected = float(load_balance(whole, None).detach())
    assert found.balance["loss"].item() == pytest.approx(expected, rel=1e-5)
    shares = active.mean((0, 1))
    assert found.balance["largest"].item() == pytest.approx(float(shares.max() / shares.mean()))


def test_moh_classes_with_separate_heads_are_ln_2_apart_and_equal_ones_0() -> None:
    model = MixtureOfHeads(8, 4, shared_heads=2, routed_heads=1)
    with torch.no_grad():
        model.wg.weight.zero_()
        model.wg.weight[0, 0], model.wg.weight[1, 0] = 1, -1
    task = study(model)
    for batch in task.batches:
        batch["x"][0, :, 0], batch["x"][1, :, 0] = 1.0, -1.0
    row = gate_statistics(task).divergence
    assert row[["first", "second"]].to_numpy().tolist() == [[0, 1]]
    assert row["value"].item() == pytest.approx(math.log(2))
    assert row["lo"].item() == pytest.approx(math.log(2))
    for batch in task.batches:
        batch["x"][:, :, 0] = 1.0
    assert gate_statistics(task).divergence["value"].item() == pytest.approx(0)


def test_moh_statistics_leave_padding_out() -> None:
    model = seeded(MixtureOfHeads(8, 4))
    task = study(model, lengths=True)
    before = gate_statistics(task)
    for batch in task.batches:
        batch["x"][1, 4:] = 50.0
    after = gate_statistics(task)
    np.testing.assert_allclose(after.heads["value"], before.heads["value"], rtol=1e-5)
    np.testing.assert_allclose(after.balance["loss"], before.balance["loss"], rtol=1e-5)


def test_moh_without_routed_heads_has_nothing_to_balance() -> None:
    model = seeded(MixtureOfHeads(8, 4, shared_heads=4, routed_heads=0))
    found = gate_statistics(study(model))
    assert (found.heads.query("measure == 'share'")["value"] == 1).all()
    assert found.balance.empty
    assert found.divergence.empty


class Grid(nn.Module):
    def __init__(self, height: int = 6, width: int = 6, **options) -> None:
        super().__init__()
        self.grid = (height, width)
        self.mixer = BiLevelRoutingAttention(8, 2, num_windows=3, topk=2, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, grid=self.grid).y.mean(1)


def grids(model: Grid, count: int = 3) -> Study:
    generator = torch.Generator().manual_seed(1)
    tokens = model.grid[0] * model.grid[1]
    data = [torch.randn(2, tokens, 8, generator=generator) for _ in range(count)]
    return Study(model, model, data)


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_bra_maps_are_shares_of_the_lesions_routes(size: tuple[int, int]) -> None:
    model = seeded(Grid(*size))
    task = grids(model)
    lesion = torch.zeros(2, 12, 14, dtype=torch.bool)
    lesion[0, :4, :4] = True
    found = routing_maps(task, lambda batch: lesion)
    first = torch.zeros(9)
    region = lesion_regions(lesion, size, 3)
    routes = model.mixer.eval().routing(task.batches[0], size).regions
    for source in region[0].nonzero()[:, 0]:
        first[routes[0, source]] += 1 / float(region[0].sum())
    np.testing.assert_allclose(found.maps[0][0].ravel(), first, rtol=1e-6)
    assert found.maps[0][0].sum() == pytest.approx(2)
    assert np.isnan(found.maps[0][1]).all()
    assert len(found.maps[0]) == 6
    assert found.table["measure"].tolist() == ["inside", "chance", "lift"]


def test_bra_routes_inside_a_lesion_by_hand() -> None:
    regions = torch.tensor([[[0, 1], [1, 2], [3, 0], [3, 2]]])
    touched = torch.tensor([[True, True, False, False]])
    served, values = serving(regions, touched)
    assert served.tolist() == [[0.5, 1.0, 0.5, 0.0]]
    assert values["inside"].item() == pytest.approx(3 / 4)
    assert values["chance"].item() == pytest.approx(1 / 2)
    assert values["lift"].item() == pytest.approx(1.5)


def test_bra_report_needs_routes() -> None:
    model = Grid()
    model.mixer.topk = -2
    with pytest.raises(ConfigError, match="set topk above 0"):
        routing_maps(grids(model), lambda batch: torch.ones(2, 6, 6, dtype=torch.bool))


class Sequence(nn.Module):
    def __init__(self, mask: object = None, **options) -> None:
        super().__init__()
        self.mixer = DynamicMaskAttention(8, 2, **options)
        self.mask = mask

    def forward(self, batch: dict) -> Tensor:
        return self.mixer(batch["x"], mask=self.mask).y.mean(1)


def test_dynamic_mask_keeps_the_same_few_keys_for_all_queries() -> None:
    model = seeded(Sequence(keep_window=3), 1.0)
    task = study(model)
    task = Study(model, model, task.batches)
    found = kept_keys(task)
    for one in found.maps[0]:
        assert one.shape == (2, 6)
        assert ((one == 0) | (one == 1)).all()
        assert (one.sum(1) == 3).all()
    values = found.table.set_index(["head", "measure"])["value"]
    assert values[0, "kept"] == pytest.approx(0.5)
    assert values[1, "common"] == pytest.approx(1)


def test_dynamic_mask_without_a_limit_keeps_all_allowed_keys() -> None:
    for mask in (None, Causal()):
        model = seeded(Sequence(mask, keep_window=10))
        found = kept_keys(Study(model, model, study(model).batches))
        assert all((one == 1).all() for one in found.maps[0])


def test_dynamic_mask_counts_allowed_pairs_only() -> None:
    model = seeded(Sequence(Causal(), keep_window=2), 1.0)
    found = kept_keys(Study(model, model, study(model).batches))
    # Rows see 1 to 6 keys and keep 1, 2, 2, 2, 2, 2 of them.
    assert found.table.query("measure == 'kept'")["value"].to_numpy() == pytest.approx(11 / 21)


@pytest.mark.parametrize("report", [gaussian_importance, gate_statistics, kept_keys])
def test_reports_name_the_layer_that_is_missing(report) -> None:
    with pytest.raises(ConfigError, match=r"model: it has no .* layer"):
        report(study(Attention(8, 2)))


def test_reports_leave_the_model_as_it_was() -> None:
    model = seeded(MixtureOfHeads(8, 4))
    model.train()
    gate_statistics(study(model, count=2))
    assert "route" not in vars(model)
    assert not model._forward_hooks
    assert model.training


def test_figures_show_what_they_are_given() -> None:
    image, values = np.full((8, 12), 0.5), np.random.default_rng(0).random((8, 12))
    figure = plots_maps.overlay(image, {"a": values, "b": values * 0})
    assert [panel.get_title(loc="left").split()[0] for panel in figure.axes] == ["a", "b"]
    drawn = figure.axes[0].images[1].get_alpha()
    np.testing.assert_allclose(drawn, 0.6 * values / values.max())
    grid = plots_maps.token_map(np.arange(6), (2, 3), "tokens")
    assert grid.axes[0].images[0].get_array().shape == (2, 3)
    tables = {width: capacity("linear", int(width), counts=(1, 4, 16)).table for width in "48"}
    assert len(plots_maps.capacity_curves(tables).axes[0].lines) == 3
    assert len(plots_maps.spectra([np.ones((2, 4)), np.ones((2, 4))]).axes[0].lines) == 2
