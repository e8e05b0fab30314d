"""32 numbers of a tile: colour and texture, no learned knowledge. For trials without weights.

| place | what |
|---|---|
| 0-2, 3-5 | mean, standard deviation of R, G, B, 0 to 1 |
| 6-8, 9-11 | mean, standard deviation of H, S, V: OpenCV's 8-bit values / 255 |
| 12-23 | histogram of hue, 12 bins over 0 to 180, weighted by saturation, sum 1 |
| 24-31 | histogram of gradient direction modulo 180 degrees, 8 bins, weighted by length, sum 1 |
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

FEATURE_DIM, HUE_BINS, DIRECTION_BINS = 32, 12, 8
Floats = npt.NDArray[np.float32]


class Handcrafted32(nn.Module):
    """32 numbers of each tile; runs on the CPU and has no weights."""

    def forward(self, tiles: Tensor) -> Tensor:
        """Features, `(tiles, 32)` float32.

        Args:
            tiles: 8-bit RGB, `(tiles, 3, height, width)`.
        """
        pixels = tiles.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        found = np.stack([describe(tile) for tile in pixels])
        return torch.from_numpy(found).to(tiles.device)


def describe(tile: npt.NDArray[np.uint8]) -> Floats:
    """The 32 numbers of one tile.

    Args:
        tile: 8-bit RGB, `(height, width, 3)`.
    """
    hsv = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
    # Where the division by 255 stands moves float32 sums in the fourth digit; this is the order
    # that published features were made with.
    rgb, hsv32 = tile.astype(np.float32) / 255, hsv.astype(np.float32)
    parts = (
        rgb.mean((0, 1)), rgb.std((0, 1)), hsv32.mean((0, 1)) / 255, hsv32.std((0, 1)) / 255,
        _hue(hsv), _directions(grey.astype(np.float32)),
    )  # fmt: skip
    return np.concatenate(parts).astype(np.float32)


def _hue(hsv: npt.NDArray[np.uint8]) -> Floats:
    weights = hsv[..., 1].ravel().astype(np.float32) / 255
    return _shares(hsv[..., 0].ravel(), HUE_BINS, 180, weights)


def _directions(grey: Floats) -> Floats:
    across = cv2.Sobel(grey, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    angle = np.arctan2(down, across) % np.pi
    return _shares(angle, DIRECTION_BINS, np.pi, np.hypot(across, down))


def _shares(
    values: npt.NDArray[np.generic], bins: int, end: float, weights: npt.NDArray[np.floating]
) -> Floats:
    counted = np.histogram(values, bins, (0, end), weights=weights)[0]
    total = counted.sum()
    # A tile of one grey has neither hue nor gradient.
    shares: Floats = (counted / total if total > 0 else counted).astype(np.float32)
    return shares
