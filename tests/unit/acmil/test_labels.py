"""Label tables and bad rows in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manyhead.acmil.labels import LabelOptions, classes_of, parse_classes, read_labels
from manyhead_core.errors import ConfigError, DataError


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path: Path, text: str, **options):
    return read_labels(table(tmp_path, text), LabelOptions(**options))


def test_classes_are_numbered_in_the_order_of_their_numbers(tmp_path):
    found = read(tmp_path, "slide_id,case_id,label\na,p,10\nb,p,9\nc,q,10\n")
    assert found.class_names == ("9", "10")
    assert found.frame["label"].tolist() == [1, 0, 1]
    assert found.frame["case"].tolist() == ["p", "p", "q"]


def test_groups_of_labels_and_what_is_left_out(tmp_path):
    text = "﻿slide_id,label\n a ,0\nb,1\nc,5\nd,\ne,3\n"
    found = read(tmp_path, text, classes="low=0,1; high=5")
    assert found.class_names == ("low", "high")
    assert found.frame["slide"].tolist() == ["a", "b", "c"]
    assert found.frame["label"].tolist() == [0, 0, 1]
    assert found.left_out == {
        "d": "the label is empty",
        "e": "the label '3' belongs to no class",
    }


def test_an_unknown_patient_is_a_patient_of_its_own(tmp_path):
    found = read(tmp_path, "slide_id,case_id,label\na,,0\nb,,1\nc,p,1\n")
    assert found.frame["case"].tolist() == ["a", "b", "p"]


def test_ids_keep_their_zeros(tmp_path):
    found = read(tmp_path, "slide_id,case_id,label\n007,01,0\n7,1,1\n")
    assert found.frame["slide"].tolist() == ["007", "7"]
    assert found.frame["case"].tolist() == ["01", "1"]


def test_times_and_events(tmp_path):
    text = "slide_id,label,event\na,3.5,1\nb,2,False\n"
    found = read(tmp_path, text, target="survival")
    assert found.frame["label"].tolist() == [3.5, 2.0]
    assert found.frame["event"].tolist() == [True, False]
    assert found.class_names == ()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("slide_id,label\na,0\na,1\n", {}, "slide a has two rows"),
        ("slide_id,label\na,0\nb,0\n", {}, "all 2 labels are '0'; a classifier needs two"),
        ("slide_id,label\na,\nb,\n", {}, "all 0 labels are missing"),
        ("slide_id,grade\na,0\n", {}, "no column label; it has slide_id, grade"),
        ("slide_id,label\na,0\nb,1\n", {"case": "patient"}, "no column patient"),
        ("slide_id,label\na,0\n,1\n", {}, "line 3 of labels.csv names no slide"),
        ("slide_id,label\na,0\nb,1\n", {"classes": "x=7;y=8"}, "no label is one of 7, 8"),
        ("slide_id,label\na,0.5\nb,high\n", {"target": "regression"}, "'high' of slide b"),
        ("slide_id,label\na,inf\n", {"target": "regression"}, "'inf' of slide a is no number"),
        ("slide_id,label,event\na,-1,1\n", {"target": "survival"}, "no time of 0 or more"),
        ("slide_id,label,event\na,1,2\n", {"target": "survival"}, "event of slide a is '2'"),
        ("", {}, "is no CSV file"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_labels(tmp_path / "none.csv", LabelOptions())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=0,1;b=1", "'1' is in two classes"),
        ("a=0;b", "'b' is not NAME=VALUE,VALUE"),
        ("a=0;=1", "is not NAME=VALUE,VALUE"),
        ("a=0;a=1", "a is named twice"),
        ("a=0,1", "names one class"),
    ],
)
def test_classes_that_make_no_sense(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_classes(text)


def test_words_are_in_the_order_of_the_alphabet():
    import pandas as pd

    names, codes, kept = classes_of(pd.Series(["tumor", "normal", "tumor"]))
    assert names == ("normal", "tumor")
    np.testing.assert_array_equal(codes, [1, 0, 1])
    assert kept.all()
