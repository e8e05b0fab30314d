from __future__ import annotations

import csv

import h5py
import numpy as np
import pytest

from manyhead.acmil.layouts import open_features, slides_in
from manyhead.acmil.layouts.convert import Conversion, convert
from manyhead_core.errors import ConfigError, DataError, UserError

WIDTH = 8
SIZES = {"a": 3000, "b": 17, "c": 0}


@pytest.fixture
def legacy(tmp_path):
    """Three slides as TRIDENT writes them, one patch a chunk."""
    folder = tmp_path / "in"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, rows in SIZES.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            values = generator.normal(size=(rows, WIDTH)).astype(np.float32)
            chunks = (1, WIDTH) if rows else None
            data = file.create_dataset("features", data=values, chunks=chunks)
            data.attrs["encoder"], data.attrs["savetodir"] = "uni", "/home/jane"
            data.attrs["name"] = name
            corners = file.create_dataset("coords", data=generator.integers(0, 99, (rows, 2)))
            corners.attrs.update({"patch_size": 256, "patch_size_level0": 512, "overlap": 0})
    return folder


def same(before, after):
    np.testing.assert_array_equal(after.features(), before.features())
    np.testing.assert_array_equal(after.coords(), before.coords())
    assert after.patch_size_level0 == before.patch_size_level0
    assert after.slide_id == before.slide_id


def test_fast_chunks_and_kept_attributes(legacy, tmp_path):
    out = tmp_path / "out"
    assert convert(legacy, out) == 0
    for name, rows in SIZES.items():
        before, after = (open_features(folder / f"{name}.h5") for folder in (legacy, out))
        same(before, after)
        assert after.chunk_rows == (min(rows, 1024) or None)
        kept = after.metadata
        assert (kept["encoder"], kept["overlap"], kept["source_layout"]) == ("uni", 0, "trident")
        assert "/home/jane" not in str(kept)
    with (out / "report.csv").open(newline="") as file:
        status = {row["id"]: row["status"] for row in csv.DictReader(file)}
    assert status == {"a": "ok", "b": "ok", "c": "no tissue"}


def test_converting_twice_changes_nothing_but_the_place(legacy, tmp_path):
    convert(legacy, tmp_path / "once")
    convert(tmp_path / "once", tmp_path / "twice")
    once, twice = (open_features(tmp_path / name / "a.h5") for name in ("once", "twice"))
    same(once, twice)
    assert once.metadata == twice.metadata


def test_half_precision(legacy, tmp_path):
    convert(legacy, tmp_path / "out", dtype="float16")
    found = open_features(tmp_path / "out" / "b.h5").features()
    assert found.dtype == np.float16
    wanted = open_features(legacy / "b.h5").features()
    np.testing.assert_array_equal(found, wanted.astype(np.float16))


def test_a_packed_cache(legacy, tmp_path):
    out = tmp_path / "cache"
    assert convert(legacy, out, to="packed") == 0
    where = slides_in(out)
    for name in SIZES:
        same(open_features(legacy / f"{name}.h5"), open_features(where[name], name))
    with pytest.raises(UserError, match=r"out: .*cache exists"):
        convert(legacy, out, to="packed")
    # And back again.
    convert(out, tmp_path / "back")
    same(open_features(legacy / "a.h5"), open_features(tmp_path / "back" / "a.h5"))


def test_micrometres_stay_until_somebody_knows_the_pixel(tmp_path):
    path = tmp_path / "s.h5"
    corners = np.array([[0, 128], [64, 0]], np.float32)
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = np.ones((2, 3), np.float16), corners
        file.attrs.update({"unit": "um", "tile_size_um": 128.0, "extractor": "uni"})
    for to in ("h5", "packed"):
        place = tmp_path / to
        convert(path, place, to=to)
        target = place / ("s.h5" if to == "h5" else "packed.json")
        with pytest.raises(DataError, match="pass mpp"):
            open_features(target, "s").coords()
        found = open_features(target, "s", mpp=0.5)
        assert found.coords().tolist() == [[0, 256], [128, 0]]
    convert(path, tmp_path / "pixels", mpp=0.5)
    found = open_features(tmp_path / "pixels" / "s.h5")
    assert found.coords().tolist() == [[0, 256], [128, 0]]
    assert (found.patch_size_level0, found.metadata["mpp"]) == (256, 0.5)
    assert found.metadata["encoder"] == "uni"


def test_a_stopped_conversion_goes_on(legacy, tmp_path, monkeypatch):
    out = tmp_path / "out"
    convert(legacy, out)
    (out / "b.h5").unlink()
    asked = []
    whole = Conversion.__call__
    monkeypatch.setattr(
        Conversion, "__call__", lambda self, item: asked.append(item[0]) or whole(self, item)
    )
    assert convert(legacy, out) == 0
    assert asked == ["b"]


def test_a_damaged_file_costs_only_itself(legacy, tmp_path):
    with h5py.File(legacy / "b.h5", "a") as file:
        file["features"][3, 2] = np.nan
    out = tmp_path / "out"
    assert convert(legacy, out) == 0
    assert "b: 1 of 17 features in b.h5 are not finite" in (out / "report.csv").read_text()
    assert sorted(path.name for path in out.glob("*.h5")) == ["a.h5", "c.h5"]
    assert convert(legacy, out, strict=True) == 2
    with pytest.raises(DataError, match="b: 1 of 17"):
        convert(legacy, tmp_path / "cache", to="packed")
    assert not list(tmp_path.glob("*cache*"))


def test_mixed_widths(legacy, tmp_path):
    with h5py.File(legacy / "d.h5", "w") as file:
        file["features"] = np.ones((4, 5), np.float32)
    with pytest.raises(DataError, match="features of d are 5 wide, those of a 8"):
        convert(legacy, tmp_path / "cache", to="packed")


def test_files_are_never_overwritten(legacy, tmp_path):
    with pytest.raises(ConfigError, match="is the folder that is converted"):
        convert(legacy, legacy)
    convert(legacy, tmp_path / "out")
    with pytest.raises(ConfigError, match="holds float32, not float16; choose another folder"):
        convert(legacy, tmp_path / "out", dtype="float16")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.h5").write_bytes((legacy / "a.h5").read_bytes())
    with pytest.raises(ConfigError, match="is not of this command"):
        convert(legacy, tmp_path / "other")
    with pytest.raises(ConfigError, match="to: 'zarr' is unknown"):
        convert(legacy, tmp_path / "out", to="zarr")
