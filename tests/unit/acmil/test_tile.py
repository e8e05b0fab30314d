"""The command tile, end to end on made pictures, and the batch that it runs in."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openslide", reason="needs the extra wsi")

from PIL import Image

from manyhead.acmil.batch import Batch, Outcome, read_report
from manyhead.acmil.coordinates_file import read_coordinates
from manyhead.acmil.tile import tile
from manyhead_core.errors import ConfigError, DataError, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pieces of tissue, one piece, none, and a file that is no slide."""
    root = tmp_path / "slides"
    root.mkdir()
    glass = np.full((600, 800, 3), (245, 244, 246), np.uint8)
    one, two = glass.copy(), glass.copy()
    one[100:400, 100:500] = two[100:400, 100:500] = (200, 90, 150)
    two[450:590, 550:790] = (180, 80, 160)
    for name, pixels in (("one", one), ("two.x", two), ("glass", glass)):
        Image.fromarray(pixels).save(root / f"{name}.png")
    (root / "text.svs").write_text("hello")
    return root


def report(out: Path) -> dict[str, dict[str, str]]:
    with (out / "report.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_folder_with_a_failure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert tile(folder, out, patch_size=64) == 0
    rows = report(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "glass": "no tissue",
        "one": "ok",
        "text": "failed",
        "two.x": "ok",
    }
    assert float(rows["one"]["tissue_share"]) == pytest.approx(0.25, abs=0.01)
    assert "sthresh" in rows["glass"]["error"]
    assert "no reader can open it" in rows["text"]["error"]
    found = read_coordinates(out / "patches" / "two.x.h5")
    assert len(found.coords) == int(rows["two.x"]["patches"]) > int(rows["one"]["patches"])
    assert files(out) == [
        "contours/glass.geojson", "contours/one.geojson", "contours/two.x.geojson",
        "options.json", "patches/one.h5", "patches/two.x.h5", "report.csv",
        "thumbnails/glass.jpg", "thumbnails/one.jpg", "thumbnails/two.x.jpg",
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "2 of 4 slides" in told.out
    assert "research use only" in told.err
    assert "Traceback" not in told.err


def test_a_second_start_does_what_is_missing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tile(folder, out)
    first = out / "patches" / "one.h5"
    before = (first.stat().st_mtime_ns, report(out)["one"]["patches"])
    (out / "patches" / "two.x.h5").unlink()
    (out / "patches" / ".two.x.h5.partial").write_text("of a killed start")
    assert tile(folder, out) == 0
    rows = report(out)
    assert (first.stat().st_mtime_ns, rows["one"]["patches"]) == before
    assert (rows["one"]["status"], rows["two.x"]["status"]) == ("done before", "ok")
    assert not list(out.rglob("*.partial"))


def test_a_folder_belongs_to_its_options(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tile(folder / "one.png", out, patch_size=64)
    with pytest.raises(UserError, match="made with patch_size 64, not 32"):
        tile(folder / "one.png", out, patch_size=32)
    assert json.loads((out / "options.json").read_text())["patch_size"] == 64
    # A slide whose own options in the table have changed is not overwritten either.
    kept = (out / "patches" / "one.h5").read_bytes()
    table = folder / "list.csv"
    table.write_text("path,preset\none.png,tcga\ntwo.x.png,\n")
    assert tile(table, out, patch_size=64) == 0
    assert "made with other options" in report(out)["one"]["error"]
    assert (out / "patches" / "one.h5").read_bytes() == kept


def test_exit_codes(folder: Path, tmp_path: Path) -> None:
    assert tile(folder, tmp_path / "a", strict=True) == 2
    assert tile(folder / "text.svs", tmp_path / "b") == 2
    assert tile(folder / "glass.png", tmp_path / "c") == 2
    assert tile(folder / "one.png", tmp_path / "d", strict=True) == 0


def test_slides_without_a_resolution_are_listed_and_others_go_on(
    folder: Path, tmp_path: Path
) -> None:
    table = folder / "list.csv"
    table.write_text("path,mpp\none.png,0.25\ntwo.x.png,\n")
    out = tmp_path / "out"
    assert tile(table, out, magnification=20, patch_size=32) == 0
    rows = report(out)
    assert rows["two.x"]["status"] == "failed"
    assert "--mpp" in rows["two.x"]["error"]
    found = read_coordinates(out / "patches" / "one.h5")
    assert (found.size_level0, found.target_mpp, found.mpp) == (64, 0.5, 0.25)


def test_more_pixels_than_there_are_is_said(folder: Path, tmp_path: Path) -> None:
    tile(folder / "one.png", tmp_path / "out", mpp=0.5, target_mpp=0.25, patch_size=64)
    assert "enlarged from 32 to 64" in report(tmp_path / "out")["one"]["error"]


def test_small_areas_of_the_reference_come_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    assert tile(folder / "one.png", tmp_path / "a", mode="reference", patch_size=64) == 2
    remedy = report(tmp_path / "a")["one"]["error"]
    assert "--a_t 100" in remedy
    a_t, a_h = (float(word) for word in remedy.split()[-3::2])
    options = {"mode": "reference", "patch_size": 64, "a_t": a_t, "a_h": a_h}
    assert tile(folder / "one.png", tmp_path / "b", **options) == 0


def test_pieces_by_number(folder: Path, tmp_path: Path) -> None:
    slide = folder / "two.x.png"
    counts = []
    for number, options in enumerate(({}, {"keep_contours": [1]}, {"exclude_contours": [1]})):
        tile(slide, tmp_path / str(number), patch_size=64, **options)
        counts.append(int(report(tmp_path / str(number))["two.x"]["patches"]))
    assert counts[0] == counts[1] + counts[2]
    assert min(counts) > 0
    tile(slide, tmp_path / "none", patch_size=64, keep_contours=[7])
    assert "no piece 7; the slide has 2" in report(tmp_path / "none")["two.x"]["error"]
    with pytest.raises(ConfigError, match="pass a single slide"):
        tile(folder, tmp_path / "all", keep_contours=[1])


def test_annotations_become_labels(folder: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    ring = [[100, 100], [300, 100], [300, 400], [100, 400], [100, 100]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (drawn / "one.geojson").write_text(json.dumps(feature))
    out = tmp_path / "out"
    tile(folder, out, patch_size=50, annotations=drawn)
    found = read_coordinates(out / "patches" / "one.h5")
    centres = found.coords + 25
    np.testing.assert_array_equal(found.labels, centres[:, 0] < 300)
    # Nobody has said anything about the other slide.
    assert read_coordinates(out / "patches" / "two.x.h5").labels is None
    with pytest.raises(UserError, match="made with annotations True, not False"):
        tile(folder, out, patch_size=50)
    with pytest.raises(DataError, match=r"no file in .* is named as a slide; one\.xml"):
        tile(folder / "one.png", tmp_path / "b", annotations=folder)
    with pytest.raises(DataError, match="annotations: no folder"):
        tile(folder, out, patch_size=50, annotations=tmp_path / "absent")


def test_a_thumbnail_shows_tissue_patches_and_no_more_than_asked(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tile(folder / "two.x.png", out, patch_size=64, geojson=False)
    with Image.open(out / "thumbnails" / "two.x.jpg") as image:
        picture = np.asarray(image).astype(int)
        assert not image.getexif()
    assert picture.shape == (600, 800, 3)
    assert np.abs(picture[20, 400] - [245, 244, 246]).max() <= 4
    green = (picture[..., 1] > picture[..., 0] + 60) & (picture[..., 1] > picture[..., 2] + 30)
    assert green.sum() > 1000
    assert not (out / "contours").exists()


def test_a_resolution_is_said_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="magnification, target_mpp: say the resolution once"):
        tile(folder, tmp_path / "out", magnification=20, target_mpp=0.5)
    with pytest.raises(ConfigError, match="odd"):
        tile(folder, tmp_path / "out", mthresh=4)
    with pytest.raises(ConfigError, match="jobs"):
        tile(folder, tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()


# A module of its own, because the other processes have to find it.
WORK = """
import os

from manyhead.acmil.batch import Outcome


def work(item):
    if item == "die":
        os._exit(3)
    if item == "bug":
        raise ZeroDivisionError("by\\nzero")
    if item == "full":
        raise OSError(28, "No space left on device")
    return Outcome(patches=len(item))
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Outcome]:
    """Does what the item says: succeeds, fails, or takes the process down."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "batch_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "batch_work", raising=False)
    return import_module("batch_work").work


@pytest.mark.slow
def test_a_slide_that_kills_its_process_costs_no_other(tmp_path: Path, work: Callable) -> None:
    items = {"a": "fine", "b": "die", "c": "good", "d": "better"}
    assert Batch(work, tmp_path, "testing", jobs=2).run(items) == 0
    found = read_report(tmp_path / "report.csv")
    assert list(found) == list(items)
    assert [found[name].status for name in items] == ["ok", "failed", "ok", "ok"]
    assert "died" in found["b"].error


def test_a_failure_is_one_line_and_a_full_disk_the_end(tmp_path: Path, work: Callable) -> None:
    items = {"a": "bug", "b": "x", "c": "full", "d": "y"}
    with pytest.raises(UserError, match="no space"):
        Batch(work, tmp_path, "testing").run(items)
    found = read_report(tmp_path / "report.csv")
    assert found["a"].error == "ZeroDivisionError: by zero"
    assert set(found) == {"a", "b"}


def test_a_report_of_something_else_is_left_alone(tmp_path: Path, work: Callable) -> None:
    (tmp_path / "report.csv").write_text("file,status\nx,ok\n")
    with pytest.raises(UserError, match="choose another folder"):
        Batch(work, tmp_path, "testing").run({"a": "x"})
    assert (tmp_path / "report.csv").read_text() == "file,status\nx,ok\n"


def test_an_interrupted_batch_leaves_its_report(tmp_path: Path, work: Callable) -> None:
    def stopped(item: str) -> Outcome:
        if item == "stop":
            raise KeyboardInterrupt
        return Outcome(patches=1)

    items = {"a": "x", "b": "stop", "c": "x"}
    with pytest.raises(KeyboardInterrupt, match="goes on where"):
        Batch(stopped, tmp_path, "testing").run(items)
    assert list(read_report(tmp_path / "report.csv")) == ["a"]
    again = Batch(work, tmp_path, "testing", done=lambda name: name == "a")
    assert again.run(items) == 0
    found = read_report(tmp_path / "report.csv")
    assert [found[name].status for name in items] == ["done before", "ok", "ok"]
