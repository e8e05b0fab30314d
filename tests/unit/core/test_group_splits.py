"""What all splits by group share: shares, folds, files, groups in two parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead_core.data.splits import (
    SplitOptions,
    codes_of,
    cut,
    dealt,
    fold_codes,
    json_pairs,
    parts_of_groups,
    read_parts,
    shuffled,
    stratified_folds,
    table_pairs,
    without_later,
)
from manyhead_core.errors import ConfigError, DataError

SHARES = SplitOptions().shares()


def test_groups_are_drawn_by_seed_within_their_stratum() -> None:
    stratum = pd.Series([k % 2 for k in range(20)], [f"p{k:02d}" for k in range(20)])
    odd, even = shuffled(stratum, (1, 0), seed=3)
    assert sorted(odd) == [f"p{k:02d}" for k in range(1, 20, 2)]
    assert shuffled(stratum, (1, 0), seed=3) == [odd, even]
    assert shuffled(stratum, (1, 0), seed=4)[0] != odd


def test_every_stratum_is_cut_by_the_shares() -> None:
    found = cut([list("abcdefghij"), list("klmnopqrst")], SHARES)
    assert [found[name] for name in "abcdefghij"] == [0] * 7 + [1] + [2] * 2
    assert [found[name] for name in "klmnopqrst"] == [0] * 7 + [1] + [2] * 2


def test_few_groups_are_dealt_to_the_part_that_is_owed_most() -> None:
    assert list(dealt("abcde", SHARES).values()) == [0, 2, 0, 0, 1]


def test_folds_keep_groups_together_and_test_everything_once() -> None:
    group = pd.Series([f"p{k // 2}" for k in range(40)])
    label = np.arange(40) // 2 % 2
    folds = stratified_folds(label, group, 5, seed=0)
    assert (pd.Series(folds).groupby(group).nunique() == 1).all()
    assert pd.crosstab(folds, label).to_numpy().tolist() == [[4, 4]] * 5
    codes = fold_codes(folds, SplitOptions(by="fold", fold=4, validation_folds=2))
    assert [set(codes[folds == k]) for k in range(5)] == [{1}, {1}, {0}, {0}, {2}]
    with pytest.raises(DataError, match=r"data.folds: 9 folds cannot be made of 3 slides"):
        stratified_folds(label[:3], pd.Series(list("abc")), 9, 0, "slides")


def test_groups_in_two_parts_leave_the_later_one() -> None:
    group, codes = pd.Series(list("aabbc")), np.array([2, 0, 1, -1, -1], np.int8)
    parts = parts_of_groups(group, codes)
    assert parts["parts"].to_dict() == {"a": 2, "b": 1}
    assert without_later(group, codes).tolist() == [-1, 0, 1, -1, -1]


def test_files_name_items_or_groups(tmp_path: Path) -> None:
    listed = tmp_path / "split.json"
    listed.write_text(json.dumps({"train": ["x"], "val": ["r1"]}))
    found = read_parts(listed, json_pairs, "random")
    names = [pd.Series(["r0", "r1", "r2"]), pd.Series(["x", "x", "y"])]
    assert codes_of(names, found, listed).tolist() == [0, 1, -1]
    with pytest.raises(DataError, match="names none of the 1 slides; it names x, r1, they are z"):
        codes_of([pd.Series(["z"])], found, listed, "slides")


def test_columns_without_sense_are_refused() -> None:
    name, part = pd.Series(["a ", "b"]), pd.Series(["Train", ""], name="split")
    assert list(table_pairs(name, part, empty=("",))) == [("a", 0)]
    with pytest.raises(ValueError, match="'' in the column split is none of train, training"):
        table_pairs(name, part)


def test_files_without_sense_are_refused(tmp_path: Path) -> None:
    listed = tmp_path / "split.json"
    with pytest.raises(ConfigError, match="is no file and none of random, fold"):
        read_parts(listed, json_pairs, "random, fold")
    listed.write_text('{"train": ["a"], "test": ["a"]}')
    with pytest.raises(DataError, match=r"a is in two parts of split\.json, train and test"):
        read_parts(listed, json_pairs, "random")


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.5, 0.5)])
def test_shares_of_no_whole_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match=r"data.fractions: .* three shares that sum to 1"):
        SplitOptions(fractions=fractions).shares()
