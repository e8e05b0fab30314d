"""Figures of token maps, curves and spectra, in the style of the report's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from manyhead_core.evaluate.figures import canvas, curves, intervals
from manyhead_core.evaluate.palette import INK, SERIES, SURFACE

Array = NDArray[Any]


def overlay(image: ArrayLike, maps: Mapping[str, ArrayLike], alpha: float = 0.6) -> Figure:
    """Maps over their image, one panel each; the stronger the colour, the larger the value.

    Args:
        image: Grey values `(height, width)` or colours `(height, width, 3)`, 0..1.
        maps: By title, `(height, width)`, not negative; each is scaled to its own maximum.
        alpha: Opacity of the largest value.
    """
    picture = np.asarray(image, dtype=float)
    height, width = picture.shape[:2]
    figure, panels = canvas(3.0 * len(maps), 3.0 * height / width + 0.4, columns=len(maps))
    shade = LinearSegmentedColormap.from_list("shade", [SERIES[1], SERIES[1]])
    for panel, (title, values) in zip(panels, maps.items(), strict=True):
        weight = np.asarray(values, dtype=float)
        top = float(weight.max()) or 1.0
        panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
        # Opacity carries the value, so that the image stays readable where nothing is marked.
        panel.imshow(
            np.ones_like(weight), cmap=shade, vmin=0, vmax=1, alpha=alpha * weight.clip(0) / top
        )
        panel.set_title(f"{title} (largest {top:.3g})", fontsize=8.5, color=INK, loc="left")
        panel.set_axis_off()
    return figure


def token_map(values: ArrayLike, grid: tuple[int, int], title: str = "") -> Figure:
    """A token map as a grid of cells.

    Args:
        values: `(tokens,)`, row-major, not negative.
        grid: Height and width in tokens.
        title: What is shown.
    """
    picture = np.asarray(values, dtype=float).reshape(grid)
    figure, (panel,) = canvas(3.4, 3.4 * grid[0] / grid[1] + 0.4)
    shade = LinearSegmentedColormap.from_list("shade", [SURFACE, SERIES[0]])
    panel.imshow(picture, cmap=shade, vmin=0, vmax=float(picture.max()) or 1.0)
    panel.set_title(title, fontsize=8.5, color=INK, loc="left")
    panel.set_axis_off()
    return figure


def faithfulness_curves(table: pd.DataFrame) -> Figure:
    """Deletion and insertion against random orders.

    Args:
        table: `Faithfulness.curves`.
    """
    panels = {
        str(measure): {
            str(order): (line["share"].to_numpy(), line["probability"].to_numpy())
            for order, line in rows.groupby("order", sort=False)
        }
        for measure, rows in table.groupby("measure", sort=False)
    }
    figure = curves(panels, "share of tokens")
    for panel in figure.axes:
        panel.set_xlim(0, 1)
        # The helper counts epochs in whole numbers; shares need their own places.
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
    return figure


def agreement_points(table: pd.DataFrame, measure: str = "spearman") -> Figure:
    """Agreement of each aggregation with its interval; of single heads the best only.

    Args:
        table: `Agreement.table`.
        measure: One of its measures.
    """
    chosen = table[table["measure"] == measure]
    best = chosen.sort_values("value", ascending=False, kind="stable")
    best = best.drop_duplicates("aggregation")
    names = [_name(row) for row in best.to_dict("records")]
    limits = [
        (None, None) if np.isnan(low) else (float(low), float(high))
        for low, high in zip(best["lo"], best["hi"], strict=True)
    ]
    return intervals(names, best["value"].tolist(), limits, label=measure, reference=0.0)


def capacity_curves(tables: Mapping[str, pd.DataFrame], threshold: float = 0.9) -> Figure:
    """Cosine of the retrieved value against the number of stored pairs.

    Args:
        tables: `Capacity.table` by name.
        threshold: Drawn as a line.
    """
    lines = {
        name: (np.log2(table["n"].to_numpy()), table["cosine"].to_numpy())
        for name, table in tables.items()
    }
    figure = curves({"cosine of the retrieved value": lines}, "log2 of the stored pairs")
    figure.axes[0].axhline(threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 4)))
    return figure


def spectra(values: Sequence[ArrayLike], title: str = "singular values over the largest") -> Figure:
    """Singular values of the heads of each layer, mean over heads, one line a layer.

    Args:
        values: `Circuits.spectra` of one circuit: `(heads, head_dim)` a layer.
        title: Of the panel.
    """
    lines = {}
    for layer, found in enumerate(values):
        matrix = np.asarray(found, dtype=float)
        scaled = matrix / matrix.max(1, keepdims=True)
        lines[f"layer {layer}"] = (np.arange(1, scaled.shape[1] + 1), scaled.mean(0))
    return curves({title: lines}, "rank")


def _name(row: Mapping[Any, Any]) -> str:
    parts = [str(row["aggregation"]).replace("_", " ")]
    parts += [f"{part} {int(row[part])}" for part in ("layer", "head") if not pd.isna(row[part])]
    return ", ".join(parts)
