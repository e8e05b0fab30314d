"""Whether the attention lies in areas that somebody has outlined: a factor over chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manyhead_core.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outlined:
    """The attention of one slide that has outlines.

    Args:
        weights: Attention of the patches, `(patches,)`.
        inside: Whether the centre of a patch lies in an outline, `(patches,)`.
        group: Patient, or the slide itself where patients are unknown.
    """

    weights: npt.NDArray[np.floating]
    inside: npt.NDArray[np.bool_]
    group: str


@dataclass(frozen=True)
class Enrichment:
    """How much more often the most attended patches lie in an outline than any patch.

    Args:
        top_share: Share of the most attended patches that do, mean over slides.
        share: Share of all patches that do, mean over slides.
        factor: `top_share / share`; 1 is chance.
        low: Lower 95 % limit of the factor, patients resampled.
        high: Upper limit.
        slides: Number of slides.
    """

    top_share: float
    share: float
    factor: float
    low: float
    high: float
    slides: int


def enrichment(
    slides: Sequence[Outlined], top: int = 10, *, draws: int = 2000, seed: int = 0
) -> Enrichment:
    """Factor over chance by which the most attended patches lie in outlines.

    Args:
        slides: Slides that have outlines.
        top: How many patches of a slide count; all of them where it has fewer.
        draws: Bootstrap resamples of patients.
        seed: Seed of the resamples.

    Raises:
        DataError: There is no slide, or no patch in an outline.
    """
    pairs = np.array([_shares(slide, top) for slide in slides]).reshape(-1, 2)
    if not pairs[:, 1].sum():
        raise DataError("annotations: no patch of any slide lies in an outline")
    _, code = np.unique([slide.group for slide in slides], return_inverse=True)
    groups = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    sums = counts[:, code] @ pairs
    drawn = sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    top_share, share = pairs.mean(0)
    return Enrichment(
        float(top_share), float(share), float(top_share / share), float(low), float(high),
        len(slides),
    )  # fmt: skip


def _shares(slide: Outlined, top: int) -> tuple[float, float]:
    highest = np.argsort(-slide.weights, kind="stable")[:top]
    return float(slide.inside[highest].mean()), float(slide.inside.mean())
