from pathlib import Path

import numpy as np
import pytest
import torch

from manyhead.autoint.loader import RowLoader
from manyhead.autoint.store import Block, Layout, Store, StoreWriter
from manyhead_core.errors import ConfigError, DataError

BLOCK = 16


def make(folder: Path, rows: int) -> Store:
    number = np.arange(rows)
    index = np.stack([number, number + 1], 1).astype(np.int32)
    lists = ((index, index.astype(np.float32)),)
    label = (number % 2).astype(np.float32)
    with StoreWriter(folder / "train.arrow", Layout(2, (2,)), BLOCK) as writer:
        writer.append(Block(index, index / 2, lists, label, number, number * 3))
    return Store(folder / "train.arrow")


@pytest.fixture
def store(tmp_path):
    return make(tmp_path, 150)


def order(loader: RowLoader) -> list[int]:
    return [int(row) for batch in loader for row in batch.row]


@pytest.mark.parametrize("window", [16, 48, 64, 1000])
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_an_epoch_gives_every_row_once_and_whole(store, window, device):
    loader = RowLoader(store, 7, shuffle=True, window_rows=window, device=device)
    batches = list(loader)
    assert len(batches) == len(loader) == 22
    assert [len(batch.label) for batch in batches] == [7] * 21 + [3]
    rows = torch.cat([batch.row for batch in batches])
    assert sorted(rows.tolist()) == list(range(150))
    assert rows.tolist() != list(range(150))
    for batch in batches:
        torch.testing.assert_close(batch.index[:, 0].long(), batch.row)
        torch.testing.assert_close(batch.value, batch.index / 2)
        torch.testing.assert_close(batch.lists[0][0], batch.index)
        torch.testing.assert_close(batch.label.long(), batch.row % 2)
        torch.testing.assert_close(batch.group, batch.row * 3)


def test_the_order_follows_from_seed_and_epoch_alone(store):
    first = RowLoader(store, 7, shuffle=True, seed=3, window_rows=48)
    epochs = [order(first), order(first)]
    assert epochs[0] != epochs[1]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    resident = RowLoader(
        store, 11, shuffle=True, seed=3, window_rows=48, device=torch.device("cpu")
    )
    assert [order(resident), order(resident)] == epochs
    assert order(RowLoader(store, 7, shuffle=True, seed=4, window_rows=48)) != epochs[0]


def test_one_window_shuffles_the_whole_set(tmp_path):
    loader = RowLoader(make(tmp_path, 4000), 4000, shuffle=True)
    rows = next(iter(loader)).row.numpy()
    # The mean distance of a row from its place is a third of the set in a full shuffle.
    assert np.abs(rows - np.arange(4000)).mean() == pytest.approx(4000 / 3, rel=0.05)


@pytest.mark.parametrize("window", [48, 1000])
@pytest.mark.parametrize("stop", [0, 1, 9, 21, 22, 23])
def test_resuming_gives_the_batches_that_would_have_come(store, window, stop):
    whole = RowLoader(store, 7, shuffle=True, window_rows=window)
    rows = [batch.row.tolist() for _ in range(2) for batch in whole]
    first = RowLoader(store, 7, shuffle=True, window_rows=window)
    seen = 0
    while seen < stop:
        for _ in first:
            seen += 1
            if seen == stop:
                break
    second = RowLoader(store, 7, shuffle=True, window_rows=window)
    second.load_state_dict(first.state_dict())
    rest = []
    while len(rest) < 44 - stop:
        rest += [batch.row.tolist() for batch in second]
    assert rest == rows[stop:]


def test_two_processes_see_the_batches_of_one(store):
    one = [
        batch.row.tolist() for batch in RowLoader(store, 8, shuffle=True, window_rows=48, seed=1)
    ]
    half = [
        RowLoader(store, 4, shuffle=True, window_rows=48, seed=1, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    both = [left.row.tolist() + right.row.tolist() for left, right in zip(*half, strict=True)]
    assert both == one


def test_the_last_global_batch_is_cut_evenly(tmp_path):
    store = make(tmp_path, 31)
    parts = [RowLoader(store, 4, rank=rank, world_size=3) for rank in range(3)]
    sizes = [[len(batch.label) for batch in part] for part in parts]
    assert sizes == [[4, 4, 2]] * 3
    rows = [int(row) for part in parts for batch in part for row in batch.row]
    assert sorted(rows) == list(range(30))
    assert len(RowLoader(make(tmp_path, 26), 4, world_size=3)) == 2


def test_drop_last_leaves_out_the_incomplete_batch(store):
    loader = RowLoader(store, 7, shuffle=True, drop_last=True)
    assert {len(batch.label) for batch in loader} == {7}
    assert len(loader) == 21


def test_evaluation_starts_at_the_first_row_each_time(store):
    loader = RowLoader(store, 40)
    assert next(iter(loader)).row.tolist() == list(range(40))
    assert order(loader) == list(range(150))
    resident = RowLoader(store, 40, device=torch.device("cpu"), window_rows=48)
    assert order(resident) == list(range(150))


def test_batches_may_be_kept(store):
    for window in (48, 1000):
        loader = RowLoader(store, 7, shuffle=True, window_rows=window)
        kept = [batch for _ in range(3) for batch in loader]
        again = RowLoader(store, 7, shuffle=True, window_rows=window)
        fresh = [batch.index.clone() for _ in range(3) for batch in again]
        for old, new in zip(kept, fresh, strict=True):
            torch.testing.assert_close(old.index, new)


def test_two_windows_are_in_memory_at_a_time(store):
    loader = RowLoader(store, 7, shuffle=True, window_rows=48)
    for _ in range(3):
        for batch in loader:
            assert len(batch.label)
            assert len(loader._buffers._kept) <= 2


def test_sizes_that_cannot_work_are_named(store):
    with pytest.raises(ConfigError, match=r"data\.batch_size: must be at least 1, got 0"):
        RowLoader(store, 0)
    with pytest.raises(ConfigError, match=r"data\.window_rows: must be at least 1"):
        RowLoader(store, 5, window_rows=0)
    with pytest.raises(DataError, match="more than the 150 rows of train"):
        RowLoader(store, 200, drop_last=True)
