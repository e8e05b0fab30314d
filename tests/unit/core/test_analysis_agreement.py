"""Agreement of maps and saliency, deletion and insertion: planted truths and baselines."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from manyhead_core.analysis import plots_maps
from manyhead_core.analysis.agreement import (
    aggregate,
    agreement,
    compare,
    explained_share,
    top_overlap,
)
from manyhead_core.analysis.faithfulness import curve, faithfulness
from manyhead_core.analysis.rollout import Reading, read_gradients
from manyhead_core.analysis.run import Study
from manyhead_core.analysis.saliency import blank_tokens
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def test_compare_equals_scipy() -> None:
    first, second = RNG.normal(size=(4, 30)), RNG.normal(size=(4, 30))
    second[:, 3] = second[:, 4]
    found = compare(first, second)
    for row in range(4):
        assert found["pearson"][row] == pytest.approx(pearsonr(first[row], second[row])[0])
        assert found["spearman"][row] == pytest.approx(spearmanr(first[row], second[row])[0])
    np.testing.assert_allclose(found["explained"], found["pearson"] ** 2)


def test_compare_ignores_scale_and_level() -> None:
    first, second = RNG.normal(size=(2, 20)), RNG.normal(size=(2, 20))
    changed = compare(first * 7 + 3, second)
    for measure, values in compare(first, second).items():
        np.testing.assert_allclose(changed[measure], values)


def test_a_constant_map_has_no_correlation() -> None:
    found = compare(np.full((1, 10), 0.1), RNG.normal(size=(1, 10)))
    assert np.isnan(found["pearson"]).all()
    assert np.isnan(found["spearman"]).all()


def test_top_overlap_counts_common_tokens() -> None:
    first = np.arange(20.0)[None]
    second = np.where(np.isin(np.arange(20), [19, 3]), 1.0, 0.0)[None]
    assert top_overlap(first, second).tolist() == [0.5]
    assert top_overlap(first, first, 0.01).tolist() == [1.0]


def test_explained_share_is_that_of_a_planted_regression() -> None:
    maps = RNG.normal(size=(3, 2, 400))
    truth = 2 * maps[:, 0] - maps[:, 1] + RNG.normal(size=(3, 400)) * 5**0.5
    np.testing.assert_allclose(explained_share(maps, truth), 0.5, atol=0.08)
    np.testing.assert_allclose(explained_share(maps, maps.sum(1)), 1)
    assert np.isnan(explained_share(maps[..., :3], truth[:, :3])).all()


class Host(nn.Module):
    """Tokens `(batch, tokens, 4)` with a class token first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(4, 2) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).y
        return self.head(x[:, 0])


def study(batches: int = 6) -> Study:
    torch.manual_seed(0)
    model = Host()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    data = [{"x": torch.randn(2, 9, 4), "group": [f"p{n}", f"q{n}"]} for n in range(batches)]
    return Study(model, lambda batch: model(batch["x"]), data)


def test_aggregations_are_the_means_by_hand() -> None:
    task = study(1)
    found = read_gradients(task, task.batches[0])
    assert found.gradients is not None
    maps = {(m.aggregation, m.layer, m.head): m.values for m in aggregate(found, 0)}
    first, second = (weights[:, :, 0] for weights in found.maps)
    torch.testing.assert_close(maps["head", 1, 0], second[:, 0])
    torch.testing.assert_close(maps["layer_mean", 0, None], first.mean(1))
    torch.testing.assert_close(maps["all_mean", None, None], (first + second).mean(1) / 2)
    weighted = [
        (w * g).clamp(min=0)[:, :, 0] for w, g in zip(found.maps, found.gradients, strict=True)
    ]
    torch.testing.assert_close(maps["gradient", None, None], sum(weighted).mean(1) / 2)
    assert {"rollout", "gradient_rollout"} <= {name for name, *_ in maps}
    assert len(maps) == 4 + 2 + 4


def test_rollout_is_left_out_of_maps_that_are_not_square() -> None:
    reading = Reading([0], [torch.rand(1, 2, 3, 5)])
    assert {m.aggregation for m in aggregate(reading)} == {"head", "layer_mean", "all_mean"}


def test_agreement_with_a_head_itself_is_perfect_and_bounds_hold() -> None:
    task = study()

    def saliency(batch: dict) -> Tensor:
        return read_gradients(task, batch).maps[1][:, 0, 0, 1:]

    found = agreement(task, saliency, query=0, keys=slice(1, None))
    table = found.table.set_index(["aggregation", "layer", "head", "measure"])["value"]
    for measure in ("pearson", "spearman", "overlap", "explained"):
        assert table["head", 1, 0, measure] == pytest.approx(1)
        assert table["head", 0, 1, measure] < 0.9
    bound = found.table.query("aggregation == 'all_heads'")
    assert bound["measure"].tolist() == ["explained"]
    assert bound["value"].item() == pytest.approx(1)
    assert list(found.table) == ["aggregation", "layer", "head", "measure", "value", "lo", "hi"]
    assert (found.table["lo"] <= found.table["value"] + 1e-9).all()
    assert found.samples.groupby("sample").ngroups == 12
    names = [
        text.get_text()
        for text in plots_maps.agreement_points(found.table).axes[0].get_yticklabels()
    ]
    assert names[0] == "head, layer 1, head 0"
    assert len(names) == 6


def test_agreement_names_maps_that_do_not_fit() -> None:
    task = study(1)
    with pytest.raises(DataError, match=r"saliency: shape \(2, 4\) does not fit maps of shape"):
        agreement(task, lambda batch: torch.rand(2, 4))


class Additive(nn.Module):
    """The logit is the sum of the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((1, 2))


def additive(count: int = 10) -> Study:
    generator = torch.Generator().manual_seed(3)
    data = [torch.rand(2, 8, 1, generator=generator) ** 3 * 2 for _ in range(count)]
    model = Additive()
    return Study(model, model, data)


def test_deletion_curve_is_the_sum_that_is_left() -> None:
    x = torch.tensor([[[3.0], [1.0], [2.0]]])
    shares, values = curve(
        lambda kept: torch.sigmoid(blank_tokens(x, kept).sum((1, 2))), x[..., 0], "deletion", 3
    )
    np.testing.assert_allclose(shares, [0, 1 / 3, 2 / 3, 1])
    left = torch.tensor([6.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    np.testing.assert_allclose(values[0], torch.sigmoid(left).numpy(), rtol=1e-6)
    _, values = curve(
        lambda kept: torch.sigmoid(blank_tokens(x, kept).sum((1, 2))), x[..., 0], "insertion", 3
    )
    come = torch.tensor([0.0, 3.0, 5.0, 6.0], dtype=torch.float64)
    np.testing.assert_allclose(values[0], torch.sigmoid(come).numpy(), rtol=1e-6)


def test_a_true_map_beats_random_orders_and_its_opposite_loses() -> None:
    task = additive()
    for sign, better in ((1.0, True), (-1.0, False)):
        found = faithfulness(task, lambda batch, s=sign: s * batch[..., 0], blank_tokens, orders=3)
        table = found.table.set_index(["measure", "order"])
        assert (table.loc[("deletion", "difference"), "hi"] < 0) == better
        assert (table.loc[("insertion", "difference"), "lo"] > 0) == better


def test_a_random_map_is_as_good_as_the_random_baseline() -> None:
    generator = torch.Generator().manual_seed(9)
    found = faithfulness(
        additive(20), lambda b: torch.rand(b.shape[:2], generator=generator), blank_tokens, steps=4
    )
    table = found.table.set_index(["measure", "order"])
    for measure in ("deletion", "insertion"):
        row = table.loc[(measure, "difference")]
        assert row["lo"] < 0 < row["hi"]


def test_faithfulness_follows_the_target_and_returns_curves() -> None:
    task = additive(2)
    same = faithfulness(task, lambda b: b[..., 0], blank_tokens, steps=4, orders=2)
    other = faithfulness(
        task, lambda b: b[..., 0], blank_tokens, steps=4, orders=2, target=lambda b: torch.zeros(2)
    )
    both = same.samples["value"] + other.samples["value"]
    # The two classes share the probability, so areas add up to 1 and differences to 0.
    expected = (same.samples["order"] != "difference").astype(float)
    np.testing.assert_allclose(both, expected, atol=1e-6)
    assert sorted(set(same.curves["share"])) == [0, 0.25, 0.5, 0.75, 1]
    assert len(same.curves) == 2 * 2 * 5
    figure = plots_maps.faithfulness_curves(same.curves)
    assert [len(panel.lines) for panel in figure.axes] == [2, 2]
    with pytest.raises(ConfigError, match="steps, orders: need 1 or more"):
        faithfulness(task, lambda b: b[..., 0], blank_tokens, orders=0)
