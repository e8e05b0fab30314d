"""µm per pixel from what scanners write into their files."""

from __future__ import annotations

from collections.abc import Mapping

from manyhead_core.errors import ConfigError

# Pixels per unit of a TIFF resolution, in µm.
UNITS = {"centimeter": 10_000.0, "centimetre": 10_000.0, "inch": 25_400.0}
# Objective magnification by the finest µm per pixel it is called.
MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
# Resolutions of screens and printers that image tools write without knowing better.
MEANINGLESS_DPI = (72.0, 96.0, 300.0)


# µm per pixel that a microscope can have; anything else is a scanner's mistake.
LEAST, MOST = 0.01, 100.0


def mpp_of(properties: Mapping[str, str]) -> float | None:
    """µm per pixel of level 0, or None when the file does not say.

    Args:
        properties: Names and values as OpenSlide gives them.
    """
    for name in ("openslide.mpp-x", "tiffslide.mpp-x", "aperio.MPP"):
        if found := _credible(_number(properties.get(name))):
            return found
    if per_cm := _number(properties.get("hamamatsu.XResolution")):
        return _credible(10_000.0 / per_cm)
    resolution = _number(properties.get("tiff.XResolution"))
    unit = (properties.get("tiff.ResolutionUnit") or "").lower()
    return mpp_of_resolution(resolution, unit)


def mpp_of_resolution(resolution: float | None, unit: str) -> float | None:
    """µm per pixel from a TIFF resolution in pixels per unit.

    Args:
        resolution: Pixels per unit.
        unit: `centimeter` or `inch`.
    """
    if not resolution or unit not in UNITS:
        return None
    if unit == "inch" and resolution in MEANINGLESS_DPI:
        return None
    return _credible(UNITS[unit] / resolution)


def magnification_of(mpp: float) -> int | None:
    """Usual name of a resolution, as 20 for about 0.5 µm per pixel; None if it is coarser."""
    return next((power for limit, power in MAGNIFICATIONS if mpp < limit), None)


def mpp_of_magnification(magnification: float) -> float:
    """µm per pixel of a magnification by its usual name: 20x is 0.5, 40x 0.25.

    Raises:
        ConfigError: It is not one of a microscope.
    """
    if not 0.5 <= magnification <= 100:
        raise ConfigError(f"magnification: {magnification:g} is not plausible; use 5, 10, 20 or 40")
    return 10.0 / magnification


def _credible(mpp: float | None) -> float | None:
    return mpp if mpp is not None and LEAST <= mpp <= MOST else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if value > 0 else None
