"""MVPFormer from recordings to seizures, through the command line, on small simulated patients."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.__main__ import main

Run = Callable[..., tuple[int, str, str]]
PATIENTS, SECONDS, CHANNELS, RATE = 6, 180, 4, 128
SIMULATION = (
    "--patients", PATIENTS, "--minutes", SECONDS / 60, "--channels", CHANNELS, "--rate", RATE,
    "--seizures", 1,
)  # fmt: skip


def mvpformer(*words: object) -> int:
    return main(["mvpformer", *map(str, words)])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `manyhead mvpformer WORDS`; gives exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = mvpformer(*words)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, a split file, and a finished, tested run."""
    place = tmp_path_factory.mktemp("mvpformer")
    assert mvpformer("simulate", place / "data", *SIMULATION) == 0
    thirds = ("--fractions", "[0.34,0.33,0.33]")
    assert mvpformer("split", place / "split.csv", "--root", place / "data", *thirds) == 0
    assert mvpformer("fit", *options(place)) == 0
    assert mvpformer("test", "--run", run_of(place)) == 0
    return place


def options(place: Path) -> list[str]:
    words: tuple[object, ...] = (
        "--config", "simulated",
        "--data.root", place / "data",
        "--data.split", place / "split.csv",
        "--runs", place / "runs",
        "--trainer.max_epochs", 2, "--trainer.accelerator", "cpu",
    )  # fmt: skip
    return list(map(str, words))


def run_of(folder: Path) -> Path:
    return folder / "runs/mvpformer/simulated/0"


def recordings(place: Path) -> list[Path]:
    return sorted(place.rglob("*_ieeg.edf"))


def name_of(path: Path) -> str:
    return path.name.removesuffix("_ieeg.edf")


def test_inspect_sees_what_was_simulated(folder: Path, tmp_path: Path, call: Run) -> None:
    code, shown, _ = call("inspect", "--root", folder / "data", "--out", tmp_path)
    assert code == 0
    assert f"{PATIENTS} of {PATIENTS} readable" in shown
    table = pd.read_csv(tmp_path / "recordings.csv")
    truth = json.loads((folder / "data/simulation.json").read_text())["recordings"]
    assert list(table["seizures"]) == [len(one["seizures"]) for one in truth]
    spans = [one["offset"] - one["onset"] for recording in truth for one in recording["seizures"]]
    np.testing.assert_allclose(table["seizure_seconds"].astype(float), spans, atol=0.01)
    assert (table["problem"].isna()).all()
    np.testing.assert_allclose(table["hours"], SECONDS / 3600, atol=1e-6)


def test_the_run_holds_out_whole_patients_and_hashes_them(folder: Path) -> None:
    split = pd.read_csv(folder / "split.csv")
    assert set(split["split"]) == {"train", "validation", "test"}
    pd.testing.assert_frame_equal(
        pd.read_csv(run_of(folder) / "split.csv").sort_values("id", ignore_index=True),
        split.sort_values("id", ignore_index=True),
    )
    frame = pd.read_csv(run_of(folder) / "predictions.csv")
    assert set(frame["recording"]) == set(split["id"][split["split"] == "test"])
    assert not frame["group"].str.contains("sub-").any()
    assert frame["threshold"].nunique() == 1
    metrics = json.loads((run_of(folder) / "metrics.json").read_text())
    assert (metrics["app"], metrics["kind"]) == ("mvpformer", "events")
    assert metrics["details"]["seizures"] == 2
    assert metrics["details"]["hours"] == pytest.approx(2 * SECONDS / 3600, rel=0.05)


def test_predict_from_exported_weights_finds_what_the_test_found(
    folder: Path, tmp_path: Path, call: Run
) -> None:
    weights, out = tmp_path / "weights", tmp_path / "out"
    assert call("export", run_of(folder), weights)[0] == 0
    code, shown, _ = call("predict", "--weights", weights, "--input", folder / "data", "--out", out)
    assert code == 0
    assert "not a medical device" in shown
    assert f"annotated: {PATIENTS} recordings" in shown
    tested = pd.read_csv(run_of(folder) / "predictions.csv")
    for name, rows in tested.groupby("recording"):
        steps = pd.read_csv(out / f"{name}_steps.tsv", sep="\t")
        np.testing.assert_allclose(steps["time"], rows["stop"], atol=1e-3)
        np.testing.assert_allclose(steps["p"], rows["score"], atol=1e-5)
        np.testing.assert_array_equal(steps["detected"], rows["detected"])
        assert (out / f"{name}.png").is_file()
    code, shown, _ = call("score", folder / "data", out)
    assert code == 0, shown


def test_report_is_one_page_without_names_or_places(folder: Path, call: Run) -> None:
    assert call("report", run_of(folder))[0] == 0
    page = (run_of(folder) / "report.html").read_text()
    assert "not a medical device" in page
    assert "SzCORE" in page or "tolerance" in page.lower()
    assert str(folder) not in page


def test_a_baseline_runs_in_the_same_harness(folder: Path, tmp_path: Path, call: Run) -> None:
    words = ("--model.network", "band_energy", "--model.lr", 1e-2, "--runs", tmp_path)
    assert call("fit", *options(folder), *words)[0] == 0
    assert call("test", "--run", tmp_path / "mvpformer/simulated/0")[0] == 0
    metrics = json.loads((tmp_path / "mvpformer/simulated/0/metrics.json").read_text())
    assert metrics["metrics"]["step_auroc"]["value"] > 0.5


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The recordings again, to be spoilt."""
    shutil.copytree(folder / "data", tmp_path / "copy")
    return tmp_path


def test_a_damaged_file_costs_itself_only(copied: Path, folder: Path, call: Run) -> None:
    first, second = recordings(copied)[:2]
    first.write_bytes(first.read_bytes()[:300])
    out, seen = copied / "out", copied / "seen"
    code, shown, errors = call("inspect", "--root", copied / "copy", "--out", seen)
    assert code == 0
    assert f"{PATIENTS - 1} of {PATIENTS} readable" in shown
    [problem] = json.loads((seen / "summary.json").read_text())["left_out"].items()
    assert problem[0] == name_of(first)
    code, _, errors = call(
        "predict", "--weights", run_of(folder), "--input", copied / "copy", "--out", out,
        "--pictures", "false",
    )  # fmt: skip
    assert code == 0
    assert name_of(first) in errors
    report = pd.read_csv(out / "report.csv").set_index("id")
    assert report.loc[name_of(first), "status"] == "failed"
    assert report.loc[name_of(second), "status"] == "ok"


def test_nothing_readable_is_exit_code_2(copied: Path, call: Run) -> None:
    for path in recordings(copied):
        path.write_bytes(b"no EDF")
    code, shown, _ = call("inspect", "--root", copied / "copy")
    assert code == 2
    assert f"0 of {PATIENTS} readable" in shown
    words = ("--data.root", copied / "copy", "--data.split", "random", "--runs", copied / "runs")
    code, _, errors = call("fit", "--config", "simulated", *words)
    assert code == 2
    assert "can be used" in errors


def test_an_annotation_outside_of_the_file_is_named(copied: Path, call: Run) -> None:
    first = recordings(copied)[0]
    events = first.with_name(first.name.replace("_ieeg.edf", "_events.tsv"))
    table = pd.read_csv(events, sep="\t", dtype=str, keep_default_na=False)
    table.loc[table.index[0], "onset"] = "4000"
    table.to_csv(events, sep="\t", index=False)
    code, shown, _ = call("inspect", "--root", copied / "copy")
    assert code == 0
    assert "lies outside the recording of 180.00 s" in shown


def write_npz(path: Path, signal: np.ndarray, **more: object) -> None:
    np.savez(path, signal=signal.astype(np.float32), sfreq=float(RATE), **more)


@pytest.fixture
def noise() -> np.ndarray:
    """60 s of 50 µV."""
    return 50 * np.random.default_rng(0).standard_normal((CHANNELS, 60 * RATE))


def test_volts_are_refused_with_the_remedy(tmp_path: Path, noise: np.ndarray, call: Run) -> None:
    data = tmp_path / "files"
    data.mkdir()
    write_npz(data / "p1_volts.npz", noise * 1e-6)
    code, shown, _ = call("inspect", "--root", data)
    assert code == 2
    assert "pass units=V" in shown
    code, shown, _ = call("inspect", "--root", data, "--units", "V", "--target", "next_token")
    assert code == 0
    [typical] = re.findall(r"typical deviation, µV +min (\S+),", shown)
    # The median absolute deviation of noise is 0.67 of its standard deviation, per piece; the
    # largest of eight pieces counts.
    assert 33 < float(typical) < 40


def test_flat_channels_and_more_channels_than_rows(
    folder: Path, tmp_path: Path, noise: np.ndarray, call: Run
) -> None:
    noise[1] = 7
    data = tmp_path / "files"
    data.mkdir()
    write_npz(data / "p1_flat.npz", noise)
    write_npz(data / "p2_wide.npz", np.tile(noise, (33, 1)))
    code, shown, _ = call("inspect", "--root", data, "--target", "next_token", "--flat", "drop")
    assert code == 0
    assert "Flat where looked at" in shown
    code, shown, _ = call("inspect", "--root", data, "--target", "next_token")
    assert code == 0
    assert "132 channels" in shown
    assert "128" in shown
    out = tmp_path / "out"
    words = ("--input", data, "--out", out, "--pictures", "false")
    code, _, errors = call("predict", "--weights", run_of(folder), *words)
    assert code == 0
    assert "132" in errors
    assert "--channels" in errors
    status = pd.read_csv(out / "report.csv").set_index("id")["status"].to_dict()
    assert status == {"p1_flat": "ok", "p2_wide": "failed"}


def test_a_second_start_does_nothing_twice(folder: Path, call: Run) -> None:
    code, shown, _ = call("simulate", folder / "data", *SIMULATION)
    assert code == 0
    assert f"{PATIENTS} were there already" in shown
    code, _, errors = call("simulate", folder / "data", "--patients", 2)
    assert code == 2
    assert "holds a simulation with" in errors
    code, _, errors = call("split", folder / "split.csv", "--root", folder / "data")
    assert code == 2
    assert "exists already" in errors
