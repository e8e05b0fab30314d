from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.inspect import guessed, inspect
from manyhead.autoint.sources import open_source
from manyhead.autoint.sources.files import find_file
from manyhead.autoint.sources.guess import find_label, guess_delimiter
from manyhead.autoint.sources.table import TableSource
from manyhead.registry import get
from manyhead_core.errors import ConfigError, DataError

A = Field("a", "category")


def messy(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, rows)
    return pd.DataFrame(
        {
            "label": label,
            "row": [f"r{n}" for n in range(rows)],
            "user_id": rng.integers(0, 40, rows),
            "item_id": rng.integers(0, 300, rows),
            "day": rng.integers(1, 8, rows),
            "level": rng.integers(0, 5, rows),
            "price": np.round(rng.normal(10, 2, rows), 2),
            "tags": rng.choice(["a^b", "b", "c^a"], rows),
            "constant": "same",
            "outcome": np.where(label == 1, "bought", "left"),
            "device": rng.choice(["phone", "desktop", ""], rows),
        }
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.csv"
    messy().to_csv(path, index=False)
    return path


def columns_by_name() -> dict:
    columns, _ = guessed(messy().replace("", None), "label")
    return {column.name: column for column in columns}


def test_kinds_are_guessed():
    kinds = {name: column.kind for name, column in columns_by_name().items()}
    assert kinds["price"] == "number"
    assert kinds["tags"] == "list"
    assert kinds["item_id"] == kinds["level"] == kinds["device"] == "category"


def test_roles_and_warnings():
    columns = columns_by_name()
    assert columns["user_id"].role == "group"
    assert columns["day"].role == "time"
    assert columns["row"].role == "row_id"
    assert columns["constant"].warnings == ("constant",)
    assert "gives the label away" in columns["outcome"].warnings[0]
    assert columns["outcome"].auc == pytest.approx(1.0)
    assert columns["tags"].separator == "^"
    assert columns["device"].missing == pytest.approx(1 / 3, abs=0.07)


def test_a_column_of_noise_does_not_look_like_a_leak():
    columns = columns_by_name()
    assert all(
        columns[name].auc < 0.62 for name in ("item_id", "level", "price", "row", "constant")
    )


def test_the_draft_is_a_schema_that_reads_the_table(file, tmp_path, capsys):
    draft = tmp_path / "schema.yaml"
    inspect(get("autoint"), input=file, write_schema=draft)
    schema = Schema.load(draft)
    assert [f.name for f in schema.fields] == ["item_id", "level", "price", "tags", "device"]
    assert (schema.group, schema.time, schema.row_id) == ("user_id", "day", "row")
    frame = next(open_source("table", file, schema).chunks())
    assert frame["label"].tolist() == messy()["label"].tolist()
    assert "label label:" in capsys.readouterr().out
    with pytest.raises(DataError, match="exists already"):
        inspect(get("autoint"), input=file, write_schema=draft)


def test_a_schema_is_taken_as_it_is(file, tmp_path, capsys):
    schema = tmp_path / "schema.yaml"
    schema.write_text("label: label\nfields:\n- {name: price, kind: category}\n")
    inspect(get("autoint"), input=file, schema=schema)
    out = capsys.readouterr().out
    assert "400 rows, 1 columns" in out
    assert "price" in out


def test_the_label_is_asked_for_when_it_is_not_clear():
    with pytest.raises(ConfigError, match="--label: no column is called label"):
        find_label(pd.DataFrame({"a": [1]}))
    with pytest.raises(ConfigError, match="more than one"):
        find_label(pd.DataFrame({"click": [1], "label": [1]}))


def source(tmp_path, text: str, schema: Schema | None = None) -> TableSource:
    (tmp_path / "t.csv").write_text(text)
    return TableSource(tmp_path / "t.csv", schema or Schema("y", (A,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("y,b\n1,x\n", "column 'a' is missing"),
        ("y,aa\n1,x\n", "did you mean aa"),
        ("y,a,a\n1,x,z\n", "'a' appears twice"),
        ("y,a\n1,x\n,x\n", "label y, row 1: is missing"),
        ("y,a\n1,x\n0,x\n2,x\n", "label y, row 2: is 2, not 0 or 1"),
        ("y,a\n1,x\nyes,x\n", "label y, row 1: 'yes' is neither 0 nor 1; write 1 for"),
        ("y,a\n1,x\n1,x,3\n", "Expected 2 fields in line 3, saw 3; quote"),
        ("y,a\n1,x,3\n1,x\n", "has 3 values per row for 2 columns; quote"),
        ("y,a\n1\n0\n", "'a' is missing"),
        ("y,a\n", "is empty"),
    ],
)
def test_a_broken_table_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        list(source(tmp_path, text).chunks())


def test_text_in_a_number_column_names_the_row_of_the_file(tmp_path):
    schema = Schema("y", (Field("n", "number"),))
    text = "y,n\n" + "1,2.5\n" * 9 + "0,many\n"
    (tmp_path / "t.csv").write_text(text)
    table = TableSource(tmp_path / "t.csv", schema, chunk_rows=4)
    with pytest.raises(DataError, match="column n, row 9: 'many' is no number"):
        list(table.chunks())


def test_counts_become_labels_above_a_threshold(tmp_path):
    schema = Schema("y", (A,), label_above=2)
    frames = source(tmp_path, "y,a\n0,x\n2,x\n3,x\n", schema).chunks()
    assert next(frames)["y"].tolist() == [0, 0, 1]


def test_texts_stay_texts(tmp_path):
    frame = next(source(tmp_path, "y,a\n1,007\n0,7\n1,1.10\n0,NA\n").chunks())
    assert frame["a"].tolist() == ["007", "7", "1.10", "NA"]


def test_rows_are_numbered_over_chunks_and_files(tmp_path):
    for name, day in (("b.csv", 2), ("a.csv", 1)):
        folder = tmp_path / "log" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / name).write_text(f"y,a\n1,{name}\n0,z\n1,z\n")
    table = TableSource(tmp_path / "log", Schema("y", (A,), time="day"), chunk_rows=2)
    frames = list(table.chunks())
    assert np.concatenate([f.index for f in frames]).tolist() == list(range(6))
    together = pd.concat(frames)
    assert together["day"].tolist() == ["1"] * 3 + ["2"] * 3
    assert together["a"].tolist()[::3] == ["a.csv", "b.csv"]


def test_parquet_keeps_long_ids_beside_gaps(tmp_path):
    big = 2**62 + 1
    frame = pd.DataFrame({"y": [0, 1], "a": pd.array([big, None], dtype="Int64")})
    frame.to_parquet(tmp_path / "t.parquet")
    read = next(TableSource(tmp_path / "t.parquet", Schema("y", (A,))).chunks())
    assert read["a"].iloc[0] == str(big)


def test_new_data_need_no_label_and_may_lack_columns(tmp_path):
    (tmp_path / "t.csv").write_text("b\nx\n")
    schema = Schema("y", (A, Field("b", "category")))
    table = TableSource(tmp_path / "t.csv", schema, labelled=False, allow_absent=True)
    assert list(next(table.chunks()).columns) == ["b"]


def test_the_fingerprint_follows_content_and_schema(tmp_path):
    first = source(tmp_path, "y,a\n1,x\n").fingerprint
    assert source(tmp_path, "y,a\n1,x\n").fingerprint == first
    assert source(tmp_path, "y,a\n0,x\n").fingerprint != first
    assert source(tmp_path, "y,a\n1,x\n", Schema("y", (A,), group="a")).fingerprint != first


def test_a_table_without_a_schema_says_how_to_get_one(file):
    with pytest.raises(ConfigError, match="--write_schema"):
        open_source("table", file, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "holds no train"), (["train.txt", "train_2.txt"], "keep one")],
)
def test_files_that_are_missing_or_ambiguous(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message):
        find_file(tmp_path, "train*.txt", "training")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"y,a\n" + bytes(range(48, 58)) * 5000)[:-20], "is damaged or cut off"),
        (gzip.compress(b"y,a\n1,\xe4\n"), "is no utf-8 text"),
        (b"y,a\n", "is damaged or cut off"),
    ],
    # The bytes hold the time of writing, which differs between the processes of a parallel run.
    ids=["cut off", "not utf-8", "not gzip"],
)
def test_a_damaged_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(TableSource(path, Schema("y", (A,))).chunks())
    with pytest.raises(DataError, match=message):
        inspect(get("autoint"), input=path, label="y")


def test_an_empty_part_among_others_is_passed_over(tmp_path):
    full = pd.DataFrame({"y": [0, 1], "a": ["x", "z"]})
    full.head(0).to_parquet(tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match="is empty"):
        list(TableSource(tmp_path, Schema("y", (A,))).chunks())
    full.to_parquet(tmp_path / "part-1.parquet")
    frames = list(TableSource(tmp_path, Schema("y", (A,))).chunks())
    assert pd.concat(frames)["a"].tolist() == ["x", "z"]


def test_records_in_parquet_are_refused(tmp_path):
    frame = pd.DataFrame({"label": [0, 1], "who": [{"a": 1}, {"a": 2}]})
    frame.to_parquet(tmp_path / "nested.parquet")
    with pytest.raises(DataError, match=r"column 'who' holds struct.*flatten it"):
        inspect(get("autoint"), tmp_path / "nested.parquet", label="label")


def test_a_european_export_is_drafted_and_read_as_numbers(tmp_path):
    frame = messy().assign(when="2024-05-31").replace("", "none")
    frame.to_csv(tmp_path / "point.csv", index=False)
    frame.to_csv(tmp_path / "comma.csv", index=False, sep=";", decimal=",")
    for name in ("point", "comma"):
        inspect(get("autoint"), tmp_path / f"{name}.csv", write_schema=tmp_path / f"{name}.yaml")
    schema = Schema.load(tmp_path / "comma.yaml")
    assert (schema.delimiter, schema.decimal) == (";", ",")
    found, expected = (
        pd.concat(
            TableSource(tmp_path / f"{name}.csv", Schema.load(tmp_path / f"{name}.yaml")).chunks()
        )
        for name in ("comma", "point")
    )
    pd.testing.assert_frame_equal(found, expected)
    assert found["price"].dtype == np.float64


def test_a_comma_beside_commas_is_no_decimal_mark(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('y,a\n0,"1,234"\n1,"1,235"\n')
    inspect(get("autoint"), path, label="y", write_schema=tmp_path / "s.yaml")
    schema = Schema.load(tmp_path / "s.yaml")
    assert schema.decimal == "."
    assert schema.fields[0].kind == "category"


def test_text_in_a_column_with_decimal_commas_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("y;a\n1;1,5\n0;high\n")
    schema = Schema("y", (Field("a", "number"),), delimiter=";", decimal=",")
    with pytest.raises(DataError, match="column a, row 1: 'high' is no number"):
        list(TableSource(path, schema).chunks())
    with pytest.raises(DataError, match="set delimiter: ';' in the schema"):
        list(TableSource(path, Schema("y", (A,))).chunks())
    with pytest.raises(ConfigError, match=r"schema.decimal: is ';'"):
        Schema("y", (A,), decimal=";")


def test_delimiters_are_guessed_from_the_first_line(tmp_path):
    for line, mark in (("a,b", ","), ("a;b,c;d", ","), ("a|b|c", "|"), ("a\tb", "\t"), ("a", ",")):
        (tmp_path / "t.csv").write_text(f"{line}\n")
        assert guess_delimiter(tmp_path / "t.csv") == mark


def test_a_counted_label_can_be_drafted(tmp_path, capsys):
    path, draft = tmp_path / "t.csv", tmp_path / "schema.yaml"
    messy().assign(label=[n % 4 for n in range(400)]).to_csv(path, index=False)
    with pytest.raises(DataError, match="set label_above, in the schema or of inspect"):
        inspect(get("autoint"), path)
    inspect(get("autoint"), path, label_above=1, write_schema=draft)
    assert "50.00% of the rows are 1" in capsys.readouterr().out
    assert Schema.load(draft).label_above == 1


def test_columns_in_the_names_of_folders_are_inspected(tmp_path, capsys):
    for region in ("north", "south"):
        (tmp_path / "t" / f"region={region}").mkdir(parents=True)
        messy(100).to_csv(tmp_path / "t" / f"region={region}" / "x.csv", index=False)
    inspect(get("autoint"), tmp_path / "t", write_schema=tmp_path / "schema.yaml")
    draft = Schema.load(tmp_path / "schema.yaml")
    assert "region" in {field.name for field in draft.fields}
    assert len(next(TableSource(tmp_path / "t", draft).chunks())) == 100
    assert "100 of 200 rows" not in capsys.readouterr().err, "another region, so no copies"


def test_copies_are_mentioned(tmp_path, capsys):
    pd.concat([messy(100), messy(100)]).to_csv(tmp_path / "t.csv", index=False)
    inspect(get("autoint"), tmp_path / "t.csv")
    assert "100 of 200 rows repeat an earlier one" in capsys.readouterr().err


def test_long_ids_with_gaps_keep_their_digits(tmp_path, capsys):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ids = [None, *[9_007_199_254_740_992 + n % 90 for n in range(99)]]
    table = pa.table({"label": [n % 2 for n in range(100)], "a": pa.array(ids, pa.int64())})
    pq.write_table(table, tmp_path / "t.parquet")
    inspect(get("autoint"), tmp_path / "t.parquet")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("a "))
    assert line.split()[2] == "90", "neighbours beyond 2**53 are not the same value"


def test_roles_of_clinical_tables():
    frame = messy().assign(patient_id=7, visit_date=["2024-05-31", "2024-06-01"] * 200)
    columns = {c.name: c for c in guessed(frame.assign(day="Monday"), "label")[0]}
    assert columns["patient_id"].role == "group"
    assert columns["visit_date"].role == "time"
    assert columns["day"].role == "", "a name is nothing to order rows by"
