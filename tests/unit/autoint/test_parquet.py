import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manyhead.autoint.feature_map import (
    MAP_FILE,
    EncodedField,
    EncodedFields,
    part_files,
    read_map,
    write_map,
)
from manyhead.autoint.parquet import EncodedReader, EncodedWriter
from manyhead.autoint.store import Block, columns
from manyhead_core.errors import DataError

FIELDS = EncodedFields(
    "click",
    [
        EncodedField("age", "number", 0, 1),
        EncodedField("city", "category", 1, 10),
        EncodedField("genres", "list", 11, 5, slots=3),
        EncodedField("device", "category", 16, 4, padding=0),
    ],
    20,
)


def block(rows: int, seed: int = 0) -> Block:
    draw = np.random.default_rng(seed)
    index = np.stack(
        [np.zeros(rows), draw.integers(1, 11, rows), draw.integers(17, 20, rows)], 1
    ).astype(np.int32)
    value = np.ones((rows, 3), np.float32)
    value[:, 0] = draw.normal(size=rows)
    value[:, 1] = draw.integers(0, 2, rows)
    index[value[:, 1] == 0, 1] = 1
    used = np.arange(3) < draw.integers(0, 4, rows)[:, None]
    ids = np.where(used, draw.integers(11, 16, (rows, 3)), 11).astype(np.int32)
    return Block(
        index,
        value,
        ((ids, used.astype(np.float32)),),
        draw.integers(0, 2, rows).astype(np.float32),
        np.arange(rows) + 1000,
        draw.integers(-1, 50, rows),
    )


def foreign(folder: Path, table: dict, features: dict) -> Path:
    pq.write_table(pa.table(table), folder / "train.parquet")
    content = {"labels": ["clk"], "features": [{n: f} for n, f in features.items()]}
    (folder / MAP_FILE).write_text(json.dumps(content))
    return folder


def read(folder: Path) -> Block:
    return next(iter(EncodedReader([folder / "train.parquet"], read_map(folder))))


def test_what_is_written_is_read(tmp_path):
    pieces = [block(70), block(30, seed=1)]
    with EncodedWriter(tmp_path / "train.parquet", FIELDS) as writer:
        for piece in pieces:
            writer.append(piece)
    write_map(tmp_path, FIELDS)
    fields = read_map(tmp_path)
    assert fields.field_names == ["age", "city", "device", "genres"]
    assert fields.num_features == 20
    reader = EncodedReader([tmp_path / "train.parquet"], fields, batch_rows=40)
    assert len(reader) == 100
    found = list(reader)
    assert max(len(part.label) for part in found) == 40
    wanted = zip(*(columns(piece) for piece in pieces), strict=True)
    for got, want in zip(zip(*map(columns, found), strict=True), wanted, strict=True):
        assert got[0].dtype == want[0].dtype
        np.testing.assert_array_equal(np.concatenate(got), np.concatenate(want))


def test_a_failed_write_leaves_no_file(tmp_path):
    writer = EncodedWriter(tmp_path / "train.parquet", FIELDS)
    writer.append(block(5))
    writer.__exit__(ValueError, ValueError(), None)
    assert list(tmp_path.iterdir()) == []


def test_ids_within_fields_get_consecutive_ranges(tmp_path):
    table = {"clk": [0.0, 1.0], "b": [0, 2], "a": [1, None], "n": [2.5, None]}
    features = {
        "a": {"type": "categorical", "vocab_size": 3},
        "n": {"type": "numeric"},
        "b": {"type": "categorical", "vocab_size": 4, "padding_idx": 0},
    }
    folder = foreign(tmp_path, table, features)
    found = read(folder)
    assert read_map(folder).num_features == 8
    np.testing.assert_array_equal(found.index, [[1, 3, 4], [0, 3, 6]])
    np.testing.assert_array_equal(found.value, [[1, 2.5, 0], [0, 0, 1]])
    np.testing.assert_array_equal(found.label, [0, 1])
    np.testing.assert_array_equal(found.group, [-1, -1])


def test_lists_are_cut_and_padded(tmp_path):
    table = {"clk": [0, 1, 0], "a": [0, 0, 0], "l": [[1, 2, 0, 2], None, [2, 0]]}
    features = {
        "a": {"type": "categorical", "vocab_size": 1},
        "l": {"type": "sequence", "vocab_size": 3, "max_len": 3, "padding_idx": 0},
    }
    ids, weights = read(foreign(tmp_path, table, features)).lists[0]
    np.testing.assert_array_equal(ids, [[2, 3, 1], [1, 1, 1], [3, 1, 1]])
    np.testing.assert_array_equal(weights, [[1, 1, 0], [0, 0, 0], [1, 0, 0]])


def test_numbers_that_are_none_count_as_missing(tmp_path):
    table = {"clk": [0, 1, 0, 1], "a": [np.inf, np.nan, None, 3.0]}
    found = read(foreign(tmp_path, table, {"a": {"type": "numeric"}}))
    np.testing.assert_array_equal(found.value[:, 0], [0, 0, 0, 3])


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_id_out_of_range_names_column_and_value(tmp_path, bad):
    features = {"a": {"type": "categorical", "vocab_size": 3}}
    folder = foreign(tmp_path, {"clk": [0, 1], "a": [1, bad]}, features)
    with pytest.raises(DataError, match=rf"column a holds id {bad}, outside 0\.\.2"):
        read(folder)


def test_columns_that_do_not_fit_the_map_are_named(tmp_path):
    features = {"a": {"type": "categorical", "vocab_size": 3}}
    folder = foreign(tmp_path, {"clk": [0, 1], "a": ["x", "y"]}, features)
    with pytest.raises(DataError, match=r"column a is string, feature_map\.json calls it"):
        EncodedReader([folder / "train.parquet"], read_map(folder))
    folder = foreign(tmp_path, {"clk": [0, 1], "b": [0, 1]}, features)
    with pytest.raises(DataError, match="has no column a;"):
        EncodedReader([folder / "train.parquet"], read_map(folder))
    folder = foreign(tmp_path, {"clk": [0, 2], "a": [0, 1]}, features)
    with pytest.raises(DataError, match="column clk holds other labels than 0 and 1"):
        read(folder)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"type": "embedding"}, "is of type 'embedding'; known: categorical"),
        ({"type": "categorical"}, "has no vocab_size"),
        ({"type": "sequence", "vocab_size": 3}, "has no max_len"),
    ],
)
def test_a_map_that_lacks_something_says_what(feature, message):
    with pytest.raises(DataError, match=message):
        EncodedFields.from_map({"labels": ["y"], "features": [{"a": feature}]})


def test_a_newer_map_is_refused():
    with pytest.raises(DataError, match="format 99 is newer"):
        EncodedFields.from_map({"labels": ["y"], "features": [], "format": 99})


def test_a_folder_without_a_map_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no feature_map\.json"):
        read_map(tmp_path)


def test_state_brings_the_fields_back():
    again = EncodedFields.from_state(*FIELDS.state())
    assert again.fields == FIELDS.fields
    assert json.loads(json.dumps(FIELDS.state()[0])) == FIELDS.state()[0]


def test_parts_are_found_by_their_usual_names(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("train/b.parquet", "train/a.parquet", "valid.parquet", "test_0.parquet"):
        (tmp_path / name).touch()
    found = {part: [f.name for f in files] for part, files in part_files(tmp_path).items()}
    assert found == {
        "train": ["a.parquet", "b.parquet"],
        "validation": ["valid.parquet"],
        "test": ["test_0.parquet"],
    }
