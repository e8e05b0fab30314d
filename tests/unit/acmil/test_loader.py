"""Packed batches: what is drawn, how it is shared among processes, where it goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.loader import BagLoader
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.sources import BagSource
from manyhead_core.errors import DataError

SIZES = [3, 1, 7, 2, 9, 4, 5, 1, 6, 8, 2, 3]


class Bags(BagSource):
    """Every number of a bag is its own number."""

    def __init__(self) -> None:
        names = [f"s{k}" for k in range(len(SIZES))]
        frame = pd.DataFrame({"id": names, "case": names, "site": "", "event": True})
        frame["label"] = [int(k >= 9) for k in range(len(SIZES))]
        super().__init__(frame, ("a", "b"), SIZES, 2)

    def read(self, number, rows=None):
        bag = np.full((SIZES[number], 2), number, np.float32)
        bag[:, 1] = np.arange(len(bag))
        return bag if rows is None else bag[rows]


def loader(**options: Any) -> BagLoader:
    numbers = np.arange(len(SIZES))
    return BagLoader(Bags(), numbers, BagPreprocessor(2, ("a", "b")), **options)


def order(batches) -> list[list[int]]:
    return [batch.number.tolist() for batch in batches]


def test_batches_are_packed_in_the_order_of_the_table():
    batches = list(loader(batch_bags=5))
    assert order(batches) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    first = batches[0]
    assert first.cu_seqlens.tolist() == [0, 3, 4, 11, 13, 22]
    assert first.features[:, 0].tolist() == np.repeat(range(5), SIZES[:5]).tolist()
    assert first.label.tolist() == [0] * 5
    assert batches[1].label.tolist() == [0, 0, 0, 0, 1]


def test_every_epoch_has_an_order_of_its_own_that_follows_from_the_seed():
    first, second = loader(shuffle=True), loader(shuffle=True)
    epochs = [order(first), order(first)]
    assert epochs[0] != epochs[1]
    assert [order(second), order(second)] == epochs
    assert order(loader(shuffle=True, seed=1)) != epochs[0]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(len(SIZES)))


@pytest.mark.parametrize("options", [{"batch_bags": 2}, {"batch_bags": 4, "batch_patches": 12}])
def test_it_goes_on_where_it_was_cut(options):
    whole = loader(shuffle=True, max_patches=3, **options)
    batches = [*whole, *whole]
    first = loader(shuffle=True, max_patches=3, **options)
    steps = iter(first)
    for _ in range(2):
        next(steps)
    state = first.state_dict()
    second = loader(shuffle=True, max_patches=3, **options)
    second.load_state_dict(state)
    rest = [*second, *second]
    assert order(rest) == order(batches[2:])
    for ours, theirs in zip(rest, batches[2:], strict=True):
        np.testing.assert_array_equal(ours.features, theirs.features)


@pytest.mark.parametrize("options", [{"batch_bags": 2}, {"batch_bags": 4, "batch_patches": 12}])
def test_processes_share_the_batches_and_take_as_many_steps(options):
    alone = loader(shuffle=True, **options)
    shares = [loader(shuffle=True, rank=k, world_size=2, **options) for k in range(2)]
    assert len({len(share) for share in shares}) == 1
    for _ in range(3):
        both = [order(share) for share in shares]
        assert [len(found) for found in both] == [len(shares[0])] * 2
        expected = order(alone)[: 2 * len(shares[0])]
        assert [batch for pair in zip(*both, strict=True) for batch in pair] == expected
    held = [loader(batch_bags=5, rank=k, world_size=2) for k in range(2)]
    assert [order(share) for share in held] == [[[0, 1, 2, 3, 4], [10, 11]], [[5, 6, 7, 8, 9]]]
    assert [len(share) for share in held] == [2, 1]


def test_more_processes_than_batches():
    with pytest.raises(DataError, match="3 training batches are too few for 4 processes"):
        loader(shuffle=True, batch_bags=4, world_size=4)


def test_a_limit_of_patches_ends_a_batch_and_all_epochs_are_as_long():
    found = loader(shuffle=True, batch_bags=4, batch_patches=10, epochs=7)
    for _ in range(7):
        batches = list(found)
        assert len(batches) == len(found)
        assert all(len(b.features) <= 10 for b in batches)
        assert sorted(np.concatenate(order(batches))) == list(range(len(SIZES)))
    large = loader(shuffle=True, batch_bags=4, batch_patches=1)
    assert order(large) == [[k] for k in np.concatenate(order(loader(shuffle=True)))]


def test_an_epoch_that_was_not_planned_has_as_many_batches():
    found = loader(shuffle=True, batch_bags=4, batch_patches=10, epochs=1)
    for _ in range(20):
        assert len(list(found)) == len(found)


def test_patches_are_drawn_anew_for_each_epoch():
    found = loader(shuffle=True, max_patches=4)
    drawn = []
    for _ in range(2):
        batches = {int(batch.number): batch.features for batch in found}
        assert [len(batches[k]) for k in range(len(SIZES))] == [min(4, n) for n in SIZES]
        drawn.append(batches[4][:, 1].tolist())
        assert drawn[-1] == sorted(set(drawn[-1]))
    assert drawn[0] != drawn[1]


def test_balanced_draws_as_many_of_each_class():
    found = loader(shuffle=True, balanced=True, batch_bags=12)
    label = np.concatenate([next(iter(found)).label for _ in range(50)])
    assert abs(label.mean() - 0.5) < 0.06


def test_a_bag_that_cannot_be_read_ends_the_epoch_with_its_error():
    found = loader()

    def fail(number, rows=None):
        raise DataError(f"s{number}: is damaged")

    found.source.read = fail
    with pytest.raises(DataError, match="s0: is damaged"):
        list(found)
