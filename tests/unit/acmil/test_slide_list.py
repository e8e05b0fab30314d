"""Lists of slides: folders, files and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openslide", reason="needs the extra wsi")

from manyhead.acmil.slide_list import list_slides
from manyhead_core.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "slides"
    for name in ("b.svs", "TCGA-1.6D31.svs", "in/c.TIFF", "notes.txt", ".hidden.svs"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(folder: Path, text: str) -> Path:
    path = folder / "slides.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_a_folder_with_its_sub_folders(folder: Path) -> None:
    found = list_slides(folder)
    assert list(found) == ["TCGA-1.6D31", "b", "c"]
    assert found["c"].path == folder / "in" / "c.TIFF"


def test_pictures_that_belong_to_a_slide_are_no_slides(folder: Path) -> None:
    for name in ("m.mrxs", "m/Data0.jpg", "dicom/1.dcm", "dicom/2.dcm"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert set(list_slides(folder)) == {"TCGA-1.6D31", "b", "c", "m", "1"}


def test_one_slide(folder: Path) -> None:
    assert list(list_slides(folder / "TCGA-1.6D31.svs")) == ["TCGA-1.6D31"]


def test_a_table_with_what_is_known(folder: Path) -> None:
    path = table(folder, "slide_id,path,mpp,preset\nx,b.svs,0.25,tcga\n,in/c.TIFF,,\n")
    found = list_slides(path)
    assert list(found) == ["x", "c"]
    assert (found["x"].path, found["x"].mpp, found["x"].preset) == (folder / "b.svs", 0.25, "tcga")
    assert (found["c"].mpp, found["c"].preset) == (None, None)


def test_a_table_of_names_only(folder: Path) -> None:
    path = table(folder, "slide_id,label\nTCGA-1.6D31,1\nb.svs,0\nabsent,0\n0012,1\n")
    found = list_slides(path)
    # An absent slide is a failure of its own, later, and ids that are numbers keep their zeros.
    assert list(found) == ["TCGA-1.6D31", "b", "absent", "0012"]
    assert found["TCGA-1.6D31"].path == folder / "TCGA-1.6D31.svs"
    assert not found["absent"].path.exists()


def test_a_table_elsewhere(folder: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "slide_id\nb\n")
    assert list_slides(path, folder)["b"].path == folder / "b.svs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\nb,1\n", "slide_id or path is needed"),
        ("slide_id\n", "no rows"),
        ("", "no CSV file"),
        ("slide_id,path\n,\n", "line 2 of slides.csv has neither"),
        ("slide_id,mpp\nb,fast\n", "line 2 of slides.csv: mpp 'fast'"),
        ("slide_id,mpp\nb,250\n", "mpp '250'"),
        ("slide_id,path\n../b,b.svs\n", "cannot be the name of a file"),
        ("slide_id\nb\nb\n", "both called b"),
    ],
)
def test_mistakes_in_a_table(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_slides(table(folder, text))


def test_two_slides_of_the_same_name(folder: Path) -> None:
    (folder / "b.tif").touch()
    with pytest.raises(DataError, match=r"b\.svs and b\.tif are both called b"):
        list_slides(folder)


def test_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no slides"):
        list_slides(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        list_slides(tmp_path / "absent")
