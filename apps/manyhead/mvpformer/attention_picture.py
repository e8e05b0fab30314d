"""A picture of where a window looked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from manyhead.mvpformer.attention import WindowAttention
from manyhead.mvpformer.pictures import SMALL
from manyhead_core.evaluate.palette import INK, MUTED, SERIES, SURFACE
from manyhead_core.training.results import RESEARCH_ONLY

Array = npt.NDArray[np.float64]
NAMES_UP_TO = 32


def attention_picture(
    found: WindowAttention, channels: Sequence[str], segment_seconds: float, title: str
) -> Figure:
    """Map of segments and channels, with the shares of segments, channels and distances.

    Args:
        found: Of a window.
        channels: Names, in order.
        segment_seconds: Length of a segment, s.
        title: What is shown.
    """
    shown = found.shown
    segments, number = shown.shape
    tall = float(np.clip(1.6 + 0.16 * number, 2.6, 9))
    figure = Figure(figsize=(10, tall + 2), layout="constrained")
    panels = figure.subplots(2, 2, width_ratios=[4, 1], height_ratios=[tall, 1.5])
    edges = segment_seconds * np.arange(-segments, 1)
    _map(figure, panels[0, 0], shown, edges, channels)
    panels[0, 0].set_title(title, fontsize=SMALL + 1, color=INK, loc="left")
    panels[0, 1].barh(np.arange(number), shown.sum(0), color=SERIES[0])
    panels[0, 1].set_ylim(number - 0.5, -0.5)
    panels[0, 1].set_yticks([])
    _label(panels[0, 1], "share of the channel", "")
    panels[1, 0].stairs(shown.sum(1), edges, color=SERIES[0], fill=True)
    panels[1, 0].set_xlim(edges[0], 0)
    _label(panels[1, 0], "time before the end of the step (s)", "share of the segment")
    panels[1, 1].plot(found.distance.mean(0), color=SERIES[1], linewidth=1.2, marker=".")
    panels[1, 1].ticklabel_format(useOffset=False)
    panels[1, 1].axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    _label(panels[1, 1], "distance in the list of channels", "share, 1 is equal")
    figure.supxlabel(RESEARCH_ONLY, fontsize=6, color=MUTED)
    return figure


def _map(figure: Figure, panel: Axes, shown: Array, edges: Array, channels: Sequence[str]) -> None:
    shade = LinearSegmentedColormap.from_list("shade", [SURFACE, SERIES[0]])
    rows = np.arange(len(channels) + 1) - 0.5
    drawn = panel.pcolormesh(edges, rows, shown.T, cmap=shade, vmin=0)
    panel.set_ylim(len(channels) - 0.5, -0.5)
    places = np.arange(0, len(channels), -(-len(channels) // NAMES_UP_TO))
    panel.set_yticks(places, [channels[k] for k in places.tolist()])
    _label(panel, "", "channel")
    bar = figure.colorbar(drawn, ax=panel, pad=0.01, fraction=0.03)
    bar.ax.tick_params(labelsize=SMALL - 1, colors=MUTED)
    bar.set_label("share of attention", fontsize=SMALL)


def _label(panel: Axes, across: str, up: str) -> None:
    panel.set_xlabel(across, fontsize=SMALL)
    panel.set_ylabel(up, fontsize=SMALL)
    panel.tick_params(labelsize=SMALL - 1, colors=MUTED)
    panel.spines[["top", "right"]].set_visible(False)
