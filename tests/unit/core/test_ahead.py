"""Batches read ahead: shared among processes, gone on with, ended by an error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from manyhead_core.data.ahead import AheadLoader, Numbers
from manyhead_core.errors import DataError


class Items(NamedTuple):
    """Numbers of the items and what the loader said about the batch."""

    number: torch.Tensor
    about: torch.Tensor


class Loader(AheadLoader[Items]):
    """Ten items in an order of every epoch's own, two a batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"training": True} | options))
        self.asked: list[int] = []
        self.plan(5, "data.batch_items")

    def batches(self, epoch: int) -> list[Numbers]:
        order = np.random.default_rng((self.seed, epoch)).permutation(10)
        return np.split(order, 5)

    def read(self, batch: Numbers, epoch: int, place: int) -> Items:
        self.asked.append(place)
        if batch[0] < 0:
            raise DataError("item -1: is damaged")
        return Items(torch.from_numpy(batch), torch.tensor([epoch, place]))


def order(loader: Loader) -> list[list[int]]:
    return [batch.number.tolist() for batch in loader]


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_run_that_was_cut_meets_the_batches_it_would_have_met(stop: int, threads: int) -> None:
    whole = Loader()
    expected = order(whole) + order(whole)
    cut = Loader(threads=threads)
    steps = iter(cut)
    first = [next(steps).number.tolist() for _ in range(stop)]
    resumed = Loader(threads=threads)
    resumed.load_state_dict(cut.state_dict())
    assert (first + order(resumed) + order(resumed))[:10] == expected
    assert whole.state_dict() == {"epoch": 2, "position": 0}


def test_evaluation_begins_anew_each_time() -> None:
    loader = Loader(training=False)
    next(iter(loader))
    assert len(order(loader)) == len(loader) == 5


def test_processes_take_as_many_steps_in_training_and_every_item_in_evaluation() -> None:
    training = [list(Loader(rank=k, world_size=2)) for k in range(2)]
    assert [len(own) for own in training] == [2, 2]
    # Epoch and place, over both processes.
    assert [b.about.tolist() for b in training[1]] == [[0, 1], [0, 3]]
    held = [order(Loader(training=False, rank=k, world_size=2)) for k in range(2)]
    assert [len(own) for own in held] == [3, 2]
    assert sorted(n for own in held for b in own for n in b) == list(range(10))


def test_more_processes_than_batches() -> None:
    with pytest.raises(DataError, match=r"data.batch_items: 5 training batches are too few for 6"):
        Loader(world_size=6)
    assert len(Loader(training=False, rank=5, world_size=6)) == 0


def test_no_more_is_read_than_is_waited_for() -> None:
    loader = Loader()
    steps = iter(loader)
    next(steps)
    steps.close()
    assert set(loader.asked) <= {0, 1, 2}


def test_an_item_that_cannot_be_read_ends_the_epoch_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = Loader()
    monkeypatch.setattr(loader, "batches", lambda _: np.split(np.arange(4, -6, -1), 5))
    with pytest.raises(DataError, match="item -1: is damaged"):
        order(loader)
