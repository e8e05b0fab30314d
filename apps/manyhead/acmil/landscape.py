"""Where things are on a simulated slide: tissue, planted lesions, and what may deceive."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

# Corners of an outline.
CORNERS = 72
# Distances to the next border are measured on a picture so many times smaller.
COARSE = 4
# Share of the tissue that each kind takes where it occurs, and how often it does, in both classes.
CONFOUNDERS = {
    "lymphoid": (0.02, 0.09, 0.75),
    "blood": (0.01, 0.06, 0.6),
    "blur": (0.03, 0.08, 0.5),
}
FOLD_CHANCE = 0.6


@dataclass(frozen=True)
class Landscape:
    """Shapes on one slide, all in level-0 pixels.

    Args:
        tissue: Where there is tissue, `(side, side)`.
        lesions: Outlines of the planted lesions, each `(corners, 2)`, within the tissue.
        areas: What both classes have, by kind: `lymphoid` (small dense nuclei), `blood`, `blur`
            and `fold`; each `(side, side)`.
    """

    tissue: Mask
    lesions: list[Polygon]
    areas: dict[str, Mask]

    @property
    def lesion(self) -> Mask:
        """Where there is lesion, `(side, side)`."""
        return filled(self.lesions, self.tissue.shape[0])

    @property
    def lesion_share(self) -> float:
        """Part of the tissue that is lesion."""
        return float(self.lesion.sum() / self.tissue.sum())


def landscape(rng: np.random.Generator, side: int, lesion_share: float = 0.0) -> Landscape:
    """Draw the shapes of a slide.

    Args:
        rng: Source of what is drawn.
        side: Width and height of the slide in pixels.
        lesion_share: Part of the tissue that becomes lesion; 0 for a slide without.
    """
    tissue = _tissue(rng, side)
    total, free = float(tissue.sum()), tissue.copy()
    lesions: list[Polygon] = []
    if lesion_share:
        parts = rng.dirichlet(np.full(int(rng.integers(1, 4)), 6.0))
        for part in sorted(parts, reverse=True):
            lesions.append(_place(rng, free, lesion_share * total * part))
            free &= ~filled(lesions[-1:], side)
    areas: dict[str, Mask] = {}
    for kind, (low, high, chance) in CONFOUNDERS.items():
        areas[kind] = np.zeros_like(tissue)
        if rng.random() < chance:
            areas[kind] = filled([_place(rng, free, rng.uniform(low, high) * total)], side)
            free &= ~areas[kind]
    areas["fold"] = _fold(rng, tissue) if rng.random() < FOLD_CHANCE else np.zeros_like(tissue)
    return Landscape(tissue, lesions, areas)


def filled(outlines: list[Polygon], side: int) -> Mask:
    """Inside of outlines, `(side, side)`."""
    canvas = np.zeros((side, side), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [outline], 1)
    return canvas > 0


def blob(
    rng: np.random.Generator, centre: tuple[float, float], radius: float, roughness: float = 0.12
) -> npt.NDArray[np.float64]:
    """An irregular closed outline, `(corners, 2)`.

    Args:
        rng: Source of what is drawn.
        centre: x and y.
        radius: Of a circle of the same size, roughly.
        roughness: Amplitude of the slowest waves on the circle.
    """
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    waves = np.arange(2, 9)
    amplitude = roughness * rng.normal(size=len(waves)) / np.sqrt(waves - 1)
    phase = rng.uniform(0, 2 * np.pi, len(waves))
    wobble = amplitude @ np.cos(waves[:, None] * angle + phase[:, None])
    length = radius * np.clip(1 + wobble, 0.4, 1.6)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.asarray(circle * length[:, None] + np.asarray(centre), np.float64)


def _tissue(rng: np.random.Generator, side: int) -> Mask:
    """One large piece, often a small one, and a few gaps such as fat leaves."""
    middle = side * (0.5 + rng.uniform(-0.05, 0.05, 2))
    pieces = [blob(rng, (middle[0], middle[1]), side * rng.uniform(0.34, 0.4), 0.1)]
    if rng.random() < 0.6:
        corner = side * np.where(rng.random(2) < 0.5, 0.14, 0.86)
        pieces.append(blob(rng, (corner[0], corner[1]), side * rng.uniform(0.06, 0.1)))
    margin = side // 48
    outlines = [np.clip(piece, margin, side - 1 - margin).astype(np.int32) for piece in pieces]
    tissue = filled(outlines, side)
    for _ in range(int(rng.integers(0, 5))):
        place = (side * rng.uniform(0.25, 0.75), side * rng.uniform(0.25, 0.75))
        gap = blob(rng, place, side * rng.uniform(0.01, 0.03)).astype(np.int32)
        tissue &= ~filled([gap], side)
    return tissue


def _place(rng: np.random.Generator, free: Mask, area: float) -> Polygon:
    """An outline of about this area where there is room; smaller where there is too little."""
    coarse = free[::COARSE, ::COARSE].astype(np.uint8)
    room = cv2.distanceTransform(coarse, cv2.DIST_L2, 3) * COARSE
    outline = blob(rng, (0.0, 0.0), 1.0)
    outline *= np.sqrt(area / cv2.contourArea(outline.astype(np.float32)))
    reach = float(np.hypot(*outline.T).max()) + 2 * COARSE
    fits = np.argwhere(room > reach)
    if len(fits):
        row, column = fits[rng.integers(len(fits))]
    else:
        row, column = np.unravel_index(int(room.argmax()), room.shape)
        outline *= max(0.0, float(room.max()) - 2 * COARSE) / reach
    placed = np.rint(outline + np.array([column, row]) * COARSE)
    return np.asarray(placed, np.int32)


def _fold(rng: np.random.Generator, tissue: Mask) -> Mask:
    """A bent band of tissue that lies double."""
    side = tissue.shape[0]
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15)
    along = np.linspace(-0.5, 0.5, 40)
    across = bend * np.sin(np.pi * along) + rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (0.5 + turn @ np.stack([along, across])).T * side
    canvas = np.zeros((side, side), np.uint8)
    width = max(2, round(side * rng.uniform(0.01, 0.025)))
    cv2.polylines(canvas, [points.astype(np.int32)], isClosed=False, color=1, thickness=width)
    return (canvas > 0) & tissue
