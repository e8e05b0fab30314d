"""Pixels of a simulated slide in haematoxylin and eosin, by optical density.

A pixel is `light * exp(-(h * H + e * E))`: two stains with a colour each, whose amounts h and e
vary from place to place. Nuclei take haematoxylin, what lies between them eosin.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from manyhead.acmil.landscape import Landscape, Mask

Plane = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# Absorption of red, green and blue by the two stains.
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
LIGHT = 246.0
# Amounts of stain are drawn as whole numbers, so many to a unit of optical density.
UNITS = 100
# Light that passes an optical density, by steps of it, up to MOST.
STEPS, MOST = 1000, 8
TRANSMITTED = (LIGHT * np.exp(-np.arange(STEPS * MOST + 1) / STEPS)).astype(np.int16)


@dataclass(frozen=True)
class Nuclei:
    """How the nuclei of a kind of tissue look, in level-0 pixels and optical density.

    Args:
        distance: Mean distance of two.
        radius: Mean half of the longer axis.
        spread: Relative deviation of the radius.
        density: Mean amount of haematoxylin.
        rough: Whether the outline is irregular.
    """

    distance: float
    radius: float
    spread: float
    density: float
    rough: bool = False


# At 0.5 µm per pixel a resting nucleus is about 6 µm wide, one of a tumour 9 µm. Lymphoid tissue is
# as dark as a lesion on average: the mean colour of a patch does not tell them apart.
NORMAL = Nuclei(27, 6.5, 0.15, 0.85)
LYMPHOID = Nuclei(10.5, 4.6, 0.08, 1.05)
LESION = Nuclei(23, 9.5, 0.25, 1.25, rough=True)
EOSIN_OF_TISSUE, EOSIN_OF_LESION = 0.42, 0.7


@dataclass(frozen=True)
class Stain:
    """Colours and strengths of the stains of one slide.

    Args:
        colours: Absorption of red, green and blue by haematoxylin and eosin, `(2, 3)`.
        haematoxylin: Relative amount.
        eosin: Relative amount.
        crowding: Relative distance of the nuclei of normal tissue.
    """

    colours: npt.NDArray[np.float64]
    haematoxylin: float = 1.0
    eosin: float = 1.0
    crowding: float = 1.0

    def varied(self, rng: np.random.Generator, amount: float) -> Stain:
        """Another stain near this one.

        Args:
            rng: Source of what is drawn.
            amount: Relative deviation of the strengths.
        """
        colours = np.clip(self.colours + rng.normal(0, amount / 4, (2, 3)), 0.02, None)
        factors = np.exp(rng.normal(0, amount, 3))
        return Stain(
            colours / np.linalg.norm(colours, axis=1, keepdims=True),
            self.haematoxylin * float(factors[0]),
            self.eosin * float(factors[1]),
            self.crowding * float(factors[2]),
        )


USUAL = Stain(np.stack([HAEMATOXYLIN, EOSIN]))


def render(rng: np.random.Generator, place: Landscape, stain: Stain = USUAL) -> Pixels:
    """The picture of a slide, `(side, side, 3)`.

    Args:
        rng: Source of what is drawn.
        place: What is where.
        stain: Its colours.
    """
    side = place.tissue.shape[0]
    body = cv2.GaussianBlur(place.tissue.astype(np.float32), (0, 0), 1.5)
    fibres = _noise(rng, side, (9, 2)) * 0.5 + _noise(rng, side, (3, 3)) * 0.5
    tissue = EOSIN_OF_TISSUE + 0.09 * _noise(rng, side, (90, 90)) + 0.1 * fibres
    eosin = np.asarray(stain.eosin * tissue, np.float32)
    nuclei = _nuclei_everywhere(rng, place, stain)
    purple = np.asarray(stain.haematoxylin * (0.06 + nuclei), np.float32)
    purple *= 1 + 0.18 * _noise(rng, side, (2, 2))
    # Between the crowded cells of a tumour there is less matrix.
    eosin[place.lesion] *= EOSIN_OF_LESION
    _bleed(rng, place.areas["blood"], eosin, purple)
    for plane in (eosin, purple):
        np.clip(plane, 0, None, out=plane)
        plane *= body
        plane[place.areas["fold"]] *= 1.7
    picture = _absorbed(eosin, purple, stain)
    _blur(picture, place.areas["blur"])
    grain = rng.integers(-2, 3, (side, side), dtype=np.int16)
    return np.asarray(np.clip(picture + grain[..., None], 0, 255), np.uint8)


def _absorbed(eosin: Plane, purple: Plane, stain: Stain) -> npt.NDArray[np.int16]:
    # A table is three times as fast as an exponential of every pixel.
    picture = np.empty((*eosin.shape, 3), np.int16)
    for channel in range(3):
        strong, weak = STEPS * stain.colours[:, channel]
        density = cv2.addWeighted(purple, strong, eosin, weak, 0, dtype=cv2.CV_32F)
        picture[..., channel] = TRANSMITTED[np.minimum(density, MOST * STEPS).astype(np.int16)]
    return picture


def _nuclei_everywhere(rng: np.random.Generator, place: Landscape, stain: Stain) -> Plane:
    """Haematoxylin of all nuclei in optical density, `(side, side)`."""
    canvas = np.zeros(place.tissue.shape, np.uint8)
    lesion, lymphoid = place.lesion, place.areas["lymphoid"]
    rest = place.tissue & ~lesion & ~lymphoid & ~place.areas["blood"]
    for kind, where, crowding in (
        (NORMAL, rest, stain.crowding),
        (LYMPHOID, lymphoid, 1.0),
        (LESION, lesion, 1.0),
    ):
        if where.any():
            _draw(rng, canvas, where, kind, crowding)
    blurred = cv2.GaussianBlur(canvas, (0, 0), 0.8)
    return np.asarray(blurred, np.float32) / np.float32(UNITS)


def _draw(
    rng: np.random.Generator, canvas: Pixels, where: Mask, kind: Nuclei, crowding: float
) -> None:
    """Draw the nuclei of one kind of tissue on a canvas of haematoxylin."""
    centres = _scattered(rng, where, kind.distance * crowding)
    count = len(centres)
    longer = kind.radius * np.exp(rng.normal(0, kind.spread, count))
    shorter = longer * rng.uniform(0.6, 0.95, count)
    amount = np.clip(kind.density * UNITS * rng.normal(1, 0.12, count), 1, 255).astype(int)
    turn = rng.uniform(0, 180, count)
    axes = np.maximum(np.rint(np.stack([longer, shorter], -1)), 1).astype(int)
    for n, (x, y) in enumerate(centres):
        if kind.rough:
            outline = cv2.ellipse2Poly((x, y), tuple(axes[n].tolist()), int(turn[n]), 0, 360, 30)
            corners = np.asarray(outline)
            shaken = corners + np.rint(rng.normal(0, 0.15 * longer[n], corners.shape))
            cv2.fillPoly(canvas, [shaken.astype(np.int32)], int(amount[n]))
        else:
            cv2.ellipse(canvas, (x, y), axes[n].tolist(), turn[n], 0, 360, int(amount[n]), -1)


def _scattered(rng: np.random.Generator, where: Mask, distance: float) -> npt.NDArray[np.int64]:
    """Places inside a mask, x and y, `(places, 2)`, about `distance` from each other."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    y = np.arange(rows[0], rows[-1] + 1, distance)
    x = np.arange(columns[0], columns[-1] + 1, distance)
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    grid = grid + distance * rng.uniform(-0.45, 0.45, grid.shape)
    found = np.clip(np.rint(grid), 0, where.shape[0] - 1).astype(np.int64)
    return np.asarray(found[where[found[:, 1], found[:, 0]]], np.int64)


def _bleed(rng: np.random.Generator, where: Mask, eosin: Plane, purple: Plane) -> None:
    """Fill an area with red cells that have no nuclei."""
    if not where.any():
        return
    cells = np.zeros(where.shape, np.uint8)
    for x, y in _scattered(rng, where, 13):
        cv2.circle(cells, (x, y), 6, 55, -1)
    strength = cv2.GaussianBlur(cells, (0, 0), 1.0).astype(np.float32) / UNITS
    eosin[where] = 0.35 + strength[where]
    purple[where] *= 0.3


def _blur(picture: npt.NDArray[np.int16], where: Mask) -> None:
    """Put an area a little out of focus, with a soft border."""
    if not where.any():
        return
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    sharp = picture[box].astype(np.float32)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2.5)
    weight = cv2.GaussianBlur(where[box].astype(np.float32), (0, 0), 6)[..., None]
    picture[box] = (weight * soft + (1 - weight) * sharp).astype(np.int16)


def _noise(rng: np.random.Generator, side: int, grain: tuple[int, int]) -> Plane:
    """Smooth noise of unit deviation with grains of so many pixels across and down."""
    shape = (-(-side // grain[1]) + 1, -(-side // grain[0]) + 1)
    coarse = rng.standard_normal(shape, np.float32)
    fine = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.asarray(fine * 1.4, np.float32)
