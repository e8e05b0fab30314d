"""What is done to a tile before a network sees it: resize, crop, scale, normalise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from manyhead_core.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]
Normalisation = Literal["imagenet", "clip", "lunit", "none"]
Triple = tuple[float, float, float]

# Mean and standard deviation of R, G, B that encoders were trained with.
STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """The default is what most published encoders want.

    Args:
        resize: Shorter side after resizing, antialiased, in pixels; None leaves the size.
        crop: Side of the square cut from the middle afterwards; None cuts nothing.
        normalise: Whose mean and standard deviation: `imagenet`, `clip`, `lunit`, or `none`.
        mean: Mean of R, G, B instead, 0 to 1.
        std: Standard deviation of R, G, B instead.
        interpolation: `bilinear` or `bicubic`.
    """

    resize: int | None = 224
    crop: int | None = None
    normalise: Normalisation = "imagenet"
    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Check names and sizes."""
        if self.normalise not in STATISTICS:
            names = ", ".join(STATISTICS)
            raise ConfigError(f"normalise: {self.normalise!r} is unknown; use one of {names}")
        if self.interpolation not in get_args(Interpolation):
            raise ConfigError(
                f"interpolation: {self.interpolation!r} is unknown; use bilinear or bicubic"
            )
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and size < 1:
                raise ConfigError(f"{name}: must be at least 1 pixel, got {size}")
        if self.resize and self.crop and self.crop > self.resize:
            raise ConfigError(f"crop: {self.crop} is more than resize leaves, {self.resize}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean, std: give both or none")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std: must be positive, got {self.std}")

    def __str__(self) -> str:
        """The options in one line, equal for equal input of a network."""
        mean, std = self.statistics
        numbers = " ".join(f"{value:g}" for value in (*mean, *std))
        return f"resize {self.resize} {self.interpolation}, crop {self.crop}, {numbers}"

    @property
    def statistics(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation that are used."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        return STATISTICS[self.normalise]


class Transform:
    """The options, applied to batches of tiles.

    Args:
        options: What to do.
    """

    def __init__(self, options: TransformOptions) -> None:
        self.options = options

    def __call__(self, tiles: Tensor) -> Tensor:
        """Input of a network, `(tiles, 3, height, width)` float32.

        Args:
            tiles: 8-bit RGB, `(tiles, 3, height, width)`.

        Raises:
            ConfigError: The tiles are smaller than the cut.
        """
        options = self.options
        if options.resize is not None:
            tiles = resize(tiles, options.resize, options.interpolation)
        if options.crop is not None:
            tiles = _crop(tiles, options.crop)
        mean, std = (torch.tensor(values, device=tiles.device) for values in options.statistics)
        return (tiles.float() / 255 - mean[:, None, None]) / std[:, None, None]


def resize(tiles: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Tiles whose shorter side is `size`, antialiased, still of 8 bits.

    Args:
        tiles: 8-bit RGB, `(tiles, 3, height, width)`.
        size: Shorter side in pixels.
        interpolation: `bilinear` or `bicubic`.
    """
    height, width = tiles.shape[-2:]
    short, long = sorted((height, width))
    if short == size:
        return tiles
    other = int(size * long / short)
    shape = (other, size) if height > width else (size, other)
    # Image libraries round to 8 bits after resizing, and encoders were trained behind them. The
    # kernel for 8 bits computes as they do; it is missing on other devices.
    if tiles.device.type == "cpu":
        return interpolate(tiles, shape, mode=interpolation, antialias=True)
    large = interpolate(tiles.float(), shape, mode=interpolation, antialias=True)
    return large.round_().clamp_(0, 255).to(torch.uint8)


def _crop(tiles: Tensor, size: int) -> Tensor:
    height, width = tiles.shape[-2:]
    if min(height, width) < size:
        raise ConfigError(
            f"crop: {size} does not fit into tiles of {width} x {height} pixels; resize them first"
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return tiles[..., top : top + size, left : left + size]
