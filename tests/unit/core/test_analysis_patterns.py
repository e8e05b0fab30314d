from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead_core.analysis.pattern_codes import autoencoder_codes, choose_clusters, pca_codes
from manyhead_core.analysis.patterns import (
    grid_resampling,
    resampling,
    sample_maps,
    summarise_patterns,
)
from manyhead_core.analysis.plots_heads import prototype_figure
from manyhead_core.analysis.run import Study
from manyhead_core.attention import Attend
from manyhead_core.errors import ConfigError, DataError


class Planted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = Attend(scale=1.0)

    def forward(self, weights: Tensor) -> Tensor:
        keys = weights.shape[-1]
        eye = torch.eye(keys).expand(*weights.shape[:2], keys, keys)
        return self.attend(weights.clamp_min(1e-30).log(), eye, eye).out.mean((1, 2))


def planted(weights: Tensor, parts: int = 1) -> Study:
    net = Planted()
    batches = [{"w": part} for part in weights.chunk(parts)]
    return Study(net, lambda batch: net(batch["w"]), batches)


def kinds(samples: int, tokens: int) -> Tensor:
    """Four heads: self, uniform, first key, previous key; with some noise."""
    torch.manual_seed(0)
    maps = torch.stack(
        [
            torch.eye(tokens),
            torch.full((tokens, tokens), 1 / tokens),
            torch.eye(tokens)[:1].expand(tokens, -1),
            torch.eye(tokens).roll(-1, 1),
        ]
    )
    noise = torch.rand(samples, 4, tokens, tokens).softmax(-1)
    return 0.95 * maps + 0.05 * noise


@pytest.mark.parametrize(("source", "target"), [(4, 4), (6, 3), (5, 3), (3, 7), (1, 2)])
def test_resampling_keeps_sums_and_spreads_evenly(source: int, target: int) -> None:
    matrix = resampling(source, target)
    torch.testing.assert_close(matrix.sum(0), torch.ones(source).double())
    torch.testing.assert_close(matrix.sum(1), torch.full((target,), source / target).double())


def test_resampling_adds_up_whole_cells() -> None:
    assert resampling(4, 2).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    values = torch.arange(16.0).double()
    found = grid_resampling((4, 4), (2, 2)) @ values
    assert found.tolist() == values.view(2, 2, 2, 2).sum((1, 3)).ravel().tolist()


def test_sampled_maps_are_the_maps_with_rows_summing_to_one() -> None:
    weights = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = sample_maps(planted(weights, 3), side=4)
    expected = weights.view(6, 4, 2, 4, 2).sum(4).mean(2)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-5)
    np.testing.assert_allclose(found.maps.sum(-1), 1, rtol=1e-5)
    assert found.rows["sample"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found.rows["head"].tolist() == [0, 1] * 3
    cut = sample_maps(planted(weights, 3), side=4, budget=20)
    np.testing.assert_allclose(cut.maps, found.maps, rtol=1e-6)
    assert sample_maps(planted(weights), side=8).sizes == (8,)
    assert sample_maps(planted(weights)).maps.shape == (6, 49, 49)


def test_grids_are_resampled_along_both_axes() -> None:
    weights = torch.randn(2, 1, 25, 25, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = sample_maps(planted(weights), grids=(4, 6), skip=1, side=2)
    inside = weights[:, 0, 1:, 1:].view(2, 2, 2, 2, 3, 2, 2, 2, 3)
    expected = inside.sum((6, 8)).mean((2, 4)).reshape(2, 4, 4)
    expected = expected / expected.sum(-1, keepdim=True)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"grids: \(4, 6\) does not hold the 25 tokens"):
        sample_maps(planted(weights), grids={0: (4, 6)})
    full = sample_maps(planted(weights[..., :16, :16]), grids=(4, 4))
    assert full.maps.shape == (2, 196, 196)


def test_the_sample_is_uniform_and_repeatable() -> None:
    weights = kinds(50, 4)
    found = sample_maps(planted(weights, 5), side=4, max_maps=40, seed=3)
    assert len(found.maps) == len(found.rows) == 40
    again = sample_maps(planted(weights, 2), side=4, max_maps=40, seed=3)
    np.testing.assert_array_equal(found.maps, again.maps)
    for row, kept in zip(found.rows.itertuples(), found.maps, strict=True):
        np.testing.assert_allclose(kept, weights[row.sample, row.head], atol=1e-6)
    counts = np.zeros(200)
    for seed in range(60):
        rows = sample_maps(planted(weights[:, :, :1, :1]), side=1, max_maps=40, seed=seed).rows
        counts[rows["sample"] * 4 + rows["head"]] += 1
    assert counts.mean() == 12
    assert 5 < counts[:100].mean() / counts[100:].mean() * 10 < 15


@pytest.mark.parametrize("encoder", ["pca", "autoencoder"])
def test_planted_kinds_of_heads_become_clusters(encoder: Any) -> None:
    found = summarise_patterns(
        planted(kinds(16, 8)), side=8, encoder=encoder, clusters=(2, 3, 4, 5, 6)
    )
    assert len(found.prototypes) == 4
    assert found.silhouettes.loc[found.silhouettes["score"].idxmax(), "k"] == 4
    share = found.histogram.pivot(index="head", columns="cluster", values="share").to_numpy()
    assert sorted(share.max(1)) == [1, 1, 1, 1]
    assert sorted(share.argmax(1)) == [0, 1, 2, 3]
    expected = kinds(16, 8).mean(0)
    for head, cluster in enumerate(share.argmax(1)):
        np.testing.assert_allclose(found.prototypes[cluster], expected[head], atol=1e-6)
    assert found.codes.shape == (64, 32)
    assert (found.histogram.groupby("head")["share"].sum() == 1).all()


def test_examples_lie_next_to_the_middle_of_their_cluster() -> None:
    found = summarise_patterns(planted(kinds(16, 8)), side=8, clusters=(4,), examples=3)
    assert found.examples["rank"].tolist() == [0, 1, 2] * 4
    for cluster, rows in found.examples.groupby("cluster"):
        members = (found.rows["cluster"] == cluster).to_numpy()
        far = np.linalg.norm(found.codes - found.codes[members].mean(0), axis=1)
        nearest = np.flatnonzero(members)[np.argsort(far[members])[:3]]
        assert rows["map"].tolist() == nearest.tolist()
        assert (found.rows.loc[rows["map"], "head"].to_numpy() == rows["head"]).all()
    figure = prototype_figure(found.prototypes, found.histogram.groupby("cluster")["share"].mean())
    assert figure.axes[0].get_title() == "0 (25%)"


def test_codes_are_repeatable_and_leave_the_random_state_alone() -> None:
    values = np.random.default_rng(0).random((10, 6))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = autoencoder_codes(values, 1, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, autoencoder_codes(values, 1, epochs=2))
    codes = pca_codes(values)
    assert codes.shape == (10, 6)
    centred = values - values.mean(0)
    np.testing.assert_allclose(np.linalg.norm(codes), np.linalg.norm(centred))


def test_too_few_maps_are_refused() -> None:
    same = planted(torch.full((5, 2, 4, 4), 0.25))
    with pytest.raises(DataError, match="clusters: 1 different maps are too few for 4"):
        summarise_patterns(same, side=4)
    with pytest.raises(ConfigError, match="use autoencoder or pca"):
        summarise_patterns(same, encoder="umap")
    codes = np.random.default_rng(0).random((6, 2))
    _, table = choose_clusters(codes, range(4, 17), 0)
    assert table["k"].tolist() == [4, 5]


def test_heads_of_a_click_model_are_clustered() -> None:
    torch.manual_seed(0)
    net = AutoInt(AutoIntConfig(num_features=40, num_fields=5, dim=8, widths=(8, 8), num_heads=2))
    nn.init.normal_(net.embedding.table.weight, std=3.0)
    own = Study(net, lambda b: net(b["index"], b["value"]).logits, [net.example_inputs(10)])
    found = summarise_patterns(own, side=5, clusters=(2, 3))
    assert found.histogram["count"].sum() == 40
    assert found.prototypes.shape[1:] == (5, 5)
