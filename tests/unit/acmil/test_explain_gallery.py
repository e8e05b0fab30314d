"""The patches with the highest attention, in order, from where they lie."""

from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")
from PIL import Image  # noqa: E402

from manyhead.acmil.explain.gallery import (  # noqa: E402
    CAPTION,
    GAP,
    TILE,
    draw_gallery,
    read_tile,
    top_patches,
)
from manyhead.acmil.slides import Slide, open_slide  # noqa: E402

COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]], np.uint8)
COORDS = np.array([[0, 0], [64, 0], [0, 64], [64, 64]])


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    pixels = COLOURS.reshape(2, 2, 3).repeat(64, 0).repeat(64, 1)
    Image.fromarray(pixels).save(tmp_path / "s.png")
    return open_slide(tmp_path / "s.png")


def test_the_highest_come_first_and_equal_ones_in_order() -> None:
    assert top_patches(np.array([0.1, 0.4, 0.1, 0.4]), 3).tolist() == [1, 3, 0]
    assert top_patches(np.array([0.5, 0.5]), 16).tolist() == [0, 1]


def test_tiles_stand_in_the_order_of_their_attention(slide: Slide) -> None:
    picture = draw_gallery(slide, COORDS, np.array([0.1, 0.4, 0.3, 0.2]), 64)
    middle = GAP + TILE // 2
    shown = [picture[middle, middle + k * (TILE + GAP)].tolist() for k in range(4)]
    assert shown == COLOURS[[1, 2, 3, 0]].tolist()


def test_more_patches_than_a_row_and_fewer_than_asked_for(slide: Slide) -> None:
    coords = np.tile(COORDS, (2, 1))
    picture = draw_gallery(slide, coords, np.full(8, 0.125), 64, count=6)
    assert picture.shape == (2 * (TILE + CAPTION + GAP) + GAP, 4 * (TILE + GAP) + GAP, 3)
    single = draw_gallery(slide, COORDS[:1], np.ones(1), 64)
    assert single.shape[1] == TILE + 2 * GAP


def test_a_tile_over_the_edge_is_white_there(slide: Slide) -> None:
    tile = read_tile(slide, (96, 96), 64, side=64)
    assert tile[10, 10].tolist() == COLOURS[3].tolist()
    assert tile[60, 60].tolist() == [255, 255, 255]
