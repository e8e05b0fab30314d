"""Figures of head importance, profiles, sinks and patterns, in the style of the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from manyhead_core.errors import DataError
from manyhead_core.evaluate.figures import NORMAL, NUMBERS_UP_TO, SMALL, canvas
from manyhead_core.evaluate.palette import INK, SERIES, SURFACE

Array = NDArray[Any]

MAX_LINES = 6


def head_heatmap(table: pd.DataFrame, measure: str, title: str = "") -> Figure:
    """A measure of all heads, layers as rows; a second colour marks negative values.

    Args:
        table: Columns layer, head, measure, value, as the analyses give them.
        measure: Which of its measures.
        title: Above the figure; empty takes the measure's name.

    Raises:
        DataError: The table has no such measure.
    """
    matrix, layers, heads = _matrix(table, measure)
    figure, (panel,) = canvas(1.6 + 0.42 * len(heads), 1.3 + 0.36 * len(layers))
    _cells(panel, matrix)
    panel.set_xticks(np.arange(len(heads)) + 0.5, [str(head) for head in heads])
    panel.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    panel.set_xlabel("head", fontsize=NORMAL, color=INK)
    panel.set_ylabel("layer", fontsize=NORMAL, color=INK)
    panel.set_title(title or _words(measure), fontsize=NORMAL, color=INK, loc="left")
    return figure


def pruning_figure(curves: Mapping[str, pd.DataFrame], label: str = "accuracy") -> Figure:
    """The metric against the number of removed heads, with intervals where there are any.

    Args:
        curves: What `pruning_curve` gives, by name.
        label: Name of the metric.
    """
    figure, (panel,) = canvas(5.6, 3.4)
    for number, (name, curve) in enumerate(curves.items()):
        colour = SERIES[number % len(SERIES)]
        x = curve["removed"].to_numpy(dtype=float)
        _line(panel, x, curve, colour, name)
    _axes(panel, "removed heads", label, legend=len(curves) > 1)
    panel.margins(y=0.08)
    panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def ring_figure(
    ring_table: pd.DataFrame, heads: Sequence[tuple[int, int]], unit: str = "tokens"
) -> Figure:
    """Weight against the distance from the query.

    Args:
        ring_table: Of a `Profile`.
        heads: Up to six heads to show, as (layer, head).
        unit: Of the distance.

    Raises:
        DataError: The table has no such head.
    """
    figure, (panel,) = canvas(5.6, 3.4)
    for number, (layer, head) in enumerate(list(heads)[:MAX_LINES]):
        rows = ring_table[(ring_table["layer"] == layer) & (ring_table["head"] == head)]
        if rows.empty:
            raise DataError(f"heads: ({layer}, {head}) has no rings in the table")
        x = rows["distance"].to_numpy(dtype=float)
        _line(panel, x, rows, SERIES[number], f"layer {layer}, head {head}")
    _axes(panel, f"Chebyshev distance ({unit})", "mean weight", legend=True)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def sink_figure(table: pd.DataFrame) -> Figure:
    """Number of sinks and their share of the weight for all heads, layers as rows.

    Args:
        table: Of a `SinkReport`.
    """
    measures = ("number", "mass")
    found = [_matrix(table, measure) for measure in measures]
    layers, heads = found[0][1:]
    size = (2 * (1.3 + 0.42 * len(heads)), 1.3 + 0.36 * len(layers))
    figure, panels = canvas(*size, columns=2)
    titles = ("sinks per map", "share of the weight")
    for panel, (matrix, _, _), title in zip(panels, found, titles, strict=True):
        _cells(panel, matrix)
        panel.set_xticks(np.arange(len(heads)) + 0.5, [str(head) for head in heads])
        panel.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
        panel.set_xlabel("head", fontsize=NORMAL, color=INK)
        panel.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    panels[0].set_ylabel("layer", fontsize=NORMAL, color=INK)
    return figure


def prototype_figure(prototypes: Array, shares: Sequence[float] = ()) -> Figure:
    """Prototype maps side by side, queries downwards; each has its own strongest colour.

    Args:
        prototypes: `(clusters, tokens, tokens)`.
        shares: Share of the maps in each cluster, for the titles.
    """
    figure, panels = canvas(1.7 * len(prototypes), 2.1, columns=len(prototypes))
    red, green, blue = (int(SERIES[0][place : place + 2], 16) / 255 for place in (1, 3, 5))
    for number, (panel, prototype) in enumerate(zip(panels, prototypes, strict=True)):
        picture = np.empty((*prototype.shape, 4))
        picture[..., :3] = red, green, blue
        # Transparency instead of a colour map suits a light and a dark page alike.
        picture[..., 3] = prototype / (float(prototype.max()) or 1.0)
        panel.imshow(picture, interpolation="nearest", aspect="equal")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
        share = f" ({shares[number]:.0%})" if len(shares) else ""
        panel.set_title(f"{number}{share}", fontsize=SMALL, color=INK)
    return figure


def _matrix(table: pd.DataFrame, measure: str) -> tuple[Array, list[int], list[int]]:
    rows = table[table["measure"] == measure]
    if rows.empty:
        known = ", ".join(map(str, table["measure"].unique()))
        raise DataError(f"measure: {measure!r} is not in the table; it has {known}")
    wide = rows.pivot(index="layer", columns="head", values="value")
    layers, heads = ([int(number) for number in axis.tolist()] for axis in wide.axes)
    return wide.to_numpy(dtype=float), layers, heads


def _cells(panel: Axes, matrix: Array) -> None:
    height, width = matrix.shape
    top = float(np.nanmax(np.abs(matrix), initial=0.0)) or 1.0
    for sign, colour in ((1, SERIES[0]), (-1, SERIES[1])):
        places = np.argwhere(np.isfinite(matrix) & ((matrix < 0) == (sign < 0)))
        boxes = [Rectangle((j + 0.03, i + 0.03), 0.94, 0.94) for i, j in places]
        shades = [max(abs(matrix[i, j]) / top, 0.02) for i, j in places]
        if boxes:
            panel.add_collection(PatchCollection(boxes, facecolor=colour, alpha=shades, lw=0))
    if max(height, width) <= NUMBERS_UP_TO:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = SURFACE if abs(value) > 0.6 * top else INK
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
                panel.text(j + 0.5, i + 0.5, _short(value), color=colour, **style)
    panel.set(xlim=(0, width), ylim=(height, 0))
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[["left", "bottom"]].set_visible(False)


def _short(value: float) -> str:
    if value != 0 and abs(value) < 0.005:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.2f}"


def _line(panel: Axes, x: Array, rows: pd.DataFrame, colour: str, name: str) -> None:
    value, low, high = (rows[column].to_numpy(dtype=float) for column in ("value", "lo", "hi"))
    marker = "o" if len(x) <= 30 else None
    panel.plot(x, value, color=colour, linewidth=1.6, marker=marker, markersize=3, label=name)
    if np.isfinite(low).any():
        panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _axes(panel: Axes, x: str, y: str, *, legend: bool) -> None:
    panel.set_xlabel(x, fontsize=NORMAL, color=INK)
    panel.set_ylabel(y, fontsize=NORMAL, color=INK)
    if legend:
        style: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "labelcolor": INK}
        panel.legend(**style)


def _words(measure: str) -> str:
    return measure.replace("_", " ")
