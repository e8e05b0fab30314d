"""Plain images as slides of one level: PNG, JPEG, and TIFF without a pyramid."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from manyhead.acmil.slides.resolution import mpp_of_resolution
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead_core.errors import DataError

# A plain image is held in memory: so many pixels are 3 GB.
MOST_PIXELS = 10**9
TIFF = (".tif", ".tiff")
UNITS_OF_TIFF = {2: "inch", 3: "centimeter"}
SIMPLE = ("RGB", "MINISBLACK", "YCBCR")


class ImageReader(Slide):
    """An image held in memory.

    Args:
        path: The file.
        mpp: µm per pixel instead of what the file says.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        pixels, known = _tiff(path) if path.suffix.lower() in TIFF else (_image(path), None)
        self._pixels = pixels
        height, width = pixels.shape[:2]
        super().__init__(path, [(width, height)], mpp or known)

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:  # noqa: ARG002
        """As `Slide.read_rgba`."""
        (x, y), (width, height) = level0_xy, size
        found = np.zeros((height, width, 4), np.uint8)
        left, top = max(0, x), max(0, y)
        part = self._pixels[top : max(0, y + height), left : max(0, x + width)]
        rows, columns, channels = part.shape
        here = found[top - y : top - y + rows, left - x : left - x + columns]
        here[..., 3] = 255
        here[..., :channels] = part
        return found

    def close(self) -> None:
        """Nothing is open."""


def _tiff(path: Path) -> tuple[Pixels, float | None]:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            _check_size(path, page.imagewidth, page.imagelength)
            mpp = _resolution(page)
            if page.photometric.name not in SIMPLE:  # palettes, CMYK: Pillow converts them
                return _image(path), mpp
            pixels = page.asarray()
            if page.axes.startswith("S"):  # a plane for each colour
                pixels = np.moveaxis(pixels, 0, -1)
            return _rgb(path, pixels), mpp
    except DataError:
        raise
    except Exception as err:
        raise DataError(f"{path.name}: is no readable TIFF ({err})") from err


def _resolution(page: Any) -> float | None:
    tags = page.tags
    unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
    above, below = tags["XResolution"].value if "XResolution" in tags else (0, 1)
    return mpp_of_resolution(above / below if below else None, UNITS_OF_TIFF.get(int(unit), ""))


def _image(path: Path) -> Pixels:
    try:
        with warnings.catch_warnings():
            # Pillow's limit is for pictures from the web; ours comes next.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_size(path, *image.size)
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"{path.name}: holds {image.mode} pixels, not 8-bit colours")
                alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
                return np.asarray(image.convert("RGBA" if alpha else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise DataError(
            f"{path.name}: is no readable image ({str(err) or type(err).__name__})"
        ) from err


def _rgb(path: Path, pixels: np.ndarray) -> Pixels:
    if pixels.ndim == 3 and pixels.shape[-1] in (1, 2):  # grey, with alpha
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, -1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4) or pixels.dtype != np.uint8:
        raise DataError(f"{path.name}: holds {pixels.dtype} {pixels.shape}, not 8-bit RGB")
    return pixels


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{path.name}: {width} x {height} pixels in one level are too many; save it as a "
            "tiled pyramid"
        )
