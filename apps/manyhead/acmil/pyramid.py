"""Write a picture as a slide: a tiled TIFF with coarser levels and its resolution."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from manyhead_core.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
TILE, QUALITY = 256, 85
# The flag of the TIFF format for a page that is a smaller version of another.
REDUCED = 1
MICROMETRES_PER_CM = 10_000.0


def write_pyramid(path: Path, pixels: Pixels, mpp: float, levels: int = 3) -> None:
    """Write a slide that OpenSlide and tiffslide open; it appears when it is complete.

    Args:
        path: File ending in .tif.
        pixels: Level 0, `(height, width, 3)`.
        mpp: µm per pixel of level 0.
        levels: Levels; each has half the pixels of the one before along both sides.

    Raises:
        ConfigError: The coarsest level would have no pixel.
    """
    if levels < 1 or min(pixels.shape[:2]) >> (levels - 1) < 1:
        raise ConfigError(f"levels: {levels} levels cannot be made of {pixels.shape[:2]} pixels")
    partial = path.with_name(f".{path.name}.partial")
    with tifffile.TiffWriter(partial) as file:
        for level in range(levels):
            if level:
                size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
            per_cm = MICROMETRES_PER_CM / (mpp * 2**level)
            file.write(
                pixels,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=REDUCED if level else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                # No date and no program: the same picture gives the same bytes.
                software=False,
                metadata=None,
            )
    partial.replace(path)
