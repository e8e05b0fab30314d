"""Slides and branches as points in a plane."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from manyhead_core.errors import ConfigError
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.palette import INK, MUTED, SERIES

Floats = npt.NDArray[np.float64]
Method = Literal["pca", "umap"]
# UMAP looks at so many neighbours; fewer points give no picture.
LEAST = {"pca": 3, "umap": 16}


@dataclass(frozen=True)
class Plane:
    """Points and what their axes are.

    Args:
        points: `(points, 2)`.
        axes: Names of the two axes.
    """

    points: Floats
    axes: tuple[str, str]


def check_method(method: Method) -> None:
    """Fail early when what is wanted is not installed.

    Raises:
        ConfigError: It is not.
    """
    if method == "umap":
        _umap()


def plane(vectors: npt.NDArray[Any], method: Method = "pca", seed: int = 0) -> Plane | None:
    """Points of vectors in two dimensions; None when there are too few to say anything.

    Args:
        vectors: `(points, dim)`.
        method: `pca`; or `umap`, where distances between groups mean little.
        seed: Seed of `umap`.
    """
    vectors = np.asarray(vectors, np.float64)
    if len(vectors) < LEAST[method]:
        return None
    if method == "umap":
        found = _umap().UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(vectors)
        return Plane(np.asarray(found, np.float64), ("UMAP 1", "UMAP 2"))
    return _pca(vectors)


def _pca(vectors: Floats) -> Plane:
    centred = vectors - vectors.mean(0)
    left, size, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of an axis is free; the largest entry of a direction is made positive.
    rows = np.arange(len(right))
    sign = np.where(right[rows, np.abs(right).argmax(1)] < 0, -1.0, 1.0)
    points = np.zeros((len(vectors), 2))
    kept = min(2, len(size))
    points[:, :kept] = (left * size * sign)[:, :kept]
    total = (size**2).sum()
    share = [float(s**2 / total) if total > 0 else 0.0 for s in size[:2]] + [0.0, 0.0]
    return Plane(points, (f"PC 1 ({share[0]:.0%})", f"PC 2 ({share[1]:.0%})"))


def figure_of(
    found: Plane, groups: Sequence[str], names: Mapping[int, str] | None = None
) -> Figure:
    """The points, coloured by group.

    Args:
        found: As from `plane`.
        groups: Group of each point.
        names: Text beside some points.
    """
    figure, (panel,) = figures.canvas(5.6, 3.8)
    for number, group in enumerate(dict.fromkeys(groups)):
        chosen = np.array([name == group for name in groups])
        x, y = found.points[chosen].T
        panel.scatter(
            x, y, s=26, color=SERIES[number % len(SERIES)], alpha=0.8, linewidths=0,
            marker="osD^vP"[number // len(SERIES) % 6], label=group,
        )  # fmt: skip
    for number, name in (names or {}).items():
        x, y = found.points[number]
        panel.annotate(
            name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, color=MUTED
        )
    panel.set_xlabel(found.axes[0], color=MUTED, fontsize=figures.SMALL)
    panel.set_ylabel(found.axes[1], color=MUTED, fontsize=figures.SMALL)
    panel.margins(0.12)
    panel.legend(
        frameon=False, fontsize=figures.SMALL, labelcolor=INK, loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )  # fmt: skip
    return figure


def _umap() -> Any:
    try:
        return importlib.import_module("umap")
    except ImportError as err:
        raise ConfigError(
            "embedding: umap needs the package umap-learn; install it, or use --embedding pca"
        ) from err
