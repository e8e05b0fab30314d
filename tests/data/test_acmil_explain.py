"""The CMU slide with its features, explained by a network that was drawn at random."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")
from PIL import Image  # noqa: E402

from manyhead.acmil import ACMIL, ACMILConfig  # noqa: E402
from manyhead.acmil.explain.command import explain  # noqa: E402
from manyhead.acmil.layouts import open_features  # noqa: E402
from manyhead_core.app import App  # noqa: E402

APP = App(
    name="acmil", title="ACMIL", summary="", extra="wsi", model="manyhead.acmil.model:ACMIL",
    config="", task="manyhead.acmil.task:ACMILTask", data="", evaluate="", demo="", monitor="",
    mode="max", commands=(),
)  # fmt: skip
SLIDE = "CMU-1-Small-Region"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    ACMIL(
        ACMILConfig(feature_dim=32, dim=32, num_branches=2, attention="multihead", num_heads=4)
    ).save_pretrained(folder)
    return folder


def test_overlay_region_and_gallery_of_the_slide(
    data_dir: Path, weights: Path, tmp_path: Path
) -> None:
    samples = data_dir / "wsi" / "format_samples"
    (tmp_path / "features").mkdir()
    shutil.copy(samples / f"{SLIDE}.features.trident.h5", tmp_path / "features" / f"{SLIDE}.h5")
    (tmp_path / "drawn").mkdir()
    shutil.copy(samples / f"{SLIDE}.asap.xml", tmp_path / "drawn" / f"{SLIDE}.xml")
    out = tmp_path / "out"
    code = explain(
        APP, str(weights), tmp_path / "features", out,
        slides=data_dir / "wsi" / f"{SLIDE}.svs", annotations=tmp_path / "drawn",
        map=["mean", "class:1"], region="600,900,1400,1700",
    )  # fmt: skip
    assert code == 0
    folder = out / "slides" / SLIDE
    with Image.open(folder / "map-mean.jpg") as image:
        assert image.size[0] == round(2220 * 2048 / 2967)
    with Image.open(folder / "region-mean.jpg") as image:
        assert image.size[0] == 800
    table = pd.read_csv(folder / "scores.csv")
    assert len(table) == 182
    np.testing.assert_array_equal(
        table[["x", "y"]], open_features(samples / f"{SLIDE}.features.trident.h5").coords()
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["patch_size_level0"] == 128
    for numbers in summary["evidence"].values():
        assert numbers["constant"] + numbers["patches"] == pytest.approx(numbers["logit"], abs=1e-5)
    assert 0 < summary["inside"]["patches in the annotation"] < 1


@pytest.mark.parametrize("name", [f"{SLIDE}.features.stamp.h5", "pretrain"])
def test_other_layouts_give_the_same_places(
    data_dir: Path, weights: Path, tmp_path: Path, name: str
) -> None:
    samples = data_dir / "wsi" / "format_samples"
    source = next(path for path in samples.iterdir() if name in path.name)
    if name == "pretrain":  # one file for all slides, without the size of a patch
        file, options = source, {"patch_size_level0": 128}
    else:  # coordinates in µm; the slide tells how many of them are a pixel
        file, options = tmp_path / "f" / f"{SLIDE}.h5", {}
        file.parent.mkdir()
        shutil.copy(source, file)
    out = tmp_path / "out"
    slide = data_dir / "wsi" / f"{SLIDE}.svs"
    code = explain(
        APP, str(weights), file, out, slides=slide, map="mean", top=2, geojson=False,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    assert code == 0
    table = pd.read_csv(out / "slides" / SLIDE / "scores.csv")
    wanted = open_features(samples / f"{SLIDE}.features.trident.h5").coords()
    np.testing.assert_array_equal(table[["x", "y"]], wanted)
