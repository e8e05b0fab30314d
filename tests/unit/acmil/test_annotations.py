"""Annotations: ASAP and GeoJSON give the same areas, and what is cut out stays out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely.geometry

pytest.importorskip("cv2", reason="needs the extra wsi")

from manyhead.acmil.annotations import (
    find_outlines,
    labels_of,
    read_outlines,
    tissue_geojson,
    write_geojson,
)
from manyhead.acmil.coordinates import Patches
from manyhead.acmil.tissue import Tissue
from manyhead_core.errors import DataError

# Patches of 10 pixels with their centres at (5, 5), (15, 5) and so on.
GRID = Patches(
    np.array([[x, y] for x in range(0, 100, 10) for y in range(0, 100, 10)]), 10, 0, 10, 10, None
)


def square(low: float, high: float) -> list[list[float]]:
    return [[low, low], [high, low], [high, high], [low, high]]


def asap(path: Path, *annotations: tuple[str, list[list[float]]]) -> Path:
    body = "".join(
        f'<Annotation Name="x" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for group, points in annotations
    )
    path.write_text(f"<ASAP_Annotations><Annotations>{body}</Annotations></ASAP_Annotations>")
    return path


def geojson(path: Path, geometry: dict, name: str = "Tumor") -> Path:
    feature = {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"classification": {"name": name}},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_a_square_with_a_hole_in_both_formats(tmp_path: Path) -> None:
    xml = asap(tmp_path / "s.xml", ("_0", square(0, 60)), ("_2", square(20, 40)))
    rings = [[*ring, ring[0]] for ring in (square(0, 60), square(20, 40))]
    json_file = geojson(tmp_path / "s.geojson", {"type": "Polygon", "coordinates": rings})
    for path in (xml, json_file):
        labels = labels_of(read_outlines(path), GRID)
        assert labels.sum() == 36 - 4
        assert not labels[GRID.coords.tolist().index([20, 30])]
    # The published code counts every outline of the file.
    assert labels_of(read_outlines(xml), GRID, "reference").sum() == 36


def test_several_polygons_of_one_feature(tmp_path: Path) -> None:
    pair = [[[*square(0, 20), [0, 0]]], [[*square(50, 80), [50, 50]]]]
    path = geojson(tmp_path / "m.geojson", {"type": "MultiPolygon", "coordinates": pair})
    outlines = read_outlines(path)
    assert [outline.name for outline in outlines] == ["Tumor", "Tumor"]
    assert labels_of(outlines, GRID).sum() == 4 + 9


def test_a_centre_on_the_border_is_outside(tmp_path: Path) -> None:
    path = asap(tmp_path / "b.xml", ("_0", [[5, 5], [95, 5], [95, 95], [5, 95]]))
    assert labels_of(read_outlines(path), GRID).sum() == 64


def test_tissue_goes_through_a_file_unchanged(tmp_path: Path) -> None:
    outer, hole = np.array(square(0, 60), np.int32), np.array(square(20, 40), np.int32)
    write_geojson(tmp_path / "t.geojson", tissue_geojson(Tissue([outer], [[hole]], 0)))
    assert [path.name for path in tmp_path.iterdir()] == ["t.geojson"]
    (outline,) = read_outlines(tmp_path / "t.geojson")
    np.testing.assert_array_equal(outline.polygon[:-1], outer)
    np.testing.assert_array_equal(outline.holes[0][:-1], hole)
    assert outline.name == "Tissue"


def test_files_are_found_by_the_id_of_the_slide(tmp_path: Path) -> None:
    path = asap(tmp_path / "TCGA-01.uuid.xml", ("_0", square(0, 9)))
    assert find_outlines(tmp_path, "TCGA-01.uuid") == path
    assert find_outlines(tmp_path, "TCGA-01") is None


def test_files_of_another_kind_cost_one_line(tmp_path: Path) -> None:
    for name, text in {
        "a.xml": "<ASAP",
        "b.xml": "<A><Annotation><Coordinate X='1'/></Annotation></A>",
        "c.geojson": "{",
        "d.geojson": '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[1]]}}]}',
        "e.txt": "",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=name):
            read_outlines(tmp_path / name)
    with pytest.raises(DataError, match="no file"):
        read_outlines(tmp_path / "absent.xml")


def test_a_border_that_runs_to_and_fro_becomes_valid_polygons() -> None:
    spike = np.array([[0, 0], [4, 0], [4, 2], [8, 2], [4, 2], [4, 4], [0, 4]], np.int32)
    bow = np.array([[10, 0], [14, 4], [14, 0], [10, 4]], np.int32)
    content = tissue_geojson(Tissue([spike, bow], [[], []], 0))
    shapes = [shapely.geometry.shape(entry["geometry"]) for entry in content["features"]]
    assert all(shape.is_valid for shape in shapes)
    assert sum(shape.area for shape in shapes) == 16 + 8
