"""Slides: readers agree, damage is one line, nothing outside the picture is invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openslide", reason="needs the extra wsi")

import tifffile
from PIL import Image

from manyhead.acmil.slides import Slide, open_slide
from manyhead.acmil.slides.slide import Pixels
from manyhead_core.errors import ConfigError, DataError


class Pyramid(Slide):
    """A slide in memory whose levels can be damaged."""

    def __init__(self, pixels: Pixels, factors: tuple[int, ...] = (1, 4), broken: tuple = ()):
        self.levels = [pixels[::factor, ::factor] for factor in factors]
        self.broken, self.asked = broken, []
        sizes = [level.shape[1::-1] for level in self.levels]
        super().__init__(Path("made.svs"), sizes, 0.5)

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        self.asked.append(level)
        if level in self.broken:
            raise DataError(f"made.svs: damaged at {level0_xy}, level {level}")
        x, y = (round(v / d) for v, d in zip(level0_xy, self.downsamples[level], strict=True))
        part = self.levels[level][y : y + size[1], x : x + size[0]]
        return np.dstack([part, np.full(part.shape[:2], 255, np.uint8)])

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def picture() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)


def test_every_reader_gives_the_same_pixels(tmp_path: Path, picture: Pixels) -> None:
    path = tmp_path / "slide.one.tif"
    tifffile.imwrite(path, picture, tile=(64, 64), photometric="rgb")
    found = {}
    for reader in ("openslide", "tiffslide", "image", "auto"):
        with open_slide(path, reader) as slide:
            assert slide.id == "slide.one"
            assert slide.dimensions == (200, 120)
            assert slide.mpp is None
            found[reader] = slide.read_rgba((-10, 100), 0, (250, 60))
    for pixels in found.values():
        np.testing.assert_array_equal(pixels[:20, 10:210, :3], picture[100:])
        np.testing.assert_array_equal(pixels, found["image"])
    # Outside the slide is transparent black.
    assert not found["auto"][20:].any()
    assert not found["auto"][:, :10].any()
    assert (found["auto"][:20, 10:210, 3] == 255).all()


def test_a_second_level_is_read_where_level_0_says(tmp_path: Path, picture: Pixels) -> None:
    path = tmp_path / "pyramid.tif"
    coarse = picture[::2, ::2].copy()
    options = {"tile": (32, 32), "photometric": "rgb"}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, subifds=0, **options)
        file.write(coarse, subfiletype=1, **options)
    for reader in ("openslide", "tiffslide"):
        with open_slide(path, reader) as slide:
            assert slide.level_dimensions == ((200, 120), (100, 60))
            assert slide.best_level(1.9) == 0
            assert slide.best_level(64) == 1
            part = slide.read((40, 20), 1, (30, 10))
            np.testing.assert_array_equal(part, coarse[10:20, 20:50])


def test_images_of_every_mode_are_slides(tmp_path: Path, picture: Pixels) -> None:
    alpha = np.dstack([picture, np.full((120, 200), 9, np.uint8)])
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture).quantize(16).save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "grey.tif", picture[..., 0], photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "planes.tif", np.moveaxis(picture, -1, 0), photometric="rgb", planarconfig=2
    )
    read = {}
    for name in ("rgb.png", "alpha.png", "grey.png", "palette.png", "grey.tif", "planes.tif"):
        with open_slide(tmp_path / name, "image") as slide:
            read[name] = slide.read_rgba((0, 0), 0, slide.dimensions)
            assert slide.read((0, 0), 0, (5, 4)).shape == (4, 5, 3)
    np.testing.assert_array_equal(read["rgb.png"][..., :3], picture)
    # Colours are kept as they are; nothing is blended onto white.
    np.testing.assert_array_equal(read["alpha.png"], alpha)
    np.testing.assert_array_equal(read["planes.tif"][..., :3], picture)
    for name in ("grey.png", "grey.tif"):
        np.testing.assert_array_equal(read[name][..., 1], picture[..., 0])


def test_a_file_that_is_no_slide_costs_one_line(tmp_path: Path, picture: Pixels) -> None:
    (tmp_path / "text.svs").write_text("hello")
    (tmp_path / "empty.tif").write_bytes(b"")
    Image.fromarray(picture).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()[:20_000]
    (tmp_path / "cut.png").write_bytes(cut)
    tifffile.imwrite(tmp_path / "deep.tif", picture.astype(np.uint16), photometric="rgb")
    for name in ("text.svs", "empty.tif", "cut.png"):
        with pytest.raises(DataError, match="no reader can open it") as caught:
            open_slide(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="not 8-bit"):
        open_slide(tmp_path / "deep.tif", "image")
    with pytest.raises(DataError, match="no file"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(ConfigError, match="plausible"):
        open_slide(tmp_path / "whole.png", mpp=250)


def test_a_small_picture_read_in_strips_is_the_same(
    picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = Pyramid(picture)
    whole = slide.shrunk(0, (50, 30))
    monkeypatch.setattr("manyhead.acmil.slides.slide.STRIP_PIXELS", 4000)
    slide.asked.clear()
    np.testing.assert_array_equal(slide.shrunk(0, (50, 30)), whole)
    assert len(slide.asked) == 6


def test_a_damaged_level_is_replaced_by_another(picture: Pixels) -> None:
    good = Pyramid(picture).thumbnail(50)
    slide = Pyramid(picture, broken=(1,))
    assert slide.thumbnail(50).shape == good.shape == (30, 50, 3)
    assert slide.asked == [1, 0]
    with pytest.raises(DataError, match="level 1"):
        Pyramid(picture, broken=(0, 1)).thumbnail(50)
