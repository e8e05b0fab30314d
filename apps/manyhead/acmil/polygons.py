"""Where points lie to a polygon, for many points at once and in whole numbers.

A polygon of a tissue border has tens of thousands of corners and a slide a hundred thousand
patches; asking for each point by itself takes minutes. Patches stand in rows, so here the crossings
of a row with the polygon are found once for all points in it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def locate(polygon: npt.NDArray[np.integer], points: npt.NDArray[np.integer]) -> Ints:
    """1 for points inside, 0 on the border, -1 outside, by the even-odd rule; `(points,)`.

    Args:
        polygon: Corners in order, x and y, `(corners, 2)`, whole numbers.
        points: x and y, `(points, 2)`, whole numbers.
    """
    start = np.asarray(polygon, np.int64).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    points = np.asarray(points, np.int64).reshape(-1, 2)
    found = np.full(len(points), -1, np.int64)
    order = np.argsort(points[:, 1], kind="stable")
    if not len(points):
        return found
    heights, first = np.unique(points[order, 1], return_index=True)
    for height, rows in zip(heights, np.split(order, first[1:]), strict=True):
        found[rows] = _in_row(start, end, int(height), points[rows, 0])
    return found


def _in_row(start: Ints, end: Ints, y: int, x: Ints) -> Ints:
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    touching = (low <= y) & (y <= high)
    start, end = start[touching], end[touching]
    flat = start[:, 1] == end[:, 1]
    on_border = _within(x, start[flat], end[flat])
    start, end = start[~flat], end[~flat]
    # Half open at the upper end, so that a corner between two edges is crossed once.
    crossed = (np.minimum(start[:, 1], end[:, 1]) <= y) & (y < np.maximum(start[:, 1], end[:, 1]))
    rise = end[:, 1] - start[:, 1]
    # The edge meets the row at `numerator / rise`; both signs are turned so that rise is positive.
    sign = np.sign(rise)
    numerator = sign * (start[:, 0] * rise + (y - start[:, 1]) * (end[:, 0] - start[:, 0]))
    rise = sign * rise
    whole, exact = numerator // rise, numerator % rise == 0
    on_border |= np.isin(x, whole[exact])
    # A crossing lies left of x when its floor does, or is x itself with nothing over.
    left = np.sort(whole[crossed])
    count = np.searchsorted(left, x, side="left")
    inside = count % 2 == 1
    return np.where(on_border, 0, np.where(inside, 1, -1))


def _within(x: Ints, start: Ints, end: Ints) -> npt.NDArray[np.bool_]:
    """Whether an edge along the row covers x."""
    low = np.sort(np.minimum(start[:, 0], end[:, 0]))
    high = np.sort(np.maximum(start[:, 0], end[:, 0]))
    return np.searchsorted(low, x, side="right") > np.searchsorted(high, x, side="left")


def area(polygon: npt.NDArray[np.integer]) -> float:
    """Area in square units, by the shoelace formula."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
