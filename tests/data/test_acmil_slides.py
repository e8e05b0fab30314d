"""Real slides: every reader, tissue, patches, and what a cut file costs."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openslide", reason="needs the extra wsi")

from manyhead.acmil.annotations import labels_of, read_outlines
from manyhead.acmil.coordinates import GridOptions, patch_coordinates
from manyhead.acmil.coordinates_file import read_coordinates
from manyhead.acmil.slides import open_slide
from manyhead.acmil.tile import tile
from manyhead.acmil.tissue import PRESETS, segment
from manyhead_core.errors import DataError

SVS, TIF = "CMU-1-Small-Region.svs", "kidney-48-5.tif"


@pytest.fixture
def wsi(data_dir: Path) -> Path:
    return data_dir / "wsi"


def test_the_readers_agree_on_the_svs(wsi: Path) -> None:
    parts = []
    for reader in ("openslide", "tiffslide"):
        with open_slide(wsi / SVS, reader) as slide:
            assert slide.level_dimensions == ((2220, 2967),)
            assert slide.mpp == pytest.approx(0.499)
            parts.append(slide.read_rgba((2000, 2800), 0, (400, 300)).astype(int))
    # Two JPEG decoders may differ by a grey level.
    assert np.abs(parts[0] - parts[1]).max() <= 2
    assert not parts[0][:, 220:].any()


def test_the_plain_tiff_works_with_all_readers_that_can(wsi: Path) -> None:
    with pytest.raises(DataError, match="OpenSlide cannot read it"):
        open_slide(wsi / TIF, "openslide")
    wholes = []
    for reader in ("tiffslide", "image", "auto"):
        with open_slide(wsi / TIF, reader) as slide:
            assert slide.mpp is None
            wholes.append(slide.read((0, 0), 0, slide.dimensions))
    assert wholes[0].shape == (901, 1493, 3)
    for whole in wholes[1:]:
        np.testing.assert_array_equal(whole, wholes[0])


def test_tissue_of_both_slides_is_found_by_default_only(wsi: Path) -> None:
    shares = {}
    for name in (SVS, TIF):
        with open_slide(wsi / name) as slide:
            assert segment(slide, PRESETS["default"], "reference").contours == []
            tissue = segment(slide)
            shares[name] = tissue.area / (slide.dimensions[0] * slide.dimensions[1])
    assert shares[SVS] == pytest.approx(0.384, abs=0.005)
    assert shares[TIF] == pytest.approx(0.0033, abs=0.0005)


def test_coordinates_of_clam_are_ours(wsi: Path) -> None:
    theirs = read_coordinates(wsi / "format_samples" / "CMU-1-Small-Region.coords.clam.h5")
    assert (theirs.layout, theirs.size_level0, theirs.level) == ("clam", 128, 0)
    with open_slide(wsi / SVS) as slide:
        tissue = segment(slide, PRESETS["bwh_biopsy"], "reference")
        ours = patch_coordinates(slide, tissue, GridOptions(patch_size=128), "reference")
    np.testing.assert_array_equal(ours.coords, theirs.coords)


def test_trident_files_are_read_and_annotations_found(wsi: Path) -> None:
    found = read_coordinates(wsi / "format_samples" / "CMU-1-Small-Region.features.trident.h5")
    assert (found.layout, found.size_level0, len(found.coords)) == ("trident", 128, 182)
    with open_slide(wsi / SVS) as slide:
        patches = found.patches(slide)
    assert (patches.level, patches.read_size) == (0, 128)
    outlines = read_outlines(wsi / "format_samples" / "CMU-1-Small-Region.asap.xml")
    assert 0 < labels_of(outlines, patches).sum() < 182


def test_a_folder_with_cut_files(wsi: Path, tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    for name in (SVS, TIF):
        shutil.copyfile(wsi / name, slides / name)
    (slides / "cut.svs").write_bytes((wsi / SVS).read_bytes()[:1_000_000])
    (slides / "cut-tail.svs").write_bytes((wsi / SVS).read_bytes()[:1_900_000])
    (slides / "cut2.tif").write_bytes((wsi / TIF).read_bytes()[:2_000_000])
    table = slides / "list.csv"
    table.write_text(f"path,mpp\n{SVS},\n{TIF},0.5\ncut.svs,\ncut-tail.svs,\ncut2.tif,0.5\n")
    assert tile(table, out, target_mpp=0.5, patch_size=256) == 0
    with (out / "report.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {name: (row["status"], row["patches"]) for name, row in rows.items()} == {
        "CMU-1-Small-Region": ("ok", "50"),
        "kidney-48-5": ("ok", "1"),
        "cut": ("failed", ""),
        "cut-tail": ("ok", "50"),  # only the label image is lost
        "cut2": ("failed", ""),
    }
    assert all("\n" not in row["error"] for row in rows.values())
