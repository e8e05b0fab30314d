"""Classic bags, published splits and the feature files of five tools, as users have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.data import BagData
from manyhead.acmil.labels import LabelOptions, read_labels
from manyhead.acmil.mil_csv import read_mil_table
from manyhead.acmil.sources import open_source
from manyhead.acmil.splits import SplitOptions, assign
from manyhead_core.errors import DataError

BRACS = "benign=0,1,2;atypical=3,4;malignant=5,6"


@pytest.fixture
def wsi(data_dir: Path) -> Path:
    folder = data_dir / "wsi"
    if not folder.is_dir():
        pytest.skip(f"{data_dir} has no folder wsi")
    return folder


@pytest.mark.parametrize(
    ("name", "bags", "positive", "sizes", "width"),
    [
        ("musk1", 92, 47, (2, 40), 166),
        ("elephant", 200, 100, (2, 13), 230),
        ("corel_dogs", 2000, 100, (2, 13), 9),
    ],
)
def test_sizes_of_the_classic_sets(wsi, name, bags, positive, sizes, width):
    source = open_source(wsi / f"mil_bags/{name}.csv", None, LabelOptions())
    assert (len(source), int(source.frame["label"].sum())) == (bags, positive)
    assert (source.sizes.min(), source.sizes.max()) == sizes
    assert source.feature_dim == width


def test_the_original_form_of_musk1_holds_the_same_bags(wsi):
    table = read_mil_table(wsi / "mil_bags/musk1.csv")
    original = read_mil_table(wsi / "mil_bags/clean1.data")

    def contents(found):
        return sorted(
            (label, np.sort(bag, 0).tobytes())
            for label, bag in zip(found.labels, found.features, strict=True)
        )

    assert set(table.labels) == {"0", "1"}
    assert contents(table) == contents(original)


def test_ten_folds_of_musk1_are_stratified(wsi):
    counts = []
    for fold in range(10):
        data = BagData(wsi / "mil_bags/musk1.csv", split="fold", folds=10, fold=fold)
        data.prepare()
        label = data.source.frame["label"].to_numpy()[data.parts["test"]]
        counts.append((len(label), int(label.sum())))
    assert sum(n for n, _ in counts) == 92
    assert {n for n, _ in counts} == {9, 10}
    assert {k for _, k in counts} == {4, 5}


def test_the_official_split_of_camelyon16(wsi):
    columns = LabelOptions(case="slide_id")
    frame = read_labels(wsi / "splits/camelyon16.csv", columns).frame
    frame["id"] = frame["slide"]
    assert frame["label"].value_counts().to_dict() == {0: 239, 1: 160}
    for number in range(1, 6):
        split = str(wsi / f"splits/split_{number}.json")
        codes = assign(frame, SplitOptions(by=split))
        assert [(codes == k).sum() for k in (-1, 0, 1, 2)] == [1, 242, 27, 129]
        assert frame["id"][codes == -1].tolist() == ["normal_027"]
        assert 9 <= frame["label"][codes == 1].sum() <= 13
        assert frame["label"][codes == 2].sum() == 49
    by_case = read_labels(wsi / "splits/camelyon16.csv", LabelOptions()).frame
    with pytest.raises(DataError, match=r"pass --data.case slide_id"):
        assign(by_case.assign(id=by_case["slide"]), SplitOptions(by=split))


def test_the_official_split_of_bracs_in_three_classes(wsi):
    labels = read_labels(wsi / "splits/bracs.csv", LabelOptions(classes=BRACS))
    codes = assign(labels.frame.assign(id=labels.frame["slide"]), SplitOptions(by="column"))
    counts = pd.crosstab(codes, labels.frame["label"])
    assert counts.to_numpy().tolist() == [[203, 52, 140], [30, 14, 21], [32, 23, 32]]
    assert labels.class_names == ("benign", "atypical", "malignant")


def test_cases_of_camelyon17_hold_whole_patients(wsi):
    labels = read_labels(wsi / "splits/camelyon17.csv", LabelOptions())
    patient = labels.frame["slide"].str.extract(r"(patient_\d{3})")[0]
    assert (labels.frame["case"].groupby(patient).nunique() == 1).all()
    assert labels.frame["label"].value_counts().to_dict() == {0: 114, 1: 50}


@pytest.mark.parametrize("tool", ["clam.h5", "clam.pt", "trident.h5", "stamp.h5"])
def test_a_slide_of_every_tool_becomes_a_bag(wsi, tmp_path, tool):
    folder = tmp_path / "features"
    folder.mkdir()
    given = wsi / f"format_samples/CMU-1-Small-Region.features.{tool}"
    for name in ("a", "b"):
        (folder / f"{name}{given.suffix}").symlink_to(given)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,0\nb,1\n")
    source = open_source(folder, tmp_path / "labels.csv", LabelOptions())
    assert source.sizes.tolist() == [182, 182]
    assert source.read(0, np.array([3, 181])).shape == (2, 32)
