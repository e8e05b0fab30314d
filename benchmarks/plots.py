"""Figures of results for the documentation, as small SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases.attention_length import FULL, TRAINING, Curve, curve
from benchmarks.harness import Result
from manyhead_core.evaluate.figures import SMALL, canvas
from manyhead_core.evaluate.palette import INK, MUTED, SERIES, SURFACE

# More lines with names than these cannot be told apart; the others are drawn without one.
NAMED = ("linear", "spectral", "lsda", "bra", "dynamic_mask", "moh")
PATTERN = "NS"


def length_figure(results: Sequence[Result]) -> Figure:
    """Time and memory of a training step over the number of tokens, non-causal self-attention.

    Args:
        results: Of the case `attention_length`.
    """
    figure, (time, memory) = canvas(9.0, 4.4, columns=2)
    names = dict.fromkeys(result.variant for result in results)
    others = [name for name in names if name not in (FULL, *NAMED)]
    # The named ones last, so that they lie above the others.
    for name in (*others, *(name for name in NAMED if name in names), FULL):
        found = curve(results, name, PATTERN, TRAINING)
        if found.lengths:
            _line(time, name, found, [1e3 * seconds for seconds in found.seconds])
            _line(memory, name, found, [peak / 2**20 for peak in found.peaks])
    for panel, label in ((time, "time (ms)"), (memory, "memory (MiB)")):
        _axes(panel, label, sorted({int(result.extra["tokens"]) for result in results}))
    time.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper left")
    return figure


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes for the same figure.

    Args:
        figure: What to write.
        path: File; its folder is made when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "manyhead"}):
        figure.savefig(path, format="svg", facecolor=SURFACE, metadata={"Date": None})


def _line(panel: Axes, name: str, found: Curve, values: Sequence[float]) -> None:
    if name == FULL:
        colour, width, label = INK, 2.2, name
    elif name in NAMED:
        colour, width, label = SERIES[NAMED.index(name) % len(SERIES)], 1.6, name
    else:
        colour, width, label = MUTED, 0.5, "_others"
    panel.plot(found.lengths, values, color=colour, linewidth=width, label=label)


def _axes(panel: Axes, label: str, lengths: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
    panel.minorticks_off()
    panel.set_xlabel("tokens", fontsize=SMALL, color=INK)
    panel.set_title(label, fontsize=SMALL, color=INK, loc="left")
