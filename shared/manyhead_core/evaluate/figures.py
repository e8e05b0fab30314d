"""Figures in one quiet style, as matplotlib objects without pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from manyhead_core.evaluate.calibration import Bin
from manyhead_core.evaluate.palette import GRID, INK, MUTED, SERIES, SURFACE
from manyhead_core.evaluate.ranking import precision_curve, roc_curve

Array = NDArray[Any]

SMALL, NORMAL = 8.5, 9.5
MAX_POINTS = 400
NUMBERS_UP_TO = 14


def canvas(width: float = 5.6, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure in the house style.

    Args:
        width: Inches.
        height: Inches.
        columns: Panels side by side.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for panel in panels:
        _style(panel)
    return figure, panels


def roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """ROC curves; the diagonal is chance.

    Args:
        curves: Labels (0 or 1) and scores by name.
    """
    figure, (panel,) = canvas(4.2, 4.0)
    panel.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    for number, (name, (labels, scores)) in enumerate(curves.items()):
        alarms, hits = roc_curve(labels, scores)
        alarms, hits = _thin(alarms, hits)
        style: dict[str, Any] = {"color": _colour(number), "linestyle": _dashes(number)}
        panel.plot(alarms, hits, linewidth=1.8, label=name, **style)
    if len(curves) > 1:
        _legend(panel, "lower right")
    _square(panel, "false positive rate", "true positive rate")
    return figure


def reliability(curves: Mapping[str, Sequence[Bin]]) -> Figure:
    """Observed share against predicted probability; points on the diagonal are calibrated.

    The area of a point grows with the number of rows in its bin.

    Args:
        curves: Bins by name.
    """
    figure, (panel,) = canvas(4.2, 4.0)
    panel.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    for number, (name, bins) in enumerate(curves.items()):
        predicted = [part.predicted for part in bins]
        observed = [part.observed for part in bins]
        counts = np.array([part.count for part in bins], dtype=float)
        sizes = 14 + 90 * counts / counts.max()
        colour = _colour(number)
        panel.plot(predicted, observed, color=colour, linewidth=1.4, label=name)
        panel.scatter(
            predicted, observed, s=sizes, color=colour, alpha=0.75, linewidths=0, zorder=3
        )
    if len(curves) > 1:
        _legend(panel, "upper left")
    _square(panel, "predicted probability", "observed share")
    return figure


def precision_recall(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Precision against recall; a dot at recall 1 marks the share of positives, which is chance.

    Args:
        curves: Labels (0 or 1) and scores by name.
    """
    figure, (panel,) = canvas(4.2, 4.0)
    for number, (name, (labels, scores)) in enumerate(curves.items()):
        recall, precision = _thin(*precision_curve(labels, scores))
        colour, style = _colour(number), _dashes(number)
        panel.plot(
            recall, precision, color=colour, linestyle=style, linewidth=1.8, label=name,
            drawstyle="steps-pre",
        )  # fmt: skip
        share = float(np.mean(np.asarray(labels) > 0.5))
        panel.plot([1], [share], "o", color=colour, markersize=5, clip_on=False, zorder=3)
    if len(curves) > 1:
        _legend(panel, "lower left")
    _square(panel, "recall", "precision")
    return figure


def confusion(matrix: ArrayLike, names: Sequence[str]) -> Figure:
    """A confusion matrix: counts, coloured by the share of the true class.

    Args:
        matrix: Rows by true class (first index) and predicted class, `(classes, classes)`.
        names: Of the classes.
    """
    counts = np.asarray(matrix, dtype=float)
    size = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(1.5 + 0.55 * size, 2.8, 8.0))
    figure, (panel,) = canvas(side + 0.9, side)
    _cells(panel, share)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
    for (i, j), count in np.ndenumerate(counts):
        colour = SURFACE if share[i, j] > 0.6 else INK
        panel.text(j + 0.5, i + 0.5, f"{count:,.0f}", color=colour, **style)
    _named_cells(panel, names, rotate=max(map(len, names)) * size > 36)
    _labels(panel, "predicted class", "true class")
    return figure


def survival(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Kaplan-Meier curves with their limits; a tick marks a time of which some are censored.

    Args:
        curves: With `name`, `n`, `events`, `time`, `survival`, `low`, `high` and `at_risk`.
    """
    figure, (panel,) = canvas(5.6, 3.8)
    for number, curve in enumerate(curves):
        time, share = np.asarray(curve["time"]), np.asarray(curve["survival"])
        label = f"{curve['name']} ({curve['events']} events in {curve['n']:,})"
        style: dict[str, Any] = {"color": _colour(number), "linestyle": _dashes(number)}
        chosen = _step_ends(share)
        panel.step(time[chosen], share[chosen], where="post", linewidth=1.8, label=label, **style)
        low, high = (np.asarray(curve[name])[chosen] for name in ("low", "high"))
        band: dict[str, Any] = {"step": "post", "alpha": 0.16, "linewidth": 0}
        panel.fill_between(time[chosen], low, high, color=_colour(number), **band)
        still = share[1:] == share[:-1]
        panel.plot(time[1:][still], share[1:][still], "|", color=_colour(number), markersize=5)
    panel.set_ylim(0, 1.02)
    panel.set_xlim(left=0)
    _labels(panel, "time", "share without an event")
    _legend(panel, "best")
    return figure


def scatter(labels: ArrayLike, scores: ArrayLike) -> Figure:
    """Predicted against true numbers; on the dashed diagonal both agree.

    Args:
        labels: `(rows,)`.
        scores: `(rows,)`.
    """
    truth, predicted = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    figure, (panel,) = canvas(4.4, 4.0)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    panel.plot(ends, ends, color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    density = float(np.clip(60 / np.sqrt(len(truth)), 0.15, 0.8))
    panel.scatter(truth, predicted, s=16, color=SERIES[0], alpha=density, linewidths=0)
    _labels(panel, "true value", "predicted value")
    return figure


def histogram(labels: ArrayLike, scores: ArrayLike, num_bins: int = 40) -> Figure:
    """How the scores of the two classes are spread; each class has area 1.

    Args:
        labels: 0 or 1, `(rows,)`.
        scores: Probabilities, `(rows,)`.
        num_bins: Bins over [0, 1].
    """
    figure, (panel,) = canvas(5.6, 3.2)
    truth, values = np.asarray(labels) > 0.5, np.asarray(scores, dtype=float)
    for number, (name, chosen) in enumerate((("label 0", ~truth), ("label 1", truth))):
        if not chosen.any():
            continue
        heights, edges = np.histogram(values[chosen], num_bins, range=(0, 1), density=True)
        label = f"{name} (n = {int(chosen.sum()):,})"
        panel.stairs(heights, edges, fill=True, alpha=0.28, color=_colour(number))
        panel.stairs(heights, edges, linewidth=1.4, color=_colour(number), label=label)
    panel.set_xlim(0, 1)
    _labels(panel, "predicted probability", "density")
    _legend(panel, "upper right")
    return figure


def heatmap(values: ArrayLike, names: Sequence[str], query: str = "", key: str = "") -> Figure:
    """A square map with named rows and columns; the stronger the colour, the larger the value.

    Args:
        values: Not negative, `(names, names)`.
        names: Of rows and columns.
        query: What the rows are.
        key: What the columns are.
    """
    matrix = np.asarray(values, dtype=float)
    size = len(names)
    side = float(np.clip(1.6 + 0.32 * size, 3.2, 9.0))
    figure, (panel,) = canvas(side + 0.6, side)
    top = float(matrix.max()) or 1.0
    shades = _cells(panel, matrix / top)
    if size <= NUMBERS_UP_TO:
        _numbers(panel, matrix, shades)
    panel.set_title(f"strongest colour: {top:.3g}", fontsize=SMALL, color=MUTED, loc="right")
    _named_cells(panel, names)
    _labels(panel, key, query)
    return figure


def bars(
    names: Sequence[str],
    values: ArrayLike,
    spread: ArrayLike | None = None,
    label: str = "",
    limits: tuple[ArrayLike, ArrayLike] | None = None,
) -> Figure:
    """Horizontal bars, the first on top.

    Args:
        names: One a bar.
        values: Length of each bar.
        spread: Half-length of a line about the end of each bar.
        label: What is measured, with its unit.
        limits: Lower and upper end of that line instead of `spread`.
    """
    lengths = np.asarray(values, dtype=float)
    figure, (panel,) = canvas(5.8, 0.9 + 0.27 * len(names))
    places = np.arange(len(names))
    panel.barh(places, lengths, height=0.62, color=SERIES[0], alpha=0.8, linewidth=0)
    if limits is None and spread is not None:
        half = np.asarray(spread, dtype=float)
        limits = (lengths - half, lengths + half)
    if limits is not None:
        low, high = (np.asarray(limit, dtype=float) for limit in limits)
        panel.hlines(places, low, high, color=INK, linewidth=1.2)
    panel.axvline(0, color=MUTED, linewidth=0.9)
    panel.set_yticks(places, names)
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.grid(visible=False, axis="y")
    panel.xaxis.set_major_locator(MaxNLocator(6))
    _labels(panel, label, "")
    return figure


def curves(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]], x: str) -> Figure:
    """Learning curves, one panel a quantity.

    Args:
        panels: By quantity, then by name of the curve: x and y.
        x: What the horizontal axis counts.
    """
    figure, axes = canvas(3.0 * len(panels), 2.7, columns=len(panels))
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, (steps, values)) in enumerate(lines.items()):
            line = _thin(np.asarray(steps), np.asarray(values))
            marker = "o" if len(line[0]) <= 30 else None
            style: dict[str, Any] = {"linewidth": 1.5, "marker": marker, "markersize": 3.0}
            panel.plot(*line, color=_colour(number), label=name, **style)
        panel.set_title(title, fontsize=NORMAL, color=INK, loc="left")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _labels(panel, x, "")
        if len(lines) > 1:
            _legend(panel, "best")
    return figure


def intervals(
    names: Sequence[str],
    values: Sequence[float],
    limits: Sequence[tuple[float | None, float | None]],
    label: str = "",
    reference: float | None = None,
) -> Figure:
    """Points with their intervals, one line each, the first on top.

    Args:
        names: One a point.
        values: Estimates.
        limits: Low and high of each; None where there is no interval.
        label: What is measured, with its unit.
        reference: Drawn as a vertical line.
    """
    figure, (panel,) = canvas(5.8, 0.9 + 0.3 * len(names))
    if reference is not None:
        panel.axvline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    for place, (value, (low, high)) in enumerate(zip(values, limits, strict=True)):
        if low is not None and high is not None:
            panel.hlines(place, low, high, color=SERIES[0], linewidth=1.6)
        panel.plot([value], [place], "o", color=SERIES[0], markersize=5)
    panel.set_yticks(np.arange(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(visible=False, axis="y")
    _labels(panel, label, "")
    return figure


def _style(panel: Axes) -> None:
    panel.set_facecolor("none")
    panel.set_axisbelow(True)
    panel.grid(color=GRID, linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(MUTED)
        panel.spines[side].set_linewidth(0.8)
    panel.tick_params(colors=MUTED, labelsize=SMALL, labelcolor=INK, width=0.8, length=3)


def _labels(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(x, fontsize=NORMAL, color=INK)
    panel.set_ylabel(y, fontsize=NORMAL, color=INK)


def _square(panel: Axes, x: str, y: str) -> None:
    panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _labels(panel, x, y)


def _legend(panel: Axes, place: str) -> None:
    style: dict[str, Any] = {"loc": place, "frameon": False, "fontsize": SMALL, "labelcolor": INK}
    panel.legend(**style)


def _cells(panel: Axes, values: Array) -> Array:
    """Draw a square of cells, 1 the strongest; gives their strength."""
    size = len(values)
    cells = [Rectangle((j + 0.03, i + 0.03), 0.94, 0.94) for i in range(size) for j in range(size)]
    shades = np.clip(values, 0.02, 1.0)
    # Transparency instead of a colour map: the cells then suit a light and a dark page alike.
    collection = PatchCollection(cells, facecolor=SERIES[0], alpha=shades.ravel(), linewidths=0)
    panel.add_collection(collection)
    panel.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    return shades


def _named_cells(panel: Axes, names: Sequence[str], *, rotate: bool = True) -> None:
    centres = np.arange(len(names)) + 0.5
    panel.set_xticks(centres, names, rotation=90 if rotate else 0)
    panel.set_yticks(centres, names)
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[["left", "bottom"]].set_visible(False)


def _numbers(panel: Axes, matrix: Array, shades: Array) -> None:
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
    for (i, j), value in np.ndenumerate(matrix):
        colour = SURFACE if shades[i, j] > 0.6 else INK
        panel.text(j + 0.5, i + 0.5, f"{value:.2f}".removeprefix("0"), color=colour, **style)


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _dashes(number: int) -> Any:
    """Whole lines first; a second round through the colours is dashed."""
    return "-" if number < len(SERIES) else (0, (5, 2))


def _step_ends(values: Array) -> Array:
    """Where a step function changes, and its last place: the rest lies on the line."""
    return np.flatnonzero(
        np.r_[True, values[1:] != values[:-1]] | (np.arange(len(values)) == len(values) - 1)
    )


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """At most 400 points, first and last kept: more cannot be seen and would bloat the page."""
    if len(x) <= MAX_POINTS:
        return x, y
    chosen = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return x[chosen], y[chosen]
