"""How few patches hold how much of the attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from manyhead_core.evaluate import figures
from manyhead_core.evaluate.palette import INK, MUTED, SERIES

Floats = npt.NDArray[np.float64]
TOPS = (1, 10, 100)
POINTS = 200


@dataclass(frozen=True)
class Concentration:
    """Numbers of one attention map.

    Args:
        patches: N, patches of the slide.
        shares: Attention of the highest 1, 10 and 100 patches, or of all if there are fewer.
        entropy: In nats; log N is even attention.
        effective: Patches that would give this entropy with even attention, `exp(entropy)`.
    """

    patches: int
    shares: tuple[float, ...]
    entropy: float
    effective: float

    def row(self) -> dict[str, float]:
        """As columns of a table."""
        tops = {f"top_{k}": share for k, share in zip(TOPS, self.shares, strict=True)}
        found = {"patches": self.patches, **tops, "entropy": self.entropy}
        return found | {"effective_patches": self.effective}


def concentration(weights: npt.NDArray[Any]) -> Concentration:
    """Numbers of an attention map.

    Args:
        weights: Attention that sums to one, `(patches,)`.
    """
    curve = cumulative(weights)
    shares = tuple(float(curve[min(k, len(curve)) - 1]) for k in TOPS)
    positive = np.asarray(weights, np.float64)
    positive = positive[positive > 0]
    # Zero, not minus zero, when one patch has it all.
    entropy = max(0.0, -float((positive * np.log(positive)).sum()))
    return Concentration(len(weights), shares, entropy, float(np.exp(entropy)))


def cumulative(weights: npt.NDArray[Any]) -> Floats:
    """Attention of the highest 1, 2, 3, ... patches, `(patches,)`."""
    return np.minimum(np.cumsum(np.sort(np.asarray(weights, np.float64))[::-1]), 1.0)


def figure_of(maps: Mapping[str, npt.NDArray[Any]]) -> Figure:
    """Curves of the cumulative attention over the number of patches, which is logarithmic.

    Args:
        maps: Attention by name, each `(patches,)`; the one called `mean` is drawn in black.
    """
    figure, (panel,) = figures.canvas(5.6, 3.4)
    count = max(len(weights) for weights in maps.values())
    ranks = np.unique(np.geomspace(1, count, POINTS).round().astype(int))
    panel.plot(
        ranks, ranks / count, color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)), label="even"
    )
    others = [name for name in maps if name != "mean"]
    for number, name in enumerate(others):
        colour = SERIES[number % len(SERIES)]
        panel.plot(
            ranks, cumulative(maps[name])[ranks - 1], color=colour, linewidth=1.2, label=name
        )
    if "mean" in maps:
        panel.plot(ranks, cumulative(maps["mean"])[ranks - 1], color=INK, linewidth=2, label="mean")
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.set_xlim(1, max(count, 2))
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("patches with the highest attention", color=MUTED, fontsize=figures.SMALL)
    panel.set_ylabel("share of the attention", color=MUTED, fontsize=figures.SMALL)
    panel.legend(
        frameon=False, fontsize=figures.SMALL, labelcolor=INK, loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )  # fmt: skip
    return figure
