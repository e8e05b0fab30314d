import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from manyhead.autoint.store import Block, Layout, Store, StoreWriter, columns
from manyhead_core.errors import DataError


def block(rows: int, singles: int = 3, slots: tuple[int, ...] = (2, 4), start: int = 0) -> Block:
    draw = np.random.default_rng([7, start])
    return Block(
        draw.integers(0, 1000, (rows, singles), dtype=np.int32),
        draw.random((rows, singles), dtype=np.float32),
        tuple(
            (
                draw.integers(0, 9, (rows, width), dtype=np.int32),
                draw.random((rows, width), dtype=np.float32),
            )
            for width in slots
        ),
        draw.integers(0, 2, rows).astype(np.float32),
        np.arange(start, start + rows, dtype=np.int64),
        draw.integers(-1, 2**62, rows),
    )


def write(path: Path, pieces: list[Block], block_rows: int = 8) -> Path:
    layout = Layout(pieces[0].index.shape[1], tuple(ids.shape[1] for ids, _ in pieces[0].lists))
    with StoreWriter(path, layout, block_rows) as writer:
        for piece in pieces:
            writer.append(piece)
    return path


@pytest.mark.parametrize("sizes", [(5, 1, 14), (8, 8), (30,), (3,)])
@pytest.mark.parametrize("slots", [(), (2, 4)])
def test_rows_come_back_in_order(tmp_path, sizes, slots):
    pieces = [block(n, slots=slots, start=100 * i) for i, n in enumerate(sizes)]
    store = Store(write(tmp_path / "a.arrow", pieces))
    assert len(store) == sum(sizes)
    found = [columns(rows) for rows in store.blocks()]
    assert [len(part[0]) for part in found] == [
        store.block_size(number) for number in range(store.num_blocks)
    ]
    assert all(len(part[0]) == 8 for part in found[:-1])
    wanted = zip(*(columns(piece) for piece in pieces), strict=True)
    for got, want in zip(zip(*found, strict=True), wanted, strict=True):
        joined = torch.cat(got).numpy()
        assert joined.dtype == want[0].dtype
        np.testing.assert_array_equal(joined, np.concatenate(want))


def test_blocks_share_the_memory_of_the_file_and_cannot_change_it(tmp_path):
    path = write(tmp_path / "a.arrow", [block(20)])
    before = path.read_bytes()
    store = Store(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again = store.block(1), store.block(1)
    assert first.index.data_ptr() == again.index.data_ptr()
    first.index.fill_(5)
    assert path.read_bytes() == before


def write_and_fail(path: Path) -> None:
    with StoreWriter(path, Layout(3)) as writer:
        writer.append(block(20, slots=()))
        raise ZeroDivisionError


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "a.arrow")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_has_no_rows(tmp_path):
    with StoreWriter(tmp_path / "a.arrow", Layout(3)):
        pass
    assert len(Store(tmp_path / "a.arrow")) == 0


def test_a_torn_file_is_named(tmp_path):
    path = write(tmp_path / "a.arrow", [block(20)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.arrow: no complete store"):
        Store(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.arrow: no complete store"):
        Store(path)
    with pytest.raises(DataError, match=r"b\.arrow: cannot be read"):
        Store(tmp_path / "b.arrow")


def test_another_arrow_file_is_no_store(tmp_path):
    table = pa.table({"index": [1, 2]})
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    with pytest.raises(DataError, match="no store of encoded rows"):
        Store(path)


def test_row_bytes_is_what_the_file_takes(tmp_path):
    pieces = [block(4096)]
    path = write(tmp_path / "a.arrow", pieces, block_rows=4096)
    assert path.stat().st_size == pytest.approx(4096 * Layout(3, (2, 4)).row_bytes(), rel=0.05)
