"""Splits by patient, and split files of three tools."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.splits import SplitOptions, assign
from manyhead_core.errors import ConfigError, DataError


def frame(patients: int = 40, slides: int = 3) -> pd.DataFrame:
    """Every fourth patient is positive in one slide."""
    rows = [
        (f"s{p}-{k}", f"p{p}", int(p % 4 == 0 and k == 0))
        for p in range(patients)
        for k in range(slides)
    ]
    return pd.DataFrame(rows, columns=["id", "case", "label"])


@pytest.mark.parametrize(
    "options",
    [SplitOptions(), SplitOptions(by="fold", folds=4), SplitOptions(fractions=(0.5, 0, 0.5))],
)
def test_a_patient_is_in_one_part(options):
    table = frame()
    codes = assign(table, options)
    assert (pd.Series(codes).groupby(table["case"]).nunique() == 1).all()
    assert (codes >= 0).all()


def test_random_keeps_the_shares_of_the_classes():
    table = frame(slides=1)
    codes = assign(table, SplitOptions(fractions=(0.5, 0.2, 0.3)))
    counts = pd.crosstab(codes, table["label"])
    assert counts[0].tolist() == [15, 6, 9]
    assert counts[1].tolist() == [5, 2, 3]


def test_random_follows_the_seed_and_not_the_order_of_rows():
    table = frame()
    codes = assign(table, SplitOptions(seed=3))
    shuffled = table.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(assign(shuffled, SplitOptions(seed=3)), codes[shuffled.index])
    assert (assign(table, SplitOptions(seed=4)) != codes).any()


def test_folds_test_every_bag_once_and_validate_with_the_next():
    table = frame(slides=1)
    codes = np.stack([assign(table, SplitOptions(by="fold", fold=k)) for k in range(5)])
    assert ((codes == 2).sum(0) == 1).all()
    assert ((codes == 1).sum(0) == 1).all()
    np.testing.assert_array_equal(codes[1] == 2, codes[0] == 1)
    none = assign(table, SplitOptions(by="fold", validation_folds=0))
    np.testing.assert_array_equal(none == 2, codes[0] == 2)
    assert not (none == 1).any()


def test_folds_of_a_rare_class_and_of_numbers():
    table = frame(patients=12, slides=1)
    assign(table.assign(label=[1, 1] + [0] * 10), SplitOptions(by="fold"))
    assign(table.assign(label=np.arange(12.0)), SplitOptions(by="fold"))


def test_the_column_of_the_table():
    table = frame(4, 1).assign(split=["train", "val", "testing", ""])
    np.testing.assert_array_equal(assign(table, SplitOptions(by="column")), [0, 1, 2, -1])
    with pytest.raises(DataError, match="'tarin' in the column split"):
        assign(table.assign(split="tarin"), SplitOptions(by="column"))
    with pytest.raises(DataError, match="no column split"):
        assign(frame(4, 1), SplitOptions(by="column"))


def read(tmp_path, name: str, content: str, table: pd.DataFrame):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return assign(table, SplitOptions(by=str(path)))


def test_split_files_of_three_tools(tmp_path):
    table = frame(4, 1)
    expected = [0, 0, 1, -1]
    official = {"train_names": ["s0-0", "s1-0"], "val_names": ["s2-0"], "test_names": ["other"]}
    clam = ",train,val,test\n0,s0-0,s2-0,other\n1,s1-0,,\n"
    flags = ",train,val,test\ns0-0,True,False,False\ns1-0,True,False,False\ns2-0,False,True,False\n"
    ours = "id,split\ns0-0,train\ns1-0,Train\ns2-0,validation\n"
    for name, content in (
        ("a.json", json.dumps(official)),
        ("b.csv", clam),
        ("c.csv", flags),
        ("d.csv", ours),
        ("e.csv", "case_id,split\np0,train\np1,train\np2,val\n"),
    ):
        np.testing.assert_array_equal(read(tmp_path, name, content, table), expected, name)


def test_slides_that_are_numbers_survive_blanks(tmp_path):
    table = pd.DataFrame({"id": ["12", "7.0b", "3"], "case": list("abc"), "label": 0})
    codes = read(tmp_path, "a.csv", "train,val,test\n12.0,3,7.0b\n", table)
    np.testing.assert_array_equal(codes, [0, 2, 1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "train,val\ns0-0,s0-1\n", "1 of 1 patients are in more than one part"),
        ("a.csv", "train,val\ns0-0,s0-0\n", "s0-0 is in two parts"),
        ("a.csv", "train\nx\n", "names none of the 12 bags; it names x"),
        ("a.csv", "a,b\n1,2\n", "no split file .its columns are a, b"),
        ("a.csv", "id,split\ns0-0,tarin\n", "'tarin' in the column split"),
        ("a.json", "{", "no split file"),
        ("a.json", '{"train_names": []}', "'val_names' is missing"),
        ("a.json", "[1]", "no split file"),
        ("a.csv", "", "no split file"),
    ],
)
def test_bad_split_files(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, name, content, frame(4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SplitOptions(by="nowhere.csv"), "is no file and none of random, fold, column"),
        (SplitOptions(fractions=(0.5, 0.1, 0.1)), "must be three shares that sum to 1"),
        (SplitOptions(by="fold", fold=5), "5 is not one of 0 to folds - 1 = 4"),
        (SplitOptions(by="fold", validation_folds=4), "4 of 5 folds leave none to train"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        assign(frame(), options)


def test_more_folds_than_bags():
    with pytest.raises(DataError, match="9 folds cannot be made of 4 bags"):
        assign(frame(4, 1), SplitOptions(by="fold", folds=9))
