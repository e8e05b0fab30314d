"""Simulated slides: what is planted is there, readable, and the same again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.annotations import read_outlines
from manyhead.acmil.explain.enrichment import Outlined, enrichment
from manyhead.acmil.landscape import blob, filled, landscape
from manyhead.acmil.pyramid import write_pyramid
from manyhead.acmil.simulate import CLASSES, check, draw, plan, write
from manyhead.acmil.slides import open_slide
from manyhead.acmil.texture import HAEMATOXYLIN, render
from manyhead_core.errors import ConfigError, DataError

SIZE = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small slides of three patients."""
    place = tmp_path_factory.mktemp("simulated") / "set"
    write(plan(4, 3, 0.5, 0), place, size=SIZE, levels=2, seed=0, jobs=1)
    return place


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_both_readers_open_a_pyramid_with_its_resolution(folder: Path, reader: str) -> None:
    with open_slide(folder / "slides" / "slide-000.tif", reader) as slide:  # type: ignore[arg-type]
        assert slide.level_dimensions == ((SIZE, SIZE), (SIZE // 2, SIZE // 2))
        assert slide.mpp == pytest.approx(0.5)
        fine = slide.read((128, 128), 0, (256, 256)).astype(float)
        coarse = slide.read((128, 128), 1, (128, 128)).astype(float)
    shrunk = fine.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(shrunk - coarse).mean() < 5  # JPEG, twice; a pixel off gives 6


def test_the_label_table_and_the_outlines_agree(folder: Path) -> None:
    table = pd.read_csv(folder / "labels.csv")
    assert list(table) == ["slide_id", "case_id", "label", "site"]
    assert set(table["label"]) == set(CLASSES)
    assert table.groupby("case_id")["label"].nunique().max() == 1
    outlined = {path.stem for path in (folder / "lesions").glob("*.geojson")}
    assert outlined == set(table["slide_id"][table["label"] == "positive"])
    truth = json.loads((folder / "truth.json").read_text())
    for row in truth["slides"]:
        assert (row["lesion_share"] > 0) == (row["label"] == "positive")


def test_both_forms_of_an_outline_are_the_same(folder: Path) -> None:
    pairs = [(path, path.with_suffix(".geojson")) for path in (folder / "lesions").glob("*.xml")]
    assert pairs
    for asap, geojson in pairs:
        for first, second in zip(read_outlines(asap), read_outlines(geojson), strict=True):
            np.testing.assert_array_equal(first.polygon, second.polygon[:-1])


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(plan(4, 3, 0.5, 0), tmp_path / "again", size=SIZE, levels=2, seed=0, jobs=2)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(folder)
            assert again.read_bytes() == path.read_bytes(), path.name
    other, _ = draw(plan(4, 3, 0.5, 1)[0], 0, SIZE, 1)
    with open_slide(folder / "slides" / "slide-000.tif") as slide:
        first = slide.read((0, 0), 0, (SIZE, SIZE))
    assert np.abs(other.astype(int) - first).mean() > 5


def test_classes_and_hospitals_are_balanced_over_patients_and_second_slides() -> None:
    table = pd.DataFrame(plan(40, 32, 0.5, 3))
    assert (table["label"] == "positive").sum() == 20
    assert table["case_id"].nunique() == 32
    sites = pd.crosstab(table["site"], table["label"])
    assert sites.shape == (3, 2)
    assert (sites.max(axis=1) - sites.min(axis=1)).max() <= 3
    again = table[table["case_id"].duplicated()]
    assert again["label"].value_counts().tolist() == [4, 4]
    shares = table["lesion_share"][table["label"] == "positive"]
    assert shares.between(0.02, 0.08).all()
    assert (table["lesion_share"][table["label"] == "negative"] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_lesions_have_the_size_asked_for_and_lie_in_the_tissue(seed: int) -> None:
    place = landscape(np.random.default_rng(seed), 768, 0.05)
    assert place.lesion_share == pytest.approx(0.05, rel=0.15)
    assert not (place.lesion & ~place.tissue).any()
    for kind in ("lymphoid", "blood", "blur"):
        assert not (place.lesion & place.areas[kind]).any(), kind


def test_lesions_stand_out_by_texture_and_lymphoid_tissue_is_as_dark() -> None:
    nuclei, lymph, rest = [], [], []
    for seed in range(8):
        place = landscape(np.random.default_rng(seed), 768, 0.06)
        pixels = render(np.random.default_rng(seed), place).astype(float)
        density = -np.log(np.maximum(pixels, 1) / 246) @ HAEMATOXYLIN
        plain = place.tissue & ~place.lesion
        for area in place.areas.values():
            plain &= ~area
        nuclei.append(density[place.lesion].mean())
        rest.append(density[plain].mean())
        if place.areas["lymphoid"].any():
            lymph.append(density[place.areas["lymphoid"]].mean())
    assert np.mean(nuclei) > 1.1 * np.mean(rest)
    assert np.mean(lymph) == pytest.approx(np.mean(nuclei), rel=0.15)


def test_glass_is_white() -> None:
    place = landscape(np.random.default_rng(0), 512)
    pixels = render(np.random.default_rng(0), place)
    corner = pixels[:8, :8].astype(int)
    assert corner.min() > 238
    assert (corner.max(-1) - corner.min(-1)).max() == 0
    assert not place.lesions


def test_a_blob_has_about_the_radius_it_was_given() -> None:
    outline = blob(np.random.default_rng(0), (100.0, 100.0), 50.0).astype(np.int32)
    assert filled([outline], 200).sum() == pytest.approx(np.pi * 50**2, rel=0.3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("slides", {"slides": 1}),
        ("patients", {"patients": 0}),
        ("lesion_share", {"lesion_share": 1.5}),
        ("size", {"size": 100}),
        ("levels", {"levels": 9}),
    ],
)
def test_numbers_that_make_no_slides_are_refused(name: str, change: dict[str, float]) -> None:
    options = {"slides": 4, "patients": 4, "lesion_share": 0.5, "size": 512, "levels": 2}
    with pytest.raises(ConfigError, match=f"--{name}"):
        check(**(options | change))  # type: ignore[arg-type]


def test_a_pyramid_needs_pixels_on_every_level(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="levels"):
        write_pyramid(tmp_path / "a.tif", np.zeros((4, 4, 3), np.uint8), 0.5, levels=4)


def test_enrichment_is_one_by_chance_and_the_reciprocal_share_at_best() -> None:
    rng = np.random.default_rng(0)
    chance, best = [], []
    for number in range(40):
        inside = np.arange(200) < 20
        chance.append(Outlined(rng.random(200), inside, str(number // 2)))
        best.append(Outlined(inside + 0.1 * rng.random(200), inside, str(number // 2)))
    found = enrichment(chance, 10)
    assert found.low < 1 < found.high
    assert found.share == pytest.approx(0.1)
    assert enrichment(best, 10).factor == pytest.approx(10)
    with pytest.raises(DataError, match="no patch"):
        enrichment([Outlined(np.ones(5), np.zeros(5, bool), "a")])
