"""Tissue: planted blobs are found with their holes, and dust is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs the extra wsi")

from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead.acmil.tissue import PRESETS, SegmentationOptions, segment
from manyhead_core.errors import ConfigError, DataError

GLASS, PINK = (245, 244, 246), (200, 90, 150)


class Made(Slide):
    """A picture with levels of factor 1, 4 and 16."""

    def __init__(self, pixels: Pixels, broken: tuple[int, ...] = ()) -> None:
        self.levels = [pixels[::factor, ::factor] for factor in (1, 4, 16)]
        self.broken = broken
        super().__init__(Path("made.svs"), [level.shape[1::-1] for level in self.levels], None)

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        if level in self.broken:
            raise DataError(f"made.svs: damaged at {level0_xy}, level {level}")
        y = round(level0_xy[1] / self.downsamples[level][1])
        part = self.levels[level][y : y + size[1], : size[0]]
        return np.dstack([part, np.full(part.shape[:2], 255, np.uint8)])

    def close(self) -> None:
        """Nothing is open."""


def picture() -> Pixels:
    """Tissue of 960 x 800 pixels with a hole of 320 x 320, and a speck."""
    pixels = np.full((1600, 2400, 3), GLASS, np.uint8)
    pixels[320:1120, 480:1440] = PINK
    pixels[560:880, 800:1120] = GLASS
    pixels[1400:1408, 2200:2208] = PINK
    return pixels


OPTIONS = SegmentationOptions(seg_level=1, mthresh=3, a_t=1, a_h=0.1)


def test_a_piece_with_its_hole_is_found_where_it_is() -> None:
    tissue = segment(Made(picture()), OPTIONS, "reference")
    assert len(tissue.contours) == 1
    assert len(tissue.holes[0]) == 1
    low, high = tissue.contours[0].min(0), tissue.contours[0].max(0)
    assert np.abs(np.r_[low, high] - [480, 320, 1440, 1120]).max() <= 8
    assert tissue.area == pytest.approx(960 * 800 - 320 * 320, rel=0.03)


def test_the_default_finds_tissue_where_the_usual_preset_finds_none() -> None:
    slide = Made(picture())
    assert segment(slide, PRESETS["default"], "reference").contours == []
    tissue = segment(slide, PRESETS["default"])
    # The speck stays out: it is 2 % of nothing.
    assert len(tissue.contours) == 1
    assert len(tissue.holes[0]) == 1


def test_the_default_leaves_an_area_alone_that_fits() -> None:
    options = SegmentationOptions(seg_level=1, mthresh=3, a_t=0.01, a_h=0.1)
    ours, theirs = (segment(Made(picture()), options, mode) for mode in ("default", "reference"))
    assert [len(c) for c in ours.contours] == [len(c) for c in theirs.contours]


def test_glass_has_no_tissue() -> None:
    glass = np.full((600, 800, 3), GLASS, np.uint8)
    for mode in ("default", "reference"):
        assert segment(Made(glass), mode=mode).contours == []


def test_otsu_finds_what_a_fixed_threshold_does_not() -> None:
    pixels = np.full((600, 800, 3), (250, 230, 240), np.uint8)  # a tinted scan: all is saturated
    pixels[200:400, 200:500] = PINK
    whole = segment(Made(pixels), SegmentationOptions(seg_level=0, a_t=0.01))
    piece = segment(Made(pixels), SegmentationOptions(seg_level=0, a_t=0.01, use_otsu=True))
    assert whole.area == pytest.approx(600 * 800, rel=0.02)
    assert piece.area == pytest.approx(200 * 300, rel=0.02)


def test_a_damaged_level_is_replaced_only_by_default() -> None:
    slide = Made(picture(), broken=(1, 2))
    tissue = segment(slide, OPTIONS)
    assert (tissue.level, len(tissue.contours)) == (0, 1)
    with pytest.raises(DataError, match="level 1"):
        segment(slide, OPTIONS, "reference")
    with pytest.raises(DataError, match="damaged"):
        segment(Made(picture(), broken=(0, 1, 2)), OPTIONS)


def test_a_level_that_is_too_large_is_made_smaller_only_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("manyhead.acmil.tissue.MOST_PIXELS", 10_000)
    monkeypatch.setattr("manyhead.acmil.slides.slide.STRIP_PIXELS", 50_000)
    slide = Made(picture(), broken=(1, 2))
    tissue = segment(slide, SegmentationOptions(seg_level=0, mthresh=1, close=0, a_t=1))
    assert tissue.area == pytest.approx(960 * 800, rel=0.15)
    with pytest.raises(DataError, match="too many to segment"):
        segment(slide, OPTIONS, "reference")


def test_options_that_opencv_would_refuse_with_a_riddle() -> None:
    with pytest.raises(ConfigError, match="odd"):
        SegmentationOptions(mthresh=4)
    with pytest.raises(ConfigError, match="sthresh"):
        SegmentationOptions(sthresh=300)
    with pytest.raises(ConfigError, match="levels 0 to 2"):
        segment(Made(picture()), SegmentationOptions(seg_level=3))


def test_some_pieces_only() -> None:
    pixels = picture()
    pixels[1200:1500, 480:1440] = PINK
    tissue = segment(Made(pixels), OPTIONS)
    assert len(tissue.contours) == 2
    assert tissue.only([1]).area + tissue.only([0]).area == tissue.area


def test_presets_are_the_published_ones() -> None:
    names = ("sthresh", "mthresh", "close", "a_t", "a_h", "max_n_holes")
    found = {name: [getattr(options, key) for key in names] for name, options in PRESETS.items()}
    assert found == {
        "default": [8, 7, 4, 100, 16, 8],
        "tcga": [8, 7, 4, 16, 4, 8],
        "bwh_biopsy": [15, 11, 2, 1, 1, 2],
        "bwh_resection": [15, 11, 4, 100, 16, 8],
    }
    assert not any(options.use_otsu for options in PRESETS.values())
