"""ACMIL from slide files to report, through the command line, on six small simulated slides."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from manyhead.__main__ import main

Run = Callable[..., tuple[int, str, str]]
SLIDES, SIZE, PATCH = 6, 512, 64


def acmil(*words: object) -> int:
    return main(["acmil", *map(str, words)])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `manyhead acmil WORDS`; gives exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = acmil(*words)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, tiles, features, and a finished, tested run."""
    place = tmp_path_factory.mktemp("acmil")
    data = place / "data"
    few = ("--slides", SLIDES, "--patients", 6, "--size", SIZE, "--levels", 2)
    assert acmil("simulate", data, *few, "--features", "false") == 0
    slides, lesions = data / "slides", data / "lesions"
    tiled = ("--patch_size", PATCH, "--annotations", lesions)
    assert acmil("tile", slides, place / "tiles", *tiled) == 0
    patches = place / "tiles" / "patches"
    assert acmil("features", patches, place / "features", "--slides", slides) == 0
    assert acmil("fit", *options(place)) == 0
    assert acmil("test", "--run", place / "runs/acmil/simulated/0") == 0
    return place


def options(place: Path) -> list[str]:
    words: tuple[object, ...] = (
        "--config", "simulated",
        "--data.root", place / "features",
        "--data.labels", place / "data" / "labels.csv",
        "--data.site", "site",
        "--data.split", "fold", "--data.folds", 2, "--data.validation_folds", 0,
        "--runs", place / "runs",
        "--trainer.max_epochs", 2, "--trainer.accelerator", "cpu",
    )  # fmt: skip
    return list(map(str, words))


def run_of(folder: Path) -> Path:
    return folder / "runs/acmil/simulated/0"


def test_every_slide_has_patches_features_and_outlines(folder: Path) -> None:
    table = pd.read_csv(folder / "data" / "labels.csv").set_index("slide_id")
    for name, row in table.iterrows():
        with h5py.File(folder / "features" / f"{name}.h5") as file:
            features, coords = file["features"][:], file["coords"][:]
        with h5py.File(folder / "tiles" / "patches" / f"{name}.h5") as file:
            np.testing.assert_array_equal(coords, file["coords"][:])
            labels = file["labels"][:] if "labels" in file else np.zeros(len(coords))
        assert features.shape == (len(coords), 32)
        assert np.isfinite(features).all()
        # A lesion of 2 % of a slide this small may fall between the centres of the patches.
        assert row["label"] == "positive" or not labels.any()
    report = pd.read_csv(folder / "tiles" / "report.csv")
    assert (report["status"] == "ok").all()


def test_the_run_holds_out_whole_patients_and_hashes_them(folder: Path) -> None:
    split = pd.read_csv(run_of(folder) / "split.csv")
    assert set(split["split"]) == {"train", "test"}
    frame = pd.read_csv(run_of(folder) / "predictions.csv")
    assert set(frame["id"]) == set(split["id"][split["split"] == "test"])
    assert not frame["group"].str.contains("patient").any()
    total = frame["score_negative"] + frame["score_positive"]
    np.testing.assert_allclose(total, 1, atol=1e-6)
    metrics = json.loads((run_of(folder) / "metrics.json").read_text())
    assert metrics["app"] == "acmil"
    assert metrics["kind"] == "classes"


def test_predict_from_exported_weights_gives_the_tested_probabilities(
    folder: Path, tmp_path: Path, call: Run
) -> None:
    weights, out = tmp_path / "weights", tmp_path / "scores.csv"
    assert call("export", run_of(folder), weights)[0] == 0
    code, shown, _ = call(
        "predict", "--weights", weights, "--input", folder / "features", "--out", out
    )
    assert code == 0
    assert "not a medical device" in shown
    again = pd.read_csv(out).set_index("id")["score_positive"]
    assert len(again) == SLIDES
    tested = pd.read_csv(run_of(folder) / "predictions.csv").set_index("id")["score_positive"]
    np.testing.assert_allclose(again[tested.index], tested, atol=1e-6)


def test_explain_draws_maps_over_the_slides(folder: Path, tmp_path: Path, call: Run) -> None:
    out, data = tmp_path / "explained", folder / "data"
    chosen = pd.read_csv(run_of(folder) / "predictions.csv")["id"][0]
    code, _, shown = call(
        "explain", run_of(folder), folder / "features", out, "--slide", chosen,
        "--slides", data / "slides", "--annotations", data / "lesions", "--top", 4,
    )  # fmt: skip
    assert code == 0, shown
    assert (out / "explain.html").is_file()
    [table] = out.rglob("scores.csv")
    assert pd.read_csv(table)["attention"].sum() == pytest.approx(1, abs=1e-4)


def test_report_and_inspect(folder: Path, call: Run) -> None:
    assert call("report", run_of(folder))[0] == 0
    page = (run_of(folder) / "report.html").read_text()
    assert "not a medical device" in page
    assert str(folder) not in page
    labels = folder / "data" / "labels.csv"
    code, shown, _ = call("inspect", "--root", folder / "features", "--labels", labels)
    assert code == 0
    assert "patient-0" not in shown


def test_a_second_start_does_nothing_twice(folder: Path, call: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "features").glob("*.h5")}
    slides = folder / "data" / "slides"
    code, _, shown = call(
        "features", folder / "tiles" / "patches", folder / "features", "--slides", slides
    )
    assert code == 0
    assert f"{SLIDES} of {SLIDES} slides are done already" in shown
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_simulate_refuses_a_folder_with_content(folder: Path, call: Run) -> None:
    before = sorted((folder / "data").rglob("*"))
    code, _, shown = call("simulate", folder / "data")
    assert code == 2
    assert "exists already; name a new folder" in shown
    assert sorted((folder / "data").rglob("*")) == before
    code, _, shown = call("simulate", folder / "other", "--slides", 1)
    assert code == 2
    assert "--slides" in shown
    assert not (folder / "other").exists()
