from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from manyhead_core.analysis.blocks import block_names, called_blocks
from manyhead_core.analysis.run import (
    Part,
    Study,
    batch_size,
    evaluating,
    find_heads,
    head_rows,
    interval_of_metric,
    labels_of,
    pick_sites,
    walk,
    with_intervals,
)
from manyhead_core.analysis.stream import edit_visible, stream_maps, watch_calls
from manyhead_core.attention import Attend
from manyhead_core.attention.capture import capture
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.registry import build
from manyhead_core.errors import ConfigError, DataError


class Block(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mixer = Attention(8, heads)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        return x + self.mixer(self.norm(x), mask=mask).y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(2), Block(4)])
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.out(x.mean(1))


def study(batches: list[Any], mask: Any = None, **options: Any) -> Study:
    net = Net()
    return Study(net, lambda batch: net(batch["x"], mask), batches, **options)


def batch(size: int = 3, tokens: int = 5, **parts: Any) -> dict[str, Any]:
    return {"x": torch.randn(size, tokens, 8), **parts}


def test_sites_are_numbered_in_module_order_with_their_heads() -> None:
    sites = find_heads(study([batch()]))
    expected = [(0, "blocks.0.mixer.attend", 2), (1, "blocks.1.mixer.attend", 4)]
    assert [tuple(s) for s in sites] == expected
    assert pick_sites(Net(), [1]) == pick_sites(Net(), ["blocks.1.mixer.attend"])
    with pytest.raises(ConfigError, match=r"layers: 2 is not a site.*0 \(blocks.0.mixer.attend\)"):
        pick_sites(Net(), [2])
    with pytest.raises(ConfigError, match="no attention site"):
        pick_sites(nn.Linear(2, 2))


def test_blocks_are_the_outermost_modules_with_one_site() -> None:
    assert list(block_names(Net()).values()) == ["blocks.0", "blocks.1"]
    assert block_names(Attend()) == {"": ""}
    single = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"a": Attention(8, 2)}))
    assert block_names(single) == {"1.a.attend": "1.a"}


def test_blocks_that_are_not_called_give_way_to_the_next_around() -> None:
    assert called_blocks(study([batch()])) == {0: "blocks.0", 1: "blocks.1"}
    holder = nn.ModuleDict({"inner": nn.ModuleDict({"attend": Attend()})})

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = holder

        def forward(self, x: Tensor) -> Tensor:
            q = x[:, None]
            return self.parts["inner"]["attend"](q, q, q).out[:, 0]

    net = nn.ModuleList([Outer()])
    own = Study(net, lambda b: net[0](b["x"]).mean(1), [batch()])
    assert called_blocks(own) == {0: "0"}


def test_only_softmax_layers_can_be_edited() -> None:
    net = nn.ModuleList([build("linear", dim=8, num_heads=2), Attention(8, 2)])
    assert list(pick_sites(net, softmax=True)) == [1]
    assert list(pick_sites(net)) == [0, 1]
    with pytest.raises(ConfigError, match="none of its layers has softmax"):
        pick_sites(net[:1], softmax=True)


def test_walk_numbers_samples_and_keeps_groups() -> None:
    batches = [batch(2, group=["p", "q"]), batch(1, group=torch.tensor([7])), batch(2)]
    parts = list(walk(study(batches)))
    assert [p.samples.tolist() for p in parts] == [[0, 1], [2], [3, 4]]
    assert [p.groups.tolist() for p in parts] == [["p", "q"], [7], ["sample 3", "sample 4"]]
    with pytest.raises(DataError, match="1 groups for 2 samples"):
        list(walk(study([batch(2, group=["p"])])))
    with pytest.raises(DataError, match="there is none"):
        list(walk(study([])))
    with pytest.raises(ConfigError, match="read only once"):
        Study(Net(), lambda batch: batch, iter([]))


def test_labels_come_from_a_key_or_a_function() -> None:
    one = batch(2, label=[0, 2])
    assert labels_of(study([one]), one).tolist() == [0, 2]
    own = study([one], label=lambda found: found["x"][:, 0, 0] > 9)
    assert labels_of(own, one).tolist() == [False, False]
    with pytest.raises(DataError, match="a batch has no 'label'"):
        labels_of(study([one]), batch())
    assert batch_size((torch.zeros(4, 2), 1)) == batch_size(torch.zeros(4)) == 4
    with pytest.raises(DataError, match="without a tensor"):
        batch_size([1, 2])


def test_evaluating_restores_every_mode() -> None:
    net = Net().train()
    net.blocks[0].eval()
    with evaluating(net):
        assert not any(m.training for m in net.modules())
    assert net.training
    assert net.blocks[1].mixer.training
    assert not net.blocks[0].mixer.training


def frame(values: np.ndarray, groups: list[Any]) -> pd.DataFrame:
    part = Part(None, np.arange(len(values)), np.array(groups, dtype=object))
    return head_rows(part, 0, {"m": values[:, None]})


def test_intervals_are_those_of_groups_drawn_whole() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 6, 40)
    groups = np.repeat(np.arange(40), sizes)
    values = rng.normal(size=40)[groups] + 0.1 * rng.normal(size=len(groups))
    table = with_intervals(frame(values, groups.tolist()))
    assert list(table) == ["layer", "head", "measure", "value", "lo", "hi"]
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        chosen = generator.integers(0, 40, 40)
        drawn.append(np.concatenate([values[groups == g] for g in chosen]).mean())
    row = table.iloc[0]
    assert row["value"] == pytest.approx(values.mean())
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([row["lo"], row["hi"]], expected, rtol=1e-9)
    alone = with_intervals(frame(values, [None] * len(values))).iloc[0]
    assert alone["hi"] - alone["lo"] < 0.8 * (row["hi"] - row["lo"])


def test_intervals_leave_out_undefined_values_and_need_ten_groups() -> None:
    values = np.array([1.0, np.nan, 3.0])
    row = with_intervals(frame(values, ["a", "b", "c"])).iloc[0]
    assert row["value"] == 2.0
    assert math.isnan(row["lo"])
    none = with_intervals(frame(np.full(12, np.nan), list(range(12)))).iloc[0]
    assert math.isnan(none["value"])
    assert math.isnan(none["hi"])


def test_interval_of_a_mean_is_that_of_the_metric() -> None:
    values = np.random.default_rng(2).normal(size=60)
    groups = np.arange(60) // 3
    row = with_intervals(frame(values, groups.tolist()), draws=200).iloc[0]
    limits = interval_of_metric(lambda rows: values[rows].mean(), groups, draws=200)
    np.testing.assert_allclose(limits, [row["lo"], row["hi"]])
    assert np.isnan(interval_of_metric(lambda rows: 0.0, [1, 2])).all()


@pytest.mark.parametrize("mask", [None, Causal(), KeyPadding(torch.tensor([5, 3, 4]))])
@pytest.mark.parametrize("budget", [10**6, 40])
def test_streamed_rows_are_the_whole_maps(mask: Any, budget: int) -> None:
    one = batch()
    own = study([one], mask)
    with capture(own.model) as found, torch.no_grad():
        own.model.eval()
        own.forward(one)
    names = pick_sites(own.model)
    blocks: dict[int, list[Any]] = {0: [], 1: []}
    for rows in stream_maps(own, one, names, budget):
        blocks[rows.layer].append(rows)
        seen = rows.visible.expand(rows.weights.shape)
        assert ((rows.weights > 0) == seen).all()
    for layer, name in names.items():
        whole = torch.cat([rows.weights for rows in blocks[layer]], 2)
        torch.testing.assert_close(whole, found.maps[name][0])
        order = torch.cat([rows.rows for rows in blocks[layer]])
        assert order.tolist() == list(range(5))
        assert (len(blocks[layer]) > 1) == (budget == 40)


def test_edits_get_what_is_visible_and_leave_nothing_behind() -> None:
    one = batch()
    own = study([one], Causal())
    before = own.forward(one)
    seen = []

    def keep(weights: Tensor, visible: Tensor) -> Tensor:
        seen.append(visible.expand(weights.shape))
        return weights

    with edit_visible(own.model, {"blocks.1.mixer.attend": keep}):
        torch.testing.assert_close(own.forward(one), before)
    assert (seen[0] == torch.ones(5, 5).tril().bool()).all()
    own.forward(one)
    assert len(seen) == 1
    with watch_calls(own.model, ["blocks.0.mixer.attend"]) as calls:
        own.forward(one)
    assert calls["blocks.0.mixer.attend"][0].shape.keys == 5
