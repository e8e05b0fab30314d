"""A picture of a recording: some channels, the probability of a seizure, and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from manyhead.mvpformer.events.postprocess import follows
from manyhead.mvpformer.recording import Interval
from manyhead.mvpformer.tracks import Readable
from manyhead_core.evaluate.files import replace
from manyhead_core.evaluate.palette import GRID, INK, MUTED, SERIES
from manyhead_core.training.results import RESEARCH_ONLY

Array = npt.NDArray[np.float64]

SHOWN_CHANNELS = 8
COLUMNS = 1200
# Of a longer column only the beginning is read, so that days are drawn in minutes.
LONGEST_LOOK_S = 10.0
SMALL = 8
TRUE, DETECTED = SERIES[2], SERIES[1]


class Envelope(NamedTuple):
    """Least and greatest value of each column of a picture.

    Args:
        edges: Of the columns in s, `(columns + 1,)`.
        low: µV, `(channels, columns)`.
        high: µV, `(channels, columns)`.
        looked: Seconds of each column that were read.
    """

    edges: Array
    low: Array
    high: Array
    looked: float


class TimeUnit(NamedTuple):
    """A unit that suits a length of time.

    Args:
        name: As the axis says it.
        seconds: How long it is.
    """

    name: str
    seconds: float


def time_unit(duration: float) -> TimeUnit:
    """Seconds up to 5 min, minutes up to 3 h, hours beyond.

    Args:
        duration: s.
    """
    if duration <= 300:
        return TimeUnit("s", 1.0)
    return TimeUnit("min", 60.0) if duration <= 3 * 3600 else TimeUnit("h", 3600.0)


def envelope(
    recording: Readable,
    rows: Sequence[int],
    columns: int = COLUMNS,
    longest: float = LONGEST_LOOK_S,
) -> Envelope:
    """What a picture shows of some channels; a column of signal is held at a time.

    Args:
        recording: The prepared recording.
        rows: Numbers of the channels.
        columns: Of the picture.
        longest: Seconds that are read of a column at most.
    """
    columns = max(1, min(columns, recording.samples))
    edges = np.linspace(0, recording.samples, columns + 1).round().astype(np.int64)
    most = max(1, round(longest * recording.rate))
    low = np.empty((len(rows), columns))
    high = np.empty((len(rows), columns))
    for first, last in _pieces(edges, most):
        begins = edges[first:last]
        ends = np.minimum(edges[first + 1 : last + 1], begins + most)
        signal = recording.read(int(begins[0]), int(ends[-1]))[list(rows)]
        places = begins - begins[0]
        low[:, first:last] = np.minimum.reduceat(signal, places, axis=1)
        high[:, first:last] = np.maximum.reduceat(signal, places, axis=1)
    look = min(most, int(np.diff(edges).max())) / recording.rate
    return Envelope(edges / recording.rate, low, high, look)


def _pieces(edges: npt.NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Columns that are read together: single ones where a part is left out, else a few."""
    width = int(np.diff(edges).max())
    together = 1 if width > most else max(1, most // width)
    columns = len(edges) - 1
    return [(k, min(k + together, columns)) for k in range(0, columns, together)]


def picture(
    recording: Readable,
    start: Array,
    stop: Array,
    probability: Array,
    threshold: float,
    events: Sequence[Interval],
) -> Figure:
    """The recording from top to bottom: annotated and detected seizures, probability, channels.

    Args:
        recording: The prepared recording.
        start: Start of each step in s, `(steps,)`.
        stop: Its end in s, `(steps,)`.
        probability: Of a seizure in each step, `(steps,)`.
        threshold: Above which a step is positive.
        events: Detected seizures in s.
    """
    duration = recording.samples / recording.rate
    unit = time_unit(duration)
    number = len(recording.channels)
    rows = np.unique(np.linspace(0, number - 1, min(number, SHOWN_CHANNELS)).round().astype(int))
    height = 0.6 + 1.5 + 0.5 + 0.45 * len(rows)
    figure = Figure(figsize=(10, height + 0.8), layout="constrained")
    ratios = [0.5, 1.5, 0.6 + 0.45 * len(rows)]
    panels = figure.subplots(3, 1, sharex=True, height_ratios=ratios)
    seizures = recording.info.seizures
    _bars(panels[0], seizures, events, recording.info.gaps, unit)
    _curve(panels[1], start, stop, probability, threshold, unit)
    _traces(panels[2], recording, rows.tolist(), unit)
    # Over the traces: the zeros of a gap would look like a signal that is flat.
    _shade(panels[2], recording.info.gaps, unit)
    for panel in panels:
        panel.set_xlim(0, duration / unit.seconds)
        panel.tick_params(labelsize=SMALL, colors=MUTED)
        panel.spines[["top", "right"]].set_visible(False)
    panels[2].set_xlabel(f"time from the start of the recording ({unit.name})", fontsize=SMALL)
    figure.text(1, 0, RESEARCH_ONLY, ha="right", va="bottom", fontsize=6, color=MUTED)
    return figure


def write_picture(
    path: Path,
    recording: Readable,
    start: Array,
    stop: Array,
    probability: Array,
    threshold: float,
    events: Sequence[Interval],
) -> Path:
    """Save `picture` as PNG.

    Args:
        path: File.
        recording: As for `picture`, like all that follow.
        start: s.
        stop: s.
        probability: `(steps,)`.
        threshold: Above which a step is positive.
        events: s.
    """
    figure = picture(recording, start, stop, probability, threshold, events)
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG in one step.

    Args:
        figure: To write.
        path: File.
    """
    return replace(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _bars(
    panel: Axes,
    seizures: Sequence[Interval] | None,
    events: Sequence[Interval],
    gaps: Sequence[Interval],
    unit: TimeUnit,
) -> None:
    spans = [(seizures or (), 1.1, TRUE), (events, 0.1, DETECTED)]
    for intervals, bottom, colour in spans:
        bars = [(a / unit.seconds, (b - a) / unit.seconds) for a, b in intervals]
        # An edge keeps a seizure of seconds visible in a day.
        panel.broken_barh(bars, (bottom, 0.8), facecolor=colour, edgecolor=colour, linewidth=0.8)
    _shade(panel, gaps, unit)
    true = "not annotated" if seizures is None else f"annotated ({len(seizures)})"
    panel.set_yticks([0.5, 1.5], [f"detected ({len(events)})", true])
    panel.set_ylim(0, 2)
    if gaps:
        panel.legend(handles=[Patch(color=GRID, label="gap")], fontsize=SMALL, frameon=False)


def _shade(panel: Axes, gaps: Sequence[Interval], unit: TimeUnit) -> None:
    for gap in gaps:
        begin, end = gap.onset / unit.seconds, gap.offset / unit.seconds
        panel.axvspan(begin, end, color=GRID, linewidth=0, zorder=3)


def _curve(
    panel: Axes, start: Array, stop: Array, probability: Array, threshold: float, unit: TimeUnit
) -> None:
    # A line over the time of each step, broken where steps do not follow each other.
    apart = np.flatnonzero(~follows(start))[::-1] + 1
    middle, height = (start + stop) / 2 / unit.seconds, probability
    for place in apart:
        middle, height = np.insert(middle, place, np.nan), np.insert(height, place, np.nan)
    marker = "." if len(start) < 60 else ""
    panel.plot(middle, height, color=SERIES[0], linewidth=1.0, marker=marker, markersize=3)
    panel.axhline(threshold, color=DETECTED, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.annotate(
        f" threshold {threshold:.3g}", (1, threshold), xycoords=("axes fraction", "data"),
        ha="left", va="center", fontsize=SMALL, color=DETECTED,
    )  # fmt: skip
    panel.set_ylim(-0.02, 1.02)
    panel.set_ylabel("probability", fontsize=SMALL, color=INK)


def _traces(panel: Axes, recording: Readable, rows: list[int], unit: TimeUnit) -> None:
    seen = envelope(recording, rows)
    # Offsets of electrodes say nothing here.
    middle = np.median((seen.low + seen.high) / 2, axis=1, keepdims=True)
    low, high = seen.low - middle, seen.high - middle
    reach = float(np.quantile(np.maximum(np.abs(low), np.abs(high)), 0.99)) or 1.0
    step = nice(2 * reach)
    edges = seen.edges / unit.seconds
    for place in range(len(rows)):
        base = -place * step
        panel.fill_between(
            np.repeat(edges, 2)[1:-1],
            np.repeat(np.clip(low[place], -step, step), 2) + base,
            np.repeat(np.clip(high[place], -step, step), 2) + base,
            color=SERIES[0],
            linewidth=0.3,
        )
    panel.set_yticks([-k * step for k in range(len(rows))], [recording.channels[k] for k in rows])
    panel.set_ylim(-(len(rows) - 0.3) * step, 0.7 * step)
    some = "" if len(rows) == len(recording.channels) else f" of {len(recording.channels)}"
    panel.set_ylabel(f"{len(rows)}{some} channels, {step:g} µV apart", fontsize=SMALL, color=INK)


def nice(value: float) -> float:
    """The next number of the kind 1, 2, 5, 10, 20 ... that is not smaller.

    Args:
        value: More than 0.
    """
    size = 10.0 ** math.floor(math.log10(value))
    return next(factor * size for factor in (1, 2, 5, 10) if factor * size >= value * (1 - 1e-9))
