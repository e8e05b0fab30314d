from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources.table import TableSource
from manyhead.autoint.split import split, write_split
from manyhead.autoint.splitting import (
    SplitOptions,
    as_times,
    assign,
    by_fold,
    by_group,
    by_row,
    by_shuffle,
    by_time,
    read_split,
)
from manyhead.registry import get
from manyhead_core.errors import ConfigError, DataError, UserError

PARTS = (0.8, 0.1, 0.1)


def table(tmp_path, rows: int = 100, **schema) -> TableSource:
    number = np.arange(rows)
    frame = pd.DataFrame(
        {"y": number % 2, "a": "x", "u": number // 7, "t": number[::-1], "d": "2024-01-02"}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    return TableSource(tmp_path / "t.csv", Schema("y", (Field("a", "category"),), **schema))


def test_random_rows_have_exact_shares_and_depend_on_the_seed():
    part = by_row(1000, PARTS, 0)
    assert np.bincount(part).tolist() == [800, 100, 100]
    assert (part == by_row(1000, PARTS, 0)).all()
    assert (part != by_row(1000, PARTS, 1)).any()


def test_shares_below_1_leave_rows_unused():
    assert (by_row(100, (0.5, 0.2, 0.1), 0) == -1).sum() == 20


def test_groups_stay_together():
    group = np.random.default_rng(0).integers(0, 200, 5000)
    part = by_group(group, PARTS, 0)
    assert all(len(np.unique(part[group == g])) == 1 for g in range(200))
    np.testing.assert_allclose(np.bincount(part) / 5000, PARTS, atol=0.02)


def test_rows_without_a_group_are_spread():
    part = by_group(np.full(1000, -1), PARTS, 0)
    np.testing.assert_allclose(np.bincount(part) / 1000, PARTS, atol=0.002)


def test_time_splits_train_on_the_past_and_keep_moments_together():
    time = np.random.default_rng(0).integers(0, 40, 1000).astype(float)
    part = by_time(time, PARTS)
    assert time[part == 0].max() < time[part == 1].min()
    assert time[part == 1].max() < time[part == 2].min()


def test_folds_cover_all_rows_and_keep_the_label_rate():
    label = (np.arange(500) % 5 == 0).astype(float)
    tests = np.stack([by_fold(label, 5, fold, 0) == 2 for fold in range(5)])
    assert (tests.sum(0) == 1).all()
    assert [label[row].sum() for row in tests] == [20] * 5
    part = by_fold(label, 5, 4, 0)
    assert (by_fold(label, 5, 0, 0)[part == 1] == 2).all()


def test_the_published_shuffle_is_pythons():
    part = by_shuffle(148159, PARTS, 2019)
    assert part[[58952, 94181, 99021, 22560, 58393]].tolist() == [0] * 5
    assert np.bincount(part).tolist() == [118527, 14816, 14816]


def test_dates_and_numbers_order_alike():
    dates = pd.Series(["2024-01-02 10:00:00", "2024-01-02", "2024-02-01T00:00:00"])
    assert np.argsort(as_times(dates, "t")).tolist() == [1, 0, 2]
    as_dates = pd.to_datetime(dates, format="ISO8601")
    assert as_times(as_dates, "t").tolist() == as_times(dates, "t").tolist()
    assert as_times(pd.Series(["3", 4], dtype=object), "t").tolist() == [3, 4]


def test_a_broken_date_names_its_row():
    with pytest.raises(DataError, match="time column t, row 1: 'soon'"):
        as_times(pd.Series(["2024-01-02", "soon"]), "t")


def test_a_source_without_the_column_says_so(tmp_path):
    with pytest.raises(ConfigError, match="group needs a group column"):
        assign(table(tmp_path), SplitOptions(by="group"))
    with pytest.raises(ConfigError, match="no published split"):
        assign(table(tmp_path), SplitOptions(by="reference"))


def test_time_of_a_source_is_used(tmp_path):
    part = assign(table(tmp_path, time="t"), SplitOptions(by="time"))
    assert part[:10].tolist() == [2] * 10
    assert part[-80:].tolist() == [0] * 80


def test_one_class_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("y,a\n1,x\n1,x\n")
    source = TableSource(tmp_path / "t.csv", Schema("y", (Field("a", "category"),)))
    with pytest.raises(DataError, match="both classes"):
        assign(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.8, 0.3, 0.1)}, "more than 1"),
        ({"fractions": (0.0, 0.5, 0.5)}, "train above 0"),
        ({"by": "fold", "folds": 5, "fold": 5}, "is 5 of 5"),
        ({"by": "file"}, "needs one"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SplitOptions(**options)


def test_a_written_split_reads_back(tmp_path):
    part = np.array([0, 1, 2, -1, 0], dtype=np.int8)
    write_split(part, tmp_path / "split.csv")
    assert read_split(tmp_path / "split.csv", 5).tolist() == part.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,split\n0,train\n9,test\n", "names row 9"),
        ("row,split\n0,train\n0,test\n", "twice"),
        ("row,split\n0,test\n", "no row to train"),
        ("row,split\n0,trian\n", "did you mean train"),
        ("line,split\n0,train\n", "needs the columns"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, text, message):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "split.csv", 3)


def test_the_command_writes_once_and_reports(tmp_path, capsys):
    table(tmp_path)
    schema = tmp_path / "schema.yaml"
    schema.write_text("label: y\ngroup: u\nfields:\n- {name: a, kind: category}\n")
    out = tmp_path / "split.csv"
    split(get("autoint"), out, input=tmp_path / "t.csv", schema=schema, by="group")
    written = pd.read_csv(out)
    assert written["row"].tolist() == list(range(100))
    by_user = written["split"].groupby(np.arange(100) // 7).nunique()
    assert by_user.max() == 1
    assert "train" in capsys.readouterr().out
    with pytest.raises(DataError, match="exists already"):
        split(get("autoint"), out, input=tmp_path / "t.csv", schema=schema)
