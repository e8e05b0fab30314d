"""Scoring slides without labels: one table, failures listed, a second start goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit

from manyhead.acmil import predict as module
from manyhead.acmil.model import ACMIL, ACMILConfig
from manyhead.acmil.predict import predict, rescaled
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead_core.app import App
from manyhead_core.errors import ConfigError, DataError, UserError
from manyhead_core.evaluate.calibration import Temperature
from manyhead_core.training.results import hashed

sys.path.insert(0, str(Path(__file__).parent))

from feature_folder import WIDTH, write_features, write_slides

PACKAGE = "manyhead.acmil"
APP = App(
    name="acmil",
    title="ACMIL",
    summary="",
    extra="wsi",
    model=f"{PACKAGE}.model:ACMIL",
    config=f"{PACKAGE}.model:ACMILConfig",
    task=f"{PACKAGE}.task:ACMILTask",
    data=f"{PACKAGE}.data:BagData",
    evaluate="",
    demo="",
    monitor="val/score",
    mode="max",
    commands=(),
    medical=True,
)


def save(folder: Path, target: str = "classes", calibration=None, **fitted) -> ACMIL:
    torch.manual_seed(0)
    config = ACMILConfig(
        feature_dim=WIDTH, dim=8, hidden_dim=4, num_branches=3, target=target, num_classes=2
    )
    net = ACMIL(config).eval()
    meta, tensors = BagPreprocessor(WIDTH, ("benign", "tumour"), target, **fitted).state()
    net.preprocessor_state = (meta | ({"calibration": calibration} if calibration else {}), tensors)
    net.save_pretrained(folder)
    return net


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_slides(tmp_path, 5)
    return tmp_path


def run(root: Path, source: Path | None = None, **options) -> pd.DataFrame:
    out = root / "scores.csv"
    weights = str(root / "weights")
    assert predict(APP, weights, source or root / "features", out, **options) == 0
    return pd.read_csv(out, dtype={"id": str})


def features(root: Path, name: str) -> torch.Tensor:
    with h5py.File(root / f"features/{name}.h5") as file:
        return torch.from_numpy(file["features"][:])


def test_probabilities_of_every_slide(root, capsys):
    net = save(root / "weights")
    table = run(root)
    assert table["id"].tolist() == [f"s{k:02d}" for k in range(5)]
    for row in table.itertuples():
        expected = net(features(root, row.id)).logits.double().softmax(-1)[0].tolist()
        assert [row.score_benign, row.score_tumour] == pytest.approx(expected, abs=1e-6)
        assert row.prediction == ("benign", "tumour")[int(np.argmax(expected))]
        assert row.patches == len(features(root, row.id))
    assert "not a medical device" in capsys.readouterr().out
    assert not list(root.glob(".*partial"))


def test_scales_of_the_training_are_applied(root):
    mean, scale = np.arange(WIDTH, dtype=np.float32), np.full(WIDTH, 3, np.float32)
    net = save(root / "weights", mean=mean, scale=scale)
    scaled = (features(root, "s00").float() - torch.from_numpy(mean)) / 3
    expected = net(scaled).logits.double().softmax(-1)[0, 1].item()
    assert run(root)["score_tumour"][0] == pytest.approx(expected, abs=1e-6)


def test_numbers_are_in_the_scale_of_the_labels(root):
    net = save(root / "weights", "regression", label_mean=50.0, label_scale=10.0)
    expected = net(features(root, "s01")).logits.item() * 10 + 50
    table = run(root)
    assert list(table) == ["id", "patches", "score"]
    assert table["score"][1] == pytest.approx(expected, abs=1e-4)


def test_calibrated_probabilities_stand_beside_the_others(root):
    save(root / "weights", calibration={"temperature": 2.0, "bias": 0.3})
    table = run(root)
    expected = expit(logit(table["score_tumour"]) / 2 + 0.3)
    np.testing.assert_allclose(table["calibrated_tumour"], expected, rtol=1e-6)
    np.testing.assert_allclose(table["calibrated_benign"], 1 - expected, rtol=1e-6)


def test_a_temperature_of_one_changes_nothing():
    chance = np.array([0.1, 0.7, 0.2])
    np.testing.assert_allclose(rescaled(chance, Temperature(1.0)), chance)
    assert rescaled(chance, Temperature(5.0)).argmax() == 1


def test_slides_that_cannot_be_used_are_listed_and_the_rest_goes_on(root, capsys):
    save(root / "weights")
    write_features(root / "features/s01.h5", np.zeros((0, WIDTH), np.float32))
    write_features(root / "features/s02.h5", np.zeros((3, 9), np.float32))
    write_features(root / "features/s03.h5", np.full((3, WIDTH), np.nan, np.float32))
    table = run(root)
    assert table["id"].tolist() == ["s00", "s04"]
    report = pd.read_csv(root / "scores.report.csv").set_index("id")
    assert report["status"].tolist() == ["ok", "failed", "failed", "failed", "ok"]
    assert "has no patches" in report["error"]["s01"]
    assert "features are 9 wide, the network was trained with 6" in report["error"]["s02"]
    assert "3 of 3 features in s03.h5 are not finite" in report["error"]["s03"]
    assert capsys.readouterr().err.count("are not finite") == 1
    (root / "scores.csv").unlink()
    again = predict(APP, str(root / "weights"), root / "features", root / "scores.csv", strict=True)
    assert again == 2


def test_a_single_slide_of_another_encoder_is_one_line(root):
    save(root / "weights")
    write_features(root / "wide.h5", np.zeros((3, 9), np.float32))
    with pytest.raises(DataError, match=r"none of 1 could be used.*features are 9 wide") as caught:
        run(root, root / "wide.h5")
    assert "\n" not in str(caught.value)
    assert not (root / "scores.csv").exists()


def test_a_second_start_goes_on_where_the_first_was_stopped(root, monkeypatch):
    save(root / "weights")
    scored: list[str] = []
    output = module.BagScorer.output

    def stop(self, files):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(files[0].slide_id)
        return output(self, files)

    monkeypatch.setattr(module.BagScorer, "output", stop)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert not (root / "scores.csv").exists()
    (partial,) = root.glob(".scores.csv.*.partial")
    # A kill may cut the last line.
    partial.write_text(partial.read_text()[:-4])
    scored.clear()
    monkeypatch.setattr(module.BagScorer, "output", output)
    monkeypatch.setattr(
        module.BagScorer,
        "output",
        lambda self, files: scored.append(files[0].slide_id) or output(self, files),
    )
    table = run(root)
    assert scored == ["s02", "s03", "s04"]
    (root / "scores.csv").unlink()
    pd.testing.assert_frame_equal(run(root), table)
    report = pd.read_csv(root / "scores.report.csv")
    assert report["status"].tolist() == ["ok"] * 5


def test_other_weights_start_anew(root, monkeypatch):
    save(root / "weights")
    scorer = module.BagScorer.load(APP, root / "weights")
    bags = module.find_bags(root / "features", None)
    module._Journal(root / "scores.csv", scorer, bags).add({"id": "s00", "patches": 1})
    net = save(root / "weights")
    with torch.no_grad():
        net.slide_head.bias += 1
    net.save_pretrained(root / "weights")
    assert run(root)["patches"][0] == 4


def test_attention_of_every_patch(root):
    net = save(root / "weights")
    run(root, attention=root / "maps")
    with h5py.File(root / "maps/s04.h5") as file:
        weights, corners = file["attention"][:], file["coords"][:]
        assert file.attrs["slide_id"] == "s04"
        assert file.attrs["patch_size_level0"] == 256
    expected = net(features(root, "s04")).attention[..., 0].softmax(0)
    np.testing.assert_allclose(weights, expected.detach(), atol=1e-6)
    np.testing.assert_array_equal(corners[:, 0], np.arange(8) * 256)


def test_a_list_of_slides_and_one_that_is_missing(root):
    save(root / "weights")
    (root / "some.txt").write_text("s03\n\ns99\ns01\n")
    table = run(root, root / "some.txt", features=root / "features")
    assert table["id"].tolist() == ["s03", "s01"]
    report = pd.read_csv(root / "scores.report.csv").set_index("id")
    assert "no file" in report["error"]["s99"]
    (root / "scores.csv").unlink()
    (root / "paths.csv").write_text("slide_id,path\nmine,features/s02.h5\n")
    assert run(root, root / "paths.csv")["id"].tolist() == ["mine"]


def test_patients_are_scored_with_all_their_slides_and_hashed(root):
    net = save(root / "weights", bag="patient")
    table = run(root, root / "labels.csv", features=root / "features")
    assert table["id"].tolist() == [hashed(f"p{k}") for k in range(3)]
    both = torch.cat([features(root, "s00"), features(root, "s01")])
    expected = net(both).logits.double().softmax(-1)[0, 1].item()
    assert table["score_tumour"][0] == pytest.approx(expected, abs=1e-6)
    (root / "scores.csv").unlink()
    with pytest.raises(DataError, match=r"trained on patients; pass a .csv"):
        run(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("slide\ns00\n", "has no column slide_id; it has slide"),
        ("slide_id\ns00\ns00\n", "slide s00 is twice"),
        ("slide_id\n../s00\n", "is no slide id"),
        ("slide_id\n", "names no slide"),
    ],
)
def test_lists_that_cannot_be_used(root, content, message):
    save(root / "weights")
    (root / "list.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        run(root, root / "list.csv")


def test_nothing_is_overwritten(root):
    save(root / "weights")
    (root / "scores.csv").write_text("mine")
    with pytest.raises(UserError, match="exists; choose another name"):
        run(root)
    assert (root / "scores.csv").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"must end in .csv"):
        predict(APP, str(root / "weights"), root / "features", root / "folder")
