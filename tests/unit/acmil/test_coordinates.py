"""Coordinates: a brute-force grid gives the same patches, and files keep what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs the extra wsi")

import cv2
import h5py

from manyhead.acmil.coordinates import GridOptions, patch_coordinates, reading
from manyhead.acmil.coordinates_file import read_coordinates, slide_id_of, write_coordinates
from manyhead.acmil.slides.slide import Pixels, Slide
from manyhead.acmil.tissue import Tissue
from manyhead_core.errors import ConfigError, DataError


class Empty(Slide):
    """A slide of which only the sizes matter; its second level is not quite half as fine."""

    def __init__(self, mpp: float | None = 0.25) -> None:
        super().__init__(Path("a.b.svs"), [(4001, 3000), (2000, 1500), (250, 187)], mpp)

    def read_rgba(self, level0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        raise AssertionError

    def close(self) -> None:
        """Nothing is open."""


def blob(radius: float, centre: tuple[float, float], corners: int = 400) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reach = radius * (1 + 0.2 * np.sin(7 * angle))
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None] + centre
    return points.astype(np.int32)


TISSUE = Tissue(
    [blob(900, (1500, 1400)), blob(300, (3700, 700))], [[blob(250, (1500, 1400))], []], 0
)


def brute(options: GridOptions, size: int, step: int) -> list[list[int]]:
    """The recipe as it is written down, point by point."""

    def test(contour: np.ndarray, x: float, y: float) -> float:
        return cv2.pointPolygonTest(contour.reshape(-1, 1, 2), (float(x), float(y)), False)

    found = []
    width, height = Empty().dimensions
    for contour, holes in zip(TISSUE.contours, TISSUE.holes, strict=True):
        x0, y0, w, h = cv2.boundingRect(contour)
        ends = (x0 + w, y0 + h)
        if not options.use_padding:
            ends = (min(x0 + w, width - size + 1), min(y0 + h, height - size + 1))
        shift = int(size // 2 * 0.5)
        for x in range(x0, ends[0], step):
            for y in range(y0, ends[1], step):
                c = (x + size // 2, y + size // 2)
                four = [
                    test(contour, c[0] + a * shift, c[1] + b * shift) >= 0
                    for a in (-1, 1)
                    for b in (-1, 1)
                ]
                kept = {
                    "four_pt": any(four),
                    "four_pt_hard": all(four),
                    "center": test(contour, *c) >= 0,
                    "basic": test(contour, x, y) >= 0,
                }[options.contour_fn]
                middle = (x + size / 2, y + size / 2)
                if kept and not any(test(hole, *middle) > 0 for hole in holes):
                    found.append([x, y])
    return found


@pytest.mark.parametrize("contour_fn", ["four_pt", "four_pt_hard", "center", "basic"])
@pytest.mark.parametrize("use_padding", [True, False])
def test_patches_are_those_of_the_recipe(contour_fn: str, use_padding: bool) -> None:
    options = GridOptions(
        patch_size=101, step_size=67, contour_fn=contour_fn, use_padding=use_padding
    )
    found = patch_coordinates(Empty(), TISSUE, options, "reference")
    assert found.coords.tolist() == brute(options, 101, 67)
    assert found.coords.dtype == np.int64


def test_a_coarser_level_steps_by_whole_factors() -> None:
    found = reading(Empty(), GridOptions(patch_size=64, patch_level=1))
    # 4001 / 2000 is 2.0005.
    assert (found.size_level0, found.level, found.read_size) == (128, 1, 64)
    with pytest.raises(ConfigError, match="levels 0 to 2"):
        reading(Empty(), GridOptions(patch_level=3))


@pytest.mark.parametrize(
    ("mpp", "target", "level", "size_level0", "read_size"),
    [
        (0.25, 0.25, 0, 256, 256),
        (0.25, 0.5, 1, 512, 256),
        (0.2528, 0.5, 1, 506, 253),
        (0.25, 1.0, 1, 1024, 512),
        (0.5, 0.25, 0, 128, 128),
    ],
)
def test_a_resolution_is_read_from_the_best_level(
    mpp: float, target: float, level: int, size_level0: int, read_size: int
) -> None:
    found = reading(Empty(mpp), GridOptions(target_mpp=target))
    assert (found.level, found.size_level0, found.read_size) == (level, size_level0, read_size)
    assert found.patch_size == 256
    assert found.magnification == {0.25: 40, 0.5: 20, 1.0: 10}[target]


def test_a_resolution_of_a_slide_without_one_is_a_question() -> None:
    with pytest.raises(DataError, match=r"a\.b: .*--mpp"):
        reading(Empty(None), GridOptions(target_mpp=0.5))
    assert reading(Empty(None), GridOptions()).magnification is None


def test_small_tissue_gets_a_patch_in_the_middle_unless_the_reference_is_asked_for() -> None:
    speck = Tissue([blob(20, (1000, 800)), blob(15, (3995, 30))], [[], []], 0)
    options = GridOptions(patch_size=512)
    assert len(patch_coordinates(Empty(), speck, options, "reference").coords) == 0
    found = patch_coordinates(Empty(), speck, options).coords
    assert np.abs(found[0] + 256 - [1000, 800]).max() <= 8
    assert found[1].tolist() == [4001 - 512, 0]
    hard = GridOptions(patch_size=512, contour_fn="four_pt_hard")
    assert len(patch_coordinates(Empty(), speck, hard).coords) == 0


def test_a_single_patch_is_dropped_by_the_reference_only() -> None:
    one = Tissue([np.array([[0, 0], [90, 0], [90, 90], [0, 90]], np.int32)], [[]], 0)
    options = GridOptions(patch_size=100)
    assert patch_coordinates(Empty(), one, options).coords.tolist() == [[0, 0]]
    assert len(patch_coordinates(Empty(), one, options, "reference").coords) == 0


def test_nothing_is_no_patches() -> None:
    assert patch_coordinates(Empty(), Tissue([], [], 0), GridOptions()).coords.shape == (0, 2)


def test_a_file_keeps_patches_labels_and_options(tmp_path: Path) -> None:
    slide = Empty()
    patches = patch_coordinates(slide, TISSUE, GridOptions(target_mpp=0.5, patch_size=64))
    labels = np.arange(len(patches.coords)) % 3 == 0
    path = tmp_path / "patches" / "a.b.h5"
    write_coordinates(path, slide, patches, labels=labels, settings={"a_t": 1.5, "mpp": None})
    assert [entry.name for entry in path.parent.iterdir()] == ["a.b.h5"]
    found = read_coordinates(path)
    np.testing.assert_array_equal(found.coords, patches.coords)
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.slide_id, found.layout) == ("a.b", "manyhead")
    assert (found.target_mpp, found.mpp) == (0.5, 0.25)
    assert found.settings == {"a_t": 1.5, "mpp": None}
    again = found.patches(slide)
    for name in ("size_level0", "level", "read_size", "patch_size", "mpp"):
        assert getattr(again, name) == getattr(patches, name)


def test_clam_reads_the_same_pixels_from_our_files(tmp_path: Path) -> None:
    slide = Empty()
    patches = patch_coordinates(slide, TISSUE, GridOptions(patch_level=1, patch_size=64))
    write_coordinates(tmp_path / "x.h5", slide, patches)
    with h5py.File(tmp_path / "x.h5") as file:
        about = dict(file["coords"].attrs)
    assert (about["patch_size"], about["patch_level"], about["name"]) == (64, 1, "a.b")
    assert about["downsample"].tolist() == [2.0005, 2.0]
    assert about["level_dim"].tolist() == [4001, 3000]
    assert about["downsampled_level_dim"].tolist() == [2000, 1500]
    assert "save_path" not in about


def foreign(path: Path, attributes: dict) -> Path:
    with h5py.File(path, "w") as file:
        file["coords"] = np.array([[0, 0], [512, 0]])
        file["coords"].attrs.update(attributes)
    return path


def test_files_of_clam_and_trident(tmp_path: Path) -> None:
    clam = foreign(
        tmp_path / "s.1.h5", {"patch_size": 256, "patch_level": 1, "downsample": [2.0005, 2.0]}
    )
    found = read_coordinates(clam)
    assert (found.layout, found.slide_id) == ("clam", "s.1")
    assert (found.size_level0, found.level, found.read_size) == (512, 1, 256)
    trident = foreign(
        tmp_path / "s.1_patches.h5",
        {"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20, "overlap": 0},
    )
    found = read_coordinates(trident)
    assert (found.layout, found.slide_id, found.level) == ("trident", "s.1", None)
    patches = found.patches(Empty())
    assert (patches.level, patches.read_size, patches.patch_size) == (1, 256, 256)
    assert patches.size_level0 == 512
    assert slide_id_of(trident) == "s.1"


def test_files_that_hold_no_patches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="patch_size"):
        read_coordinates(foreign(tmp_path / "bare.h5", {}))
    with pytest.raises(DataError, match="newer"):
        read_coordinates(foreign(tmp_path / "new.h5", {"format": 2, "patch_size": 1}))
    with pytest.raises(DataError, match="no file"):
        read_coordinates(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match="no readable HDF5"):
        read_coordinates(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["feats"] = np.zeros(3)
    with pytest.raises(DataError, match="holds feats, no coords"):
        read_coordinates(tmp_path / "other.h5")


def test_sizes_that_make_no_grid() -> None:
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        GridOptions(patch_size=0)
    with pytest.raises(ConfigError, match="target_mpp"):
        GridOptions(target_mpp=-1)
