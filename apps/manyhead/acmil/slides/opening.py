"""Open a slide with the reader that can."""

from __future__ import annotations

import logging
import pkgutil
from pathlib import Path
from typing import Literal

from manyhead.acmil.slides.resolution import LEAST, MOST
from manyhead.acmil.slides.slide import Slide
from manyhead_core.errors import ConfigError, DataError

Reader = Literal["auto", "openslide", "tiffslide", "image"]
READERS = {
    "openslide": "manyhead.acmil.slides.openslide_reader:OpenSlideReader",
    "tiffslide": "manyhead.acmil.slides.tiffslide_reader:TiffSlideReader",
    "image": "manyhead.acmil.slides.image_reader:ImageReader",
}
PLAIN = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm",
    ".czi", ".png", ".jpg", ".jpeg",
)  # fmt: skip


def open_slide(path: Path, reader: Reader = "auto", mpp: float | None = None) -> Slide:
    """Open a slide.

    Args:
        path: The file.
        reader: What reads it; `auto` tries OpenSlide, then tiffslide, then a plain image.
        mpp: µm per pixel of level 0 instead of what the file says.

    Raises:
        DataError: The file is missing, damaged, or of no known format.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"slide {path.name}: no file {path}")
    mpp = plausible(mpp) if mpp is not None else None
    if reader != "auto":
        if reader not in READERS:
            raise ConfigError(f"reader: {reader!r} is unknown; use auto, {', '.join(READERS)}")
        return _open(reader, path, mpp)
    plain = path.suffix.lower() in PLAIN
    names = ("openslide", "tiffslide", "image") if plain else ("openslide", "tiffslide")
    reasons = []
    for name in names:
        try:
            return _open(name, path, mpp)
        except (DataError, ImportError) as err:
            reason = str(err).removeprefix(f"{path.name}: ").splitlines()[0]
            reasons.append(f"{name}: {reason}")
    raise DataError(f"slide {path.name}: no reader can open it ({'; '.join(reasons)})")


def plausible(mpp: float) -> float:
    """µm per pixel as somebody has typed it.

    Raises:
        ConfigError: No microscope has it.
    """
    if not LEAST <= mpp <= MOST:
        raise ConfigError(f"mpp: {mpp:g} µm per pixel is not plausible; 0.25 is 40x, 0.5 is 20x")
    return mpp


def _open(name: str, path: Path, mpp: float | None) -> Slide:
    log = logging.getLogger("tifffile")
    level = log.level
    # What it logs about a damaged file is in the error, if it is one.
    log.setLevel(logging.CRITICAL)
    try:
        slide: Slide = pkgutil.resolve_name(READERS[name])(path, mpp)
    finally:
        log.setLevel(level)
    return slide
