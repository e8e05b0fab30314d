"""Points against polygons: the same answer as OpenCV, point by point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.acmil.polygons import area, locate

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")

CORNERS = st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=3, max_size=8)


def theirs(polygon: np.ndarray, points: np.ndarray) -> list[int]:
    contour = polygon.astype(np.int32).reshape(-1, 1, 2)
    return [int(cv2.pointPolygonTest(contour, (float(x), float(y)), False)) for x, y in points]


@settings(deadline=None, max_examples=200)
@given(corners=CORNERS)
def test_every_point_of_a_grid_is_placed_as_opencv_places_it(corners: list) -> None:
    polygon = np.array(corners)
    points = np.stack(np.meshgrid(np.arange(-7, 8), np.arange(-7, 8)), -1).reshape(-1, 2)
    assert locate(polygon, points).tolist() == theirs(polygon, points)


def test_a_square_has_an_inside_a_border_and_an_outside() -> None:
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    points = np.array([[2, 2], [0, 2], [4, 4], [2, 0], [5, 2], [-1, 4]])
    assert locate(square, points).tolist() == [1, 0, 0, 0, -1, -1]
    assert area(square) == 16


def test_no_points_are_no_answers() -> None:
    assert locate(np.array([[0, 0], [4, 0], [4, 4]]), np.empty((0, 2), int)).shape == (0,)
