"""Tables and objects say where the patches are and what they scored."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")
shapely = pytest.importorskip("shapely", reason="needs the extra wsi")

from manyhead.acmil import ACMIL, ACMILConfig  # noqa: E402
from manyhead.acmil.explain.export import (  # noqa: E402
    score_table,
    top_table,
    write_patches,
    write_table,
)
from manyhead.acmil.explain.scores import Explainer, SlideScores  # noqa: E402

COORDS = np.stack(np.meshgrid(np.arange(6), np.arange(4)), -1).reshape(-1, 2) * 100 + 7


@pytest.fixture
def scores() -> SlideScores:
    torch.manual_seed(0)
    net = ACMIL(ACMILConfig(feature_dim=6, dim=8, hidden_dim=4, num_branches=2))
    return Explainer(net, ("no", "yes"))(torch.randn(len(COORDS), 6))


def test_a_row_for_each_patch(scores: SlideScores) -> None:
    table = score_table(COORDS, scores)
    assert list(table) == [
        "x", "y", "attention", "times_average", "percentile", "branch_0", "branch_1",
        "evidence_no", "evidence_yes",
    ]  # fmt: skip
    np.testing.assert_array_equal(table[["x", "y"]], COORDS)
    assert table["attention"].sum() == pytest.approx(1, abs=1e-6)
    assert table["times_average"].mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(table["evidence_no"], -table["evidence_yes"])


def test_the_table_is_read_back(scores: SlideScores, tmp_path: Path) -> None:
    table = score_table(COORDS, scores)
    write_table(tmp_path / "scores.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores.csv"), table, rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_the_top_of_every_map(scores: SlideScores) -> None:
    table = top_table(COORDS, scores, 3)
    assert table["map"].value_counts().to_dict() == dict.fromkeys(scores.maps(), 3)
    first = table[(table["map"] == "branch:1") & (table["rank"] == 1)].iloc[0]
    assert first["patch"] == scores.branches[:, 1].argmax()
    assert [first["x"], first["y"]] == COORDS[first["patch"]].tolist()


def test_objects_are_valid_and_are_the_boxes_of_the_patches(
    scores: SlideScores, tmp_path: Path
) -> None:
    table = score_table(COORDS, scores)
    write_patches(tmp_path / "patches.geojson", table, 100)
    content = json.loads((tmp_path / "patches.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == len(COORDS)
    for feature, (x, y), times in zip(
        content["features"], COORDS, table["times_average"], strict=True
    ):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.bounds == (x, y, x + 100, y + 100)
        assert shape.area == 100 * 100
        about = feature["properties"]
        assert about["objectType"] == "detection"
        assert about["measurements"]["times_average"] == pytest.approx(times, rel=1e-6)


def test_objects_are_classed_by_tenths(scores: SlideScores, tmp_path: Path) -> None:
    table = score_table(COORDS, scores)
    table["percentile"] = np.linspace(1 / 24, 1, 24)
    write_patches(tmp_path / "p.geojson", table, 100)
    features = json.loads((tmp_path / "p.geojson").read_text())["features"]
    classes = [feature["properties"]["classification"] for feature in features]
    assert classes[0] == {"name": "Attention 0-10 %", "color": [0, 0, 127]}
    assert classes[-1] == {"name": "Attention 90-100 %", "color": [127, 0, 0]}
    assert len({entry["name"] for entry in classes}) == 10
