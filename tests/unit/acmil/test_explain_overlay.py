"""Colours mean what the bar says, patches lie where they should, regions are complete."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")
from PIL import Image  # noqa: E402

from manyhead.acmil.explain import overlay  # noqa: E402
from manyhead.acmil.explain.heatmap import HeatmapOptions, draw_heatmap  # noqa: E402
from manyhead.acmil.explain.overlay import (  # noqa: E402
    Scale,
    blank,
    draw_region,
    draw_whole,
    overview_of,
    parse_region,
    shade,
    with_bar,
)
from manyhead.acmil.slides import Slide, open_slide  # noqa: E402
from manyhead_core.errors import ConfigError, DataError  # noqa: E402

COORDS = np.array([[0, 0], [64, 0], [0, 64], [64, 64]])
PURE = HeatmapOptions(patch_size_level0=64, alpha=1.0, white=True)


def colour(value: float, name: str = "jet") -> list[int]:
    return (np.array(colormaps[name](value)[:3]) * 255).astype(int).tolist()


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "s.png")
    return open_slide(tmp_path / "s.png")


def test_no_attention_and_the_average_are_the_ends_of_the_colours() -> None:
    unit, scale = shade(np.array([0.0, 0.25, 0.75, 0.0]), "attention")
    assert unit.tolist() == [0, 1, 1, 0]
    assert (scale.low, scale.high, scale.open_ended) == (0, 1, True)
    picture = draw_whole(blank(COORDS, 64), COORDS, unit, PURE)
    assert picture.shape == (128, 128, 3)
    assert picture[10, 10].tolist() == colour(0.0)
    assert picture[10, 100].tolist() == colour(1.0)
    assert picture[100, 10].tolist() == colour(1.0)


def test_saturation_moves_the_upper_end() -> None:
    unit, scale = shade(np.array([0.25, 0.75]), "attention", saturation=2.0)
    assert unit.tolist() == [0.25, 0.75]
    assert scale.high == 2


def test_percentiles_spread_over_all_colours() -> None:
    unit, scale = shade(np.array([0.7, 0.1, 0.15, 0.05]), "attention", "percentile")
    assert unit.tolist() == [1.0, 0.5, 0.75, 0.25]
    assert (scale.low, scale.high) == (0, 100)


def test_evidence_is_symmetric_around_the_middle() -> None:
    unit, scale = shade(np.array([-0.2, 0.0, 0.2]), "evidence")
    assert unit.tolist() == pytest.approx([0, 0.5, 1])
    assert scale.low == -scale.high
    assert scale.colormap == overlay.SIGNED
    unit, _ = shade(np.zeros(3), "evidence")
    assert unit.tolist() == [0.5, 0.5, 0.5]


def test_overlapping_patches_are_averaged() -> None:
    coords = np.array([[0, 0], [32, 0]])
    picture = draw_whole(blank(coords, 64), coords, np.array([0.0, 1.0]), PURE)
    assert picture[5, 5].tolist() == colour(0.0)
    assert picture[5, 50].tolist() == colour(0.5)
    assert picture[5, 80].tolist() == colour(1.0)


def test_many_patches_are_drawn_as_one_by_one() -> None:
    draw = np.random.default_rng(0)
    coords, scores = draw.integers(0, 200, (60, 2)), draw.random(60)
    found = draw_whole(
        blank(np.array([[200, 200]]), 40), coords, scores,
        HeatmapOptions(patch_size_level0=40, alpha=1.0, white=True, threshold=0.3),
    )  # fmt: skip
    total, count = np.zeros((240, 240)), np.zeros((240, 240))
    for (x, y), score in zip(coords, scores, strict=True):
        total[y : y + 40, x : x + 40] += score
        count[y : y + 40, x : x + 40] += 1
    mean = total / np.maximum(count, 1)
    wanted = np.full((240, 240, 3), 255)
    for (x, y), score in zip(coords, scores, strict=True):
        if score >= 0.3:
            box = slice(y, y + 40), slice(x, x + 40)
            wanted[box] = (colormaps["jet"](mean[box])[..., :3] * 255).astype(int)
    np.testing.assert_array_equal(found, wanted)


def test_large_paper_is_small_in_memory() -> None:
    coords = np.array([[0, 0], [100_000, 50_000]])
    paper = blank(coords, 512)
    assert paper.dimensions == (100_512, 50_512)
    assert max(paper.picture.shape) == overlay.LONGEST
    picture = draw_whole(paper, coords, np.array([1.0, 1.0]), replace(PURE, patch_size_level0=512))
    assert picture[0, 0].tolist() == colour(1.0)
    assert picture[-1, -1].tolist() == colour(1.0)
    assert picture[500, 1000].tolist() == [255, 255, 255]


def test_without_colour_the_overview_is_the_slide(slide: Slide) -> None:
    look = HeatmapOptions(patch_size_level0=64, alpha=0.0)
    picture = draw_whole(overview_of(slide), COORDS, np.ones(4), look)
    np.testing.assert_array_equal(picture, slide.read((0, 0), 0, slide.dimensions))


def test_a_region_shows_patches_that_begin_outside(slide: Slide) -> None:
    look = HeatmapOptions(patch_size_level0=64, alpha=0.4, region=((30, 20), (110, 90)))
    unit = np.array([0.0, 0.3, 0.7, 1.0])
    region = draw_region(slide, COORDS, unit, look)
    whole = draw_heatmap(slide, COORDS, unit, HeatmapOptions(patch_size_level0=64, level=0))
    assert region.shape == (70, 80, 3)
    np.testing.assert_array_equal(region, whole[20:90, 30:110])


def test_a_region_at_the_corner_and_over_the_edge(slide: Slide) -> None:
    look = HeatmapOptions(patch_size_level0=64, alpha=0.0, region=((0, 0), (300, 50)))
    region = draw_region(slide, COORDS, np.ones(4), look)
    np.testing.assert_array_equal(region, slide.read((0, 0), 0, (160, 50)))
    with pytest.raises(DataError, match="outside of s, which has 160 x 96"):
        draw_region(slide, COORDS, np.ones(4), replace(look, region=((200, 0), (300, 50))))


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "5,5,5,9", "-1,0,3,3", "9,9,3,3"])
def test_a_region_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="region"):
        parse_region(text)


def test_a_region_is_two_corners() -> None:
    assert parse_region("1, 2, 30, 40") == ((1, 2), (30, 40))


def test_a_level_that_is_not_there_or_too_large(
    slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = HeatmapOptions(patch_size_level0=64, level=3)
    with pytest.raises(ConfigError, match="no level 3; it has 1"):
        draw_whole(slide, COORDS, np.ones(4), look)
    monkeypatch.setattr(overlay, "MOST_PIXELS", 1000)
    with pytest.raises(ConfigError, match="too large"):
        draw_whole(slide, COORDS, np.ones(4), HeatmapOptions(patch_size_level0=64, level=0))


@pytest.mark.parametrize("width", [20, 700])
def test_the_bar_is_below_the_picture_and_its_ends_are_those_of_the_map(width: int) -> None:
    picture = np.full((50, width, 3), 7, np.uint8)
    found = with_bar(picture, Scale("attention", 0, 1, "jet"), "mean")
    np.testing.assert_array_equal(found[:50, :width], picture)
    strip = found[50:].reshape(-1, 3).tolist()
    for end in (0.0, 1.0):
        wanted = colour(end)
        assert any(max(abs(a - b) for a, b in zip(wanted, c, strict=True)) <= 1 for c in strip)
