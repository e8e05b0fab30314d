from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
import tifffile
import torch

from manyhead.acmil import features as command
from manyhead.acmil.coordinates import Patches
from manyhead.acmil.encoders.handcrafted32 import describe
from manyhead.acmil.features import features
from manyhead.acmil.layouts import open_features
from manyhead.acmil.slides import open_slide
from manyhead.acmil.tiles import TileReader, resized
from manyhead_core.errors import ConfigError, DataError

SIZE, TILE, PATCH = 512, 128, 64


def write_slide(path, seed=0):
    """A pyramid of two levels, tiled, without loss; returns level 0."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE // 16, SIZE // 16, 3), np.uint8)
    pixels = np.kron(noise, np.ones((16, 16, 1), np.uint8))
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 2):
            file.write(
                pixels[::factor, ::factor], tile=(TILE, TILE), compression="zlib",
                photometric="rgb", subfiletype=0 if factor == 1 else 1,
            )  # fmt: skip
    return pixels


def damage(path, tile, level=0):
    """Overwrite the compressed bytes of one tile."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        start, count = page.dataoffsets[tile], page.databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * count)


def grid():
    places = range(0, SIZE, PATCH)
    return np.array([(x, y) for x in places for y in places], np.int64)


def write_coords(path, coords, size=PATCH, level=0, downsample=1.0):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("coords", data=coords)
        data.attrs["patch_size"], data.attrs["patch_level"] = size, level
        data.attrs["downsample"] = [downsample, downsample]


@pytest.fixture
def study(tmp_path):
    """Two slides, each with the coordinates of 64 patches."""
    for name in ("slides", "coords"):
        (tmp_path / name).mkdir()
    for number, name in enumerate(("a", "b.x")):
        write_slide(tmp_path / "slides" / f"{name}.tif", number)
        write_coords(tmp_path / "coords" / f"{name}.h5", grid())
    return tmp_path


def encode(study, **options):
    return features(study / "coords", study / "out", slides=study / "slides", **options)


def report(study):
    with (study / "out" / "report.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def expected(path, coords):
    pixels = open_slide(path).read((0, 0), 0, (SIZE, SIZE))
    return np.stack([describe(pixels[y : y + PATCH, x : x + PATCH]) for x, y in coords])


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (7, 3), (500, 2)])
def test_tiles_come_in_order(tmp_path, batch, workers):
    pixels = write_slide(tmp_path / "a.tif")
    patches = Patches(grid(), PATCH, 0, PATCH, PATCH, None)
    with TileReader(lambda: open_slide(tmp_path / "a.tif"), patches, workers) as reader:
        found = list(reader.batches(batch))
    assert next(len(tiles) for tiles, _ in found) == min(batch, 64)
    np.testing.assert_array_equal(np.concatenate([corners for _, corners in found]), grid())
    for tile, (x, y) in zip(np.concatenate([t for t, _ in found]), grid(), strict=True):
        np.testing.assert_array_equal(tile, pixels[y : y + PATCH, x : x + PATCH])


def test_patches_that_are_read_larger_are_shrunk(tmp_path):
    pixels = write_slide(tmp_path / "a.tif")
    patches = Patches(grid(), PATCH, 0, PATCH, PATCH // 2, None)
    with TileReader(lambda: open_slide(tmp_path / "a.tif"), patches) as reader:
        tiles, _ = next(reader.batches(1))
    # The texture is of squares of 16 pixels, so areas are exact.
    np.testing.assert_array_equal(tiles[0], pixels[:PATCH:2, :PATCH:2])
    assert resized(tiles[0], PATCH).shape == (PATCH, PATCH, 3)


def test_an_unreadable_patch_comes_from_the_coarser_level(tmp_path):
    path = tmp_path / "a.tif"
    pixels = write_slide(path)
    damage(path, 5)  # second row and column of four: x and y from 128
    patches = Patches(grid(), PATCH, 0, PATCH, PATCH, None)
    with TileReader(lambda: open_slide(path, "openslide"), patches, 2) as reader:
        parts = list(reader.batches(10))
    tiles = np.concatenate([tiles for tiles, _ in parts])
    assert len(tiles) == 64
    assert reader.damage.retried == 4
    assert reader.damage.lost == []
    for tile, (x, y) in zip(tiles, grid(), strict=True):
        own = pixels[y : y + PATCH, x : x + PATCH]
        if 128 <= x < 256 and 128 <= y < 256:
            own = resized(np.ascontiguousarray(own[::2, ::2]), PATCH)
        np.testing.assert_array_equal(tile, own)


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_a_patch_that_no_level_gives_is_lost(tmp_path, reader):
    path = tmp_path / "a.tif"
    write_slide(path)
    damage(path, 5)
    damage(path, 0, level=1)
    patches = Patches(grid(), PATCH, 0, PATCH, PATCH, None)
    with TileReader(lambda: open_slide(path, reader), patches) as opened:
        parts = list(opened.batches(64))
    lost = {(128, 128), (128, 192), (192, 128), (192, 192)}
    assert set(opened.damage.lost) == lost
    kept = {tuple(corner) for _, corners in parts for corner in corners.tolist()}
    assert kept == {tuple(corner) for corner in grid().tolist()} - lost


def test_files_of_a_batch(study):
    assert encode(study, dtype="float32", batch_size=10, workers=2) == 0
    for name in ("a", "b.x"):
        found = open_features(study / "out" / f"{name}.h5")
        assert found.slide_id == name
        assert found.patch_size_level0 == PATCH
        np.testing.assert_array_equal(found.coords(), grid())
        wanted = expected(study / "slides" / f"{name}.tif", grid())
        np.testing.assert_array_equal(found.features(), wanted)
        assert found.metadata["encoder"] == "handcrafted32"
        assert found.metadata["weights_sha256"] == ""
        assert found.chunk_rows == 64
    assert {row["status"] for row in report(study).values()} == {"ok"}
    assert not list((study / "out").glob(".*"))


def test_half_precision_is_the_default(study):
    encode(study)
    found = open_features(study / "out" / "a.h5").features()
    assert found.dtype == np.float16
    wanted = expected(study / "slides" / "a.tif", grid())
    np.testing.assert_allclose(found, wanted, rtol=2**-11, atol=1e-7)


def test_a_stopped_run_goes_on(study, monkeypatch):
    encode(study)
    before = (study / "out" / "a.h5").stat().st_mtime_ns
    (study / "out" / "b.x.h5").unlink()
    (study / "out" / ".b.x.h5.partial").write_bytes(b"half a file")
    asked = []
    whole = command.encode_slide
    monkeypatch.setattr(
        command, "encode_slide", lambda entry, *rest: asked.append(entry.id) or whole(entry, *rest)
    )
    assert encode(study) == 0
    assert asked == ["b.x"]
    assert (study / "out" / "a.h5").stat().st_mtime_ns == before
    assert [report(study)[name]["status"] for name in ("a", "b.x")] == ["done before", "ok"]
    assert not list((study / "out").glob(".*"))


def test_a_run_that_is_interrupted_leaves_no_half_file(study, monkeypatch):
    read = TileReader.batches

    def stopped(self, size):
        yield next(read(self, size))
        raise KeyboardInterrupt

    monkeypatch.setattr(TileReader, "batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode(study, batch_size=8)
    assert [path.name for path in (study / "out").iterdir()] == ["report.csv"]


def test_other_coordinates_are_encoded_again(study):
    encode(study)
    write_coords(study / "coords" / "a.h5", grid()[:10])
    assert encode(study) == 0
    assert open_features(study / "out" / "a.h5").num_patches == 10
    assert report(study)["b.x"]["status"] == "done before"


def test_features_of_two_encoders_are_not_mixed(study, monkeypatch, tmp_path):
    encode(study)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pt")
    (tmp_path / "flat_encoder.py").write_text(
        "import torch\nclass Flat(torch.nn.Module):\n"
        "    def forward(self, tiles):\n        return tiles.mean((2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="was made with encoder handcrafted32, not flat_enc"):
        encode(study, encoder="flat_encoder:Flat")
    with pytest.raises(ConfigError, match="was made with dtype float16, not float32"):
        encode(study, dtype="float32")
    with pytest.raises(ConfigError, match="was made with encoder unknown"):
        features(study / "coords", study / "coords", slides=study / "slides")


def test_a_damaged_slide_costs_only_itself(study):
    damage(study / "slides" / "a.tif", 5)
    damage(study / "slides" / "a.tif", 0, level=1)
    options = {"reader": "openslide", "dtype": "float32"}
    assert encode(study, **options) == 0
    row = report(study)["a"]
    assert row["status"] == "failed"
    assert row["error"].startswith("a: the slide is damaged at (128, 128)")
    assert not (study / "out" / "a.h5").exists()
    assert open_features(study / "out" / "b.x.h5").num_patches == 64
    assert encode(study, **options, strict=True) == 2
    assert encode(study, **options, skip_damaged=True) == 0
    found = open_features(study / "out" / "a.h5")
    assert found.num_patches == 60
    assert found.metadata["lost_patches"] == 4
    whole = study / "whole.tif"
    write_slide(whole)
    np.testing.assert_array_equal(found.features(), expected(whole, found.coords()))
    assert "4 patches cannot be read" in report(study)["a"]["error"]
    # It is complete as far as it can be.
    encode(study, **options, skip_damaged=True)
    assert report(study)["a"]["status"] == "done before"


def test_missing_and_unreadable_slides(study):
    (study / "slides" / "a.tif").write_bytes(b"no slide")
    (study / "slides" / "b.x.tif").unlink()
    assert encode(study) == 2
    errors = {name: row["error"] for name, row in report(study).items()}
    assert "no reader can open it" in errors["a"]
    assert errors["b.x"] == "b.x: no such slide among the 1 of --slides"


def test_a_slide_without_patches(study):
    write_coords(study / "coords" / "a.h5", np.empty((0, 2), np.int64))
    assert encode(study) == 0
    assert report(study)["a"]["status"] == "no tissue"
    found = open_features(study / "out" / "a.h5")
    assert found.features().shape == (0, 32)
    assert found.coords().shape == (0, 2)
    encode(study)
    assert report(study)["a"]["status"] == "done before"


def test_values_that_do_not_fit(study, monkeypatch):
    (study / "wild_encoder.py").write_text(
        "import torch\n"
        "class Large(torch.nn.Module):\n"
        "    def forward(self, tiles):\n        return 1e5 + tiles.mean((2, 3))\n"
        "class Broken(torch.nn.Module):\n"
        "    def forward(self, tiles):\n        return tiles.mean((2, 3)) / 0\n"
    )
    monkeypatch.syspath_prepend(study)
    assert encode(study, encoder="wild_encoder:Large") == 2
    assert "pass --dtype float32" in report(study)["a"]["error"]
    assert encode(study, encoder="wild_encoder:Large", dtype="float32") == 0
    broken = features(
        study / "coords", study / "out2", slides=study / "slides", encoder="wild_encoder:Broken"
    )
    assert broken == 2
    assert "not finite" in (study / "out2" / "report.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"workers": 0}, "workers: must be at least 1"),
        ({"device": "tpu9"}, "device: 'tpu9' is unknown"),
        ({"device": "cpu", "precision": "bf16"}, "precision: bf16 is for CUDA"),
        ({"encoder": "uni"}, "encoder: 'uni' is unknown"),
    ],
)
def test_wrong_options(study, options, message):
    with pytest.raises(ConfigError, match=message):
        encode(study, **options)


def test_no_coordinates(study):
    with pytest.raises(DataError, match=r"coords: .* holds no .* file; run tile first"):
        features(study / "slides", study / "out", slides=study / "slides")
    with pytest.raises(DataError, match="does not exist; run tile first"):
        features(study / "nowhere", study / "out", slides=study / "slides")


def test_clam_reads_our_files(study):
    encode(study)
    with h5py.File(study / "out" / "a.h5") as file:
        assert set(file) == {"features", "coords"}
        assert file["features"].shape == (64, 32)
        assert json.dumps(file.attrs["slide_id"]) == '"a"'
