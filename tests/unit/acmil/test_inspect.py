"""The report on labels and features, and the command that splits."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.inspect import inspect
from manyhead.acmil.split import split
from manyhead.acmil.splits import PARTS
from manyhead_core.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parent))

from feature_folder import WIDTH, write_features, write_slides


def test_what_is_wrong_with_which_slide(tmp_path, capsys):
    labels = write_slides(tmp_path, 12)
    folder = tmp_path / "features"
    shutil.copyfile(folder / "s00.h5", folder / "s01.h5")
    (folder / "s02.h5").unlink()
    write_features(folder / "s03.h5", np.full((70, WIDTH), [1] * 5 + [np.nan], np.float32))
    write_features(folder / "s04.h5", np.zeros((0, WIDTH), np.float32))
    write_features(folder / "s05.h5", np.zeros((3, 9), np.float32))
    write_features(folder / "new.h5", np.ones((3, WIDTH), np.float32))
    inspect(None, folder, labels, site="hospital", scan=True, out=tmp_path / "out")
    slides = pd.read_csv(tmp_path / "out/slides.csv", keep_default_na=False).set_index("slide_id")
    problems = slides["problem"][slides["problem"] != ""].to_dict()
    assert problems.pop("s03").startswith("70 of 70 features in s03.h5 are not finite")
    assert problems == {
        "new": "no label",
        "s02": "no features",
        "s04": "no patches",
        "s05": "features are 9 wide, those of others 6",
    }
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["duplicates"] == [["s00", "s01"]]
    assert summary["numbers"]["patients"] == "6"
    assert summary["labels_by_site"] == {"A": {"0": 4, "1": 4}, "B": {"0": 2, "1": 2}}
    shown = capsys.readouterr()
    assert "The same features under several names" in shown.out
    assert "p0" not in shown.out + shown.err


def test_a_site_with_one_label_is_mentioned(tmp_path, capsys):
    labels = write_slides(tmp_path, 8)
    table = pd.read_csv(labels)
    table["hospital"] = ["A", "B"] * 4
    table.loc[table["label"] == 0, "hospital"] = "A"
    table.to_csv(labels, index=False)
    inspect(None, tmp_path / "features", labels, site="hospital")
    assert "all slides of the site B have one label" in capsys.readouterr().err


def test_a_classic_table(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("1,1,5,6\n1,1,7,8\n0,2,9,10\n0,3,9,10\n")
    inspect(None, tmp_path / "a.csv")
    shown = capsys.readouterr().out
    assert "min 1, 25 % 1, median 1, 75 % 2, max 2" in shown
    assert "2, 3" in shown


def test_a_split_keeps_patients_together(tmp_path, capsys):
    labels = write_slides(tmp_path, 24)
    out = tmp_path / "new/split.csv"
    split(None, out, labels=labels, fractions=(1 / 3, 1 / 3, 1 / 3))
    table = pd.read_csv(out)
    assert table["split"].value_counts().to_dict() == dict.fromkeys(PARTS, 8)
    both = table.merge(pd.read_csv(labels), left_on="id", right_on="slide_id")
    assert (both.groupby("case_id")["split"].nunique() == 1).all()
    with pytest.raises(DataError, match="exists already"):
        split(None, out, labels=labels)
    with pytest.raises(ConfigError, match="--labels: not given"):
        split(None, tmp_path / "x.csv")


def test_a_split_of_the_slides_that_have_features(tmp_path):
    labels = write_slides(tmp_path, 24)
    (tmp_path / "features/s00.h5").unlink()
    split(None, tmp_path / "split.csv", labels=labels, root=tmp_path / "features", by="fold")
    assert len(pd.read_csv(tmp_path / "split.csv")) == 23
