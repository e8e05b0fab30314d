"""Which heads read a source: planted heads, equivalence with masking, gates."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from manyhead_core.analysis.run import Study
from manyhead_core.analysis.sources import (
    Baseline,
    MaskedKeys,
    Shuffled,
    other_group,
    reinforced,
    reinforcement_gates,
    softmax_layers,
    source_divergence,
    stability,
    token_scores,
    without_keys,
)
from manyhead_core.attention.attend import attend
from manyhead_core.attention.mixers.ablations import LinearQueryKey
from manyhead_core.attention.mixers.halo import HaloAttention
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError, DataError

SOURCE = torch.tensor([False, False, True, True, False])


class Host(nn.Module):
    """Two layers; in the second the first head is blind to the source."""

    def __init__(self, kind: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(8, 4), kind(8, 4)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).y
        return self.head(x.mean(1))


def study(groups: int = 6, seed: int = 0, kind: type[nn.Module] = Attention) -> Study:
    torch.manual_seed(seed)
    model = Host(kind)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    data = [{"x": torch.randn(2, 5, 8), "group": [f"p{n}"] * 2} for n in range(groups)]
    return Study(model, lambda batch: model(batch["x"]), data)


def zeroed(batch: dict) -> dict:
    return {**batch, "x": batch["x"].masked_fill(SOURCE[:, None], 0.0)}


def values_of(found: pd.DataFrame, layer: int) -> np.ndarray:
    return found[found["layer"] == layer].sort_values("head")["value"].to_numpy()


def test_hiding_keys_equals_masking_them() -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    weights = (query @ key.mT / 6**0.5).softmax(-1)
    batch_source = torch.stack([SOURCE, ~SOURCE])
    for source, mask in ((SOURCE, ~SOURCE), (batch_source, ~batch_source[:, None, None])):
        found = without_keys(source)(weights) @ value
        torch.testing.assert_close(found, attend(query, key, value, mask=mask).out)
    assert without_keys(torch.ones(5, dtype=torch.bool))(weights).abs().max() == 0
    with pytest.raises(ConfigError, match="keys: 4 given for a layer with 5"):
        without_keys(SOURCE[:4])(weights)


def test_divergence_is_the_distance_of_head_outputs() -> None:
    task = study(1)
    layer = task.model.layers[0]
    x = task.batches[0]["x"]
    query, key, value = layer.project(x, x)
    whole = attend(query, key, value).out
    less = attend(query, key, value, mask=~SOURCE).out
    expected = (whole - less).norm(dim=-1)
    found = source_divergence(task, MaskedKeys(lambda batch: SOURCE))
    np.testing.assert_allclose(
        values_of(found.table, 0), expected.mean((0, 2)).detach().numpy(), rtol=1e-5
    )
    assert found.tokens is not None
    assert found.layers == [0, 1]
    assert found.tokens[1].shape == (2, 4, 5)
    np.testing.assert_allclose(found.tokens[1][0], expected[1].detach().numpy(), rtol=1e-4)
    assert set(found.table["removal"]) == {"masked keys"}


def test_a_head_that_ignores_the_source_has_no_divergence() -> None:
    task = study(3)
    layer = task.model.layers[0]
    with torch.no_grad():
        # Head 2 weighs all tokens alike and reads channel 0 only, which the source has not.
        parts = layer.qkv.weight.view(3, 4, 2, 8)
        parts[:2, 2] = 0
        parts[2, 2, :, 1:] = 0
        for batch in task.batches:
            batch["x"][:, SOURCE, 0] = 0
    found = source_divergence(task, Baseline(zeroed), layers=[0])
    values = values_of(found.table, 0)
    assert values[2] == pytest.approx(0, abs=1e-6)
    assert (np.delete(values, 2) > 1e-2).all()
    assert set(found.table["removal"]) == {"baseline value"}


def test_an_unchanged_input_has_no_divergence() -> None:
    found = source_divergence(study(2), Baseline(lambda batch: batch))
    assert found.table["value"].abs().max() == 0


def test_shuffled_sources_come_from_other_patients() -> None:
    task = study(4)
    for number, batch in enumerate(task.batches):
        batch["x"][:, SOURCE] = float(number)
    seen = []

    def change(batch: dict, source: Tensor) -> dict:
        seen.append((batch["x"][:, 2, 0], source[:, 0, 0]))
        return {**batch, "x": torch.cat([batch["x"][:, :2], source, batch["x"][:, 4:]], 1)}

    removal = Shuffled(task, lambda batch: batch["x"][:, SOURCE], change)
    found = source_divergence(task, removal)
    own, other = (torch.cat(part) for part in zip(*seen, strict=True))
    assert (own != other).all()
    assert torch.equal(own.sort().values, other.sort().values)
    assert set(found.table["removal"]) == {"shuffled over patients"}
    reordered = Study(task.model, task.forward, task.batches[::-1])
    with pytest.raises(DataError, match="another order"):
        source_divergence(reordered, removal)


def test_donors_are_a_permutation_without_own_group() -> None:
    groups = np.array(["a"] * 4 + ["b", "c", "c", "d"])
    for seed in range(5):
        donors = other_group(groups, seed)
        assert sorted(donors) == list(range(8))
        assert (groups[donors] != groups).all()
    with pytest.raises(DataError, match="5 of 9 samples belong to one group"):
        other_group(np.array(["a"] * 5 + list("bcde")))


def test_token_scores_sum_the_top_heads_of_each_layer() -> None:
    divergence = np.array([[[1.0, 0], [2, 5], [3, 1]], [[0, 0], [7, 1], [4, 2]]])
    assert token_scores(divergence, 2).tolist() == [2 + 3 + 7 + 4, 5 + 1 + 1 + 2]
    assert token_scores(divergence, 1).tolist() == [3 + 7, 5 + 2]


def test_reinforcement_takes_the_upper_half_without_outliers() -> None:
    # Mean 4, deviation 4.36: the first head is an outlier.
    values = np.array([14.0, 5, 1, 4, 3, 2, 1.5, 1.5])
    assert reinforcement_gates(values).tolist() == [1, 2, 1, 2, 2, 1, 1, 1]
    assert reinforcement_gates(np.array([3.0, 3, 1, 1]), 1.5).tolist() == [1.5, 1.5, 1, 1]


def test_reinforced_model_has_gated_heads_and_recovers() -> None:
    task = study()
    found = source_divergence(task, MaskedKeys(lambda batch: SOURCE))
    model, x = task.model, task.batches[0]["x"]
    plain, expected = model(x), x
    for number, layer in enumerate(model.layers):
        gates = torch.from_numpy(reinforcement_gates(values_of(found.table, number))).float()
        assert 2.0 in gates.tolist()
        mixed = layer.mix(
            expected, None, mask=None, grid=None, memory=None, maps=None, head_gate=gates
        )
        expected = expected + mixed.y
    with reinforced(model, found):
        torch.testing.assert_close(model(x), model.head(expected.mean(1)))
    assert torch.equal(model(x), plain)


def test_stability_is_high_when_patients_agree_and_low_when_not() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"sample": p, "group": f"p{p}", "layer": 0, "head": h, "value": h + 0.1 * rng.normal()}
        for p in range(8)
        for h in range(20)
    ]
    found = stability(pd.DataFrame(rows))
    assert found["spearman"].min() > 0.95
    assert found["overlap"].min() == 1
    noise = pd.DataFrame(rows).assign(value=rng.normal(size=160))
    assert abs(stability(noise)["spearman"].mean()) < 0.35
    assert np.isnan(stability(pd.DataFrame(rows[:20]))["spearman"]).all()


def test_intervals_are_over_groups() -> None:
    found = source_divergence(study(12), MaskedKeys(lambda batch: SOURCE))
    assert (found.table["lo"] < found.table["value"]).all()
    assert (found.table["value"] < found.table["hi"]).all()
    assert source_divergence(study(3), Baseline(zeroed)).table["lo"].isna().all()


def test_layers_without_softmax_weights_are_measured_but_not_masked() -> None:
    task = study(2, kind=LinearQueryKey)
    assert softmax_layers(task.model) == [0]
    found = source_divergence(task, MaskedKeys(lambda batch: SOURCE, softmax_layers(task.model)))
    assert set(found.table["layer"]) == {0, 1}
    with pytest.raises(ConfigError, match="no softmax weights"):
        source_divergence(task, MaskedKeys(lambda batch: SOURCE))


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = HaloAttention(8, 2, block_size=3, halo_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, grid=(6, 6)).y.mean(1)


def test_windows_of_a_sample_count_as_its_queries() -> None:
    torch.manual_seed(0)
    model = Windows()
    task = Study(model, model, [torch.randn(3, 36, 8)])
    changed = torch.zeros(36, dtype=torch.bool)
    changed[0] = True

    def remove(x: Tensor) -> Tensor:
        x = x.clone()
        x[1, changed] = 0
        return x

    found = source_divergence(task, Baseline(remove))
    assert found.tokens is not None
    assert [one.shape for one in found.tokens] == [(1, 2, 36)] * 3
    assert found.tokens[1].max() > 0
    # The corner is seen by its own window only.
    assert (found.tokens[1][0] > 0).sum() <= 2 * 9
    assert max(found.tokens[0].max(), found.tokens[2].max()) == 0
