"""Scores of patches as a table and as objects that QuPath opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps

from manyhead.acmil.annotations import collection, feature, write_geojson
from manyhead.acmil.explain.gallery import top_patches
from manyhead.acmil.explain.scores import SlideScores, percentiles
from manyhead_core.evaluate.files import replace

Ints = npt.NDArray[np.integer[Any]]
DIGITS = 7


def score_table(coords: Ints, scores: SlideScores) -> pd.DataFrame:
    """One row per patch.

    Args:
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        scores: Of the patches.

    Returns:
        Columns x, y; attention, which sums to one; times_average, which is 1 on average;
        percentile; branch_K and head_K where there are several; evidence_NAME, in logits.
    """
    mean = scores.mean
    columns: dict[str, Any] = {
        "x": coords[:, 0],
        "y": coords[:, 1],
        "attention": mean,
        "times_average": mean * len(mean),
        "percentile": percentiles(mean),
    }
    for kind, values in (("branch", scores.branches), ("head", scores.heads)):
        if values.shape[1] > 1:
            columns |= {f"{kind}_{k}": values[:, k] for k in range(values.shape[1])}
    if scores.evidence is not None:
        names = (f"evidence_{name}" for name in scores.names)
        columns |= dict(zip(names, scores.evidence.T, strict=True))
    return pd.DataFrame(columns)


def top_table(coords: Ints, scores: SlideScores, count: int) -> pd.DataFrame:
    """The patches with the highest attention of every map: map, rank, patch, x, y, weight.

    Args:
        coords: Top-left corners in level-0 pixels, `(patches, 2)`.
        scores: Of the patches.
        count: How many of each map.
    """
    rows = []
    for name in scores.maps():
        values, kind = scores.map(name)
        for rank, number in enumerate(top_patches(values, count).tolist(), start=1):
            x, y = coords[number].tolist()
            rows.append((name, kind, rank, number, x, y, values[number]))
    return pd.DataFrame(rows, columns=["map", "kind", "rank", "patch", "x", "y", "value"])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV in one step, numbers with seven digits."""
    text = f"%.{DIGITS}g"
    replace(path, lambda at: table.to_csv(at, index=False, float_format=text, lineterminator="\n"))


def write_patches(path: Path, table: pd.DataFrame, size_level0: int, colormap: str = "jet") -> None:
    """Write the patches as detections with their scores as measurements.

    Args:
        path: File ending in .geojson.
        table: As from `score_table`.
        size_level0: Side of a patch in level-0 pixels.
        colormap: Colours of the objects, by percentile, in ten steps.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in table.columns if name not in ("x", "y")]
    numbers = np.array(table[names], np.float64)
    measured = [dict(zip(names, _rounded(row), strict=True)) for row in numbers]
    tenths = np.ceil(10 * table["percentile"].to_numpy() - 1e-9).clip(1, 10).astype(int)
    colours = (colormaps[colormap](np.linspace(0, 1, 10))[:, :3] * 255).astype(int).tolist()
    corners = table[["x", "y"]].to_numpy()
    box = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size_level0
    write_geojson(
        path,
        collection(
            feature(
                [corner + box], f"Attention {10 * (t - 1)}-{10 * t} %", tuple(colours[t - 1]), m
            )
            for corner, t, m in zip(corners, tenths.tolist(), measured, strict=True)
        ),
    )


def _rounded(row: npt.NDArray[np.float64]) -> list[float]:
    # Seven digits: a slide of 100,000 patches would else take twice the space.
    return [float(f"{value:.{DIGITS}g}") for value in row.tolist()]
