"""Bags of slides and patients from feature files, and files that cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.labels import LabelOptions
from manyhead.acmil.sources import open_source
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.training.results import hashed

sys.path.insert(0, str(Path(__file__).parent))

from feature_folder import WIDTH, write_features, write_slides

OPTIONS = LabelOptions(site="hospital")


def test_a_bag_is_a_slide(tmp_path):
    labels = write_slides(tmp_path, 6)
    source = open_source(tmp_path / "features", labels, OPTIONS)
    assert source.frame["id"].tolist() == [f"s{k:02d}" for k in range(6)]
    assert source.frame["site"].tolist() == list("BAABAA")
    assert source.sizes.tolist() == [4, 5, 6, 7, 8, 4]
    assert (source.feature_dim, source.class_names) == (WIDTH, ("0", "1"))
    whole = source.read(4)
    np.testing.assert_array_equal(source.read(4, np.array([1, 6])), whole[[1, 6]])


def test_a_bag_is_a_patient_whose_id_is_hashed(tmp_path):
    labels = write_slides(tmp_path, 6)
    slides = open_source(tmp_path / "features", labels, OPTIONS)
    source = open_source(tmp_path / "features", labels, OPTIONS, "patient")
    assert source.frame["id"].tolist() == [hashed(f"p{k}") for k in range(3)]
    assert source.sizes.tolist() == [9, 13, 12]
    whole = np.concatenate([slides.read(2), slides.read(3)])
    np.testing.assert_array_equal(source.read(1), whole)
    rows = np.array([0, 5, 6, 12])
    np.testing.assert_array_equal(source.read(1, rows), whole[rows])
    np.testing.assert_array_equal(source.read(1, rows[2:]), whole[rows[2:]])


def test_slides_that_cannot_be_used_are_left_out_and_listed(tmp_path, capsys):
    labels = write_slides(tmp_path, 10)
    folder = tmp_path / "features"
    write_features(folder / "s00.h5", np.zeros((0, WIDTH), np.float32))
    (folder / "s01.h5").unlink()
    (folder / "s01.npy").write_bytes(b"no array")
    (folder / "s02.h5").unlink()
    write_features(folder / "extra.h5", np.zeros((3, WIDTH), np.float32))
    table = pd.read_csv(labels, dtype=str)
    table.loc[3, "label"] = ""
    table.to_csv(labels, index=False)
    source = open_source(folder, labels, OPTIONS)
    assert source.frame["id"].tolist() == [f"s{k:02d}" for k in range(4, 10)]
    assert source.left_out["s00"] == "no patches"
    assert "is no readable .npy file" in source.left_out["s01"]
    assert source.left_out["s02"] == "no features"
    assert source.left_out["s03"] == "the label is empty"
    assert source.left_out["extra"] == "no label"
    assert "slide s02 is left out: no features" in capsys.readouterr().err


def test_features_of_two_encoders(tmp_path):
    labels = write_slides(tmp_path, 6)
    write_features(tmp_path / "features/s03.h5", np.zeros((3, 9), np.float32))
    with pytest.raises(DataError, match="of s03 are 9 wide, those of 5 of 6 slides 6"):
        open_source(tmp_path / "features", labels, OPTIONS)


def test_features_that_are_not_finite_name_the_slide(tmp_path):
    labels = write_slides(tmp_path, 6)
    write_features(tmp_path / "features/s03.h5", np.full((3, WIDTH), np.nan, np.float32))
    source = open_source(tmp_path / "features", labels, OPTIONS)
    with pytest.raises(DataError, match=r"s03: 3 of 3 features in s03.h5 are not finite"):
        source.read(3)


def test_slides_of_a_patient_that_differ(tmp_path):
    labels = write_slides(tmp_path, 6)
    table = pd.read_csv(labels)
    table.loc[0, "label"] = 1
    table.to_csv(labels, index=False)
    with pytest.raises(DataError, match="slides of 1 patients differ in the column label"):
        open_source(tmp_path / "features", labels, OPTIONS, "patient")


def test_mistakes(tmp_path):
    labels = write_slides(tmp_path, 6)
    features = tmp_path / "features"
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_source(tmp_path / "nowhere", labels, OPTIONS)
    with pytest.raises(ConfigError, match=r"data.labels: not given"):
        open_source(features, None, OPTIONS)
    with pytest.raises(ConfigError, match="'case' is unknown; use slide or patient"):
        open_source(features, labels, OPTIONS, "case")
    labels.write_text("slide_id,label\nx,0\ny,1\n")
    with pytest.raises(DataError, match="none of the 2 slides of the label table"):
        open_source(features, labels, LabelOptions())


def test_a_classic_table(tmp_path):
    (tmp_path / "a.csv").write_text("1,1,5,6\n1,1,7,8\n0,2,9,10\n")
    source = open_source(tmp_path / "a.csv", None, LabelOptions())
    assert source.frame["label"].tolist() == [1, 0]
    np.testing.assert_array_equal(source.read(0, np.array([1])), [[7, 8]])
    with pytest.raises(ConfigError, match="label '0' belongs to no class"):
        open_source(tmp_path / "a.csv", None, LabelOptions(classes="x=1;y=2"))
