from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from manyhead.acmil.features import features
from manyhead.acmil.layouts import open_features
from manyhead.acmil.layouts.convert import convert

NAME = "CMU-1-Small-Region"
SAMPLES = (
    f"{NAME}.features.clam.h5",
    f"{NAME}.features.clam.pt",
    f"{NAME}.features.trident.h5",
    f"{NAME}.features.stamp.h5",
    "patch_feats_pretrain_handcrafted32.acmil.h5",
)
HALF = ("stamp", "acmil")


@pytest.fixture
def samples(data_dir):
    return data_dir / "wsi" / "format_samples"


@pytest.fixture
def wanted(samples):
    with h5py.File(samples / f"{NAME}.features.clam.h5") as file:
        return file["features"][...], file["coords"][...]


def test_slide_to_features(tmp_path, data_dir, samples, wanted):
    (tmp_path / "coords").mkdir()
    shutil.copy(samples / f"{NAME}.coords.clam.h5", tmp_path / "coords" / f"{NAME}.h5")
    slide = data_dir / "wsi" / f"{NAME}.svs"
    assert features(tmp_path / "coords", tmp_path / "out", slides=slide, dtype="float32") == 0
    found = open_features(tmp_path / "out" / f"{NAME}.h5")
    np.testing.assert_array_equal(found.coords(), wanted[1])
    assert found.patch_size_level0 == 128
    # JPEG decoders may differ by one grey level.
    np.testing.assert_allclose(found.features(), wanted[0], rtol=0, atol=1e-3)
    assert np.abs(found.features() - wanted[0]).mean() < 1e-6


def test_a_truncated_slide(tmp_path, data_dir, samples):
    (tmp_path / "coords").mkdir()
    (tmp_path / "slides").mkdir()
    whole = (data_dir / "wsi" / f"{NAME}.svs").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("whole", whole)):
        shutil.copy(samples / f"{NAME}.coords.clam.h5", tmp_path / "coords" / f"{name}.h5")
        (tmp_path / "slides" / f"{name}.svs").write_bytes(content)
    out = tmp_path / "out"
    slides = tmp_path / "slides"
    assert features(tmp_path / "coords", out, slides=slides, reader="openslide") == 0
    assert (out / "whole.h5").is_file()
    assert not (out / "cut.h5").exists()
    assert "cut,failed" in (out / "report.csv").read_text()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("to", ["h5", "packed"])
def test_every_layout_is_converted(tmp_path, samples, wanted, name, to):
    assert convert(samples / name, tmp_path / "out", to=to, mpp=0.499) == 0
    before = open_features(samples / name, mpp=0.499)
    after = next(
        open_features(path, mpp=0.499)
        for path in (tmp_path / "out").iterdir()
        if path.name in (f"{before.slide_id}.h5", "packed.json")
    )
    half = any(tool in name for tool in HALF)
    np.testing.assert_array_equal(
        after.features(), wanted[0].astype(np.float16) if half else wanted[0]
    )
    if before.coords() is None:
        assert after.coords() is None
    else:
        np.testing.assert_array_equal(after.coords(), wanted[1])
    assert after.patch_size_level0 == before.patch_size_level0
