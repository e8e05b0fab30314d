"""µm per pixel from what scanners write, and what is no resolution."""

from __future__ import annotations

import pytest

from manyhead.acmil.slides.resolution import magnification_of, mpp_of, mpp_of_magnification
from manyhead_core.errors import ConfigError


@pytest.mark.parametrize(
    ("properties", "mpp"),
    [
        ({"openslide.mpp-x": "0.25", "aperio.MPP": "0.5"}, 0.25),
        ({"aperio.MPP": "0.499"}, 0.499),
        ({"hamamatsu.XResolution": "40000"}, 0.25),
        ({"tiff.XResolution": "20000", "tiff.ResolutionUnit": "centimeter"}, 0.5),
        ({"tiff.XResolution": "50800", "tiff.ResolutionUnit": "inch"}, 0.5),
        ({"tiff.XResolution": "72", "tiff.ResolutionUnit": "inch"}, None),
        ({"tiff.XResolution": "1", "tiff.ResolutionUnit": "centimeter"}, None),
        ({"tiff.XResolution": "20000"}, None),
        ({"openslide.mpp-x": "0", "aperio.MPP": "none"}, None),
        ({"openslide.mpp-x": "nan"}, None),
        ({}, None),
    ],
)
def test_scanners(properties: dict[str, str], mpp: float | None) -> None:
    assert mpp_of(properties) == pytest.approx(mpp)


@pytest.mark.parametrize(
    ("mpp", "power"),
    [(0.12, 80), (0.17, 60), (0.25, 40), (0.499, 20), (1.0, 10), (2.0, 5), (2.4, None)],
)
def test_names_of_resolutions(mpp: float, power: int | None) -> None:
    assert magnification_of(mpp) == power


def test_a_magnification_as_resolution_and_back() -> None:
    assert [mpp_of_magnification(power) for power in (40, 20, 10, 5)] == [0.25, 0.5, 1.0, 2.0]
    with pytest.raises(ConfigError, match="magnification"):
        mpp_of_magnification(0)
