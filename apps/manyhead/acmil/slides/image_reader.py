"""Plain images as slides of one level: PNG, JPEG, and TIFF without a pyramid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from manyhead.acmil.slides.resolution import mpp_of_resolution
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead_core.errors import DataError

# A plain image is held in memory: so many pixels are 3 GB.
MOST_PIXELS = 10**9
TIFF = (".tif", ".tiff")
RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}


class ImageReader(Slide):
    """An image held in memory.

    Args:
        path: The file.
        mpp: µm per pixel instead of what the file says.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        pixels, known = _tiff(path) if path.suffix.lower() in TIFF else _image(path)
        self._pixels = pixels
        height, width = pixels.shape[:2]
        super().__init__(path, [(width, height)], mpp or known)

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:  # noqa: ARG002
        """As `Slide.read_rgba`."""
        (x, y), (width, height) = level0_xy, size
        found = np.zeros((height, width, 4), np.uint8)
        left, top = max(0, x), max(0, y)
        part = self._pixels[top : max(0, y + height), left : max(0, x + width)]
        rows, columns = part.shape[:2]
        here = found[top - y : top - y + rows, left - x : left - x + columns]
        here[..., :3], here[..., 3] = part, 255
        return found

    def close(self) -> None:
        """Nothing is open."""


def _tiff(path: Path) -> tuple[Pixels, float | None]:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            _check_size(path, page.shape[1], page.shape[0])
            tags = page.tags
            unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
            ratio = tags["XResolution"].value if "XResolution" in tags else (0, 1)
            return _rgb(path, page.asarray()), mpp_of_resolution(
                ratio[0] / ratio[1] if ratio[1] else None, RESOLUTION_UNITS.get(int(unit), "")
            )
    except DataError:
        raise
    except Exception as err:
        raise DataError(f"{path.name}: is no readable TIFF ({err})") from err


def _image(path: Path) -> tuple[Pixels, float | None]:
    try:
        with Image.open(path) as image:
            _check_size(path, *image.size)
            return np.asarray(image.convert("RGB")), None
    except (UnidentifiedImageError, OSError) as err:
        raise DataError(f"{path.name}: is no readable image ({err})") from err


def _rgb(path: Path, pixels: np.ndarray) -> Pixels:
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, -1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4) or pixels.dtype != np.uint8:
        raise DataError(f"{path.name}: holds {pixels.dtype} {pixels.shape}, not 8-bit RGB")
    return pixels[..., :3]


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{path.name}: {width} x {height} pixels in one level are too many; save it as a "
            "tiled pyramid"
        )
