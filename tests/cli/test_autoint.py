"""AutoInt from raw table to report, through the command line, on a small simulated log."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from manyhead.__main__ import main
from manyhead.autoint import AutoInt

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `manyhead autoint WORDS`; gives exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["autoint", *map(str, words)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of 3,000 rows and a finished, tested run."""
    place = tmp_path_factory.mktemp("autoint")
    assert main(["autoint", "simulate", str(place / "log"), "--rows", "3000"]) == 0
    assert main(["autoint", "fit", *options(place)]) == 0
    assert main(["autoint", "test", "--run", str(place / "runs/autoint/simulated/0")]) == 0
    return place


def options(place: Path, *more: object) -> list[str]:
    words: tuple[object, ...] = (
        "--config",
        "simulated",
        "--data.root",
        place / "log" / "clicks.csv",
        "--data.schema",
        place / "log" / "schema.yaml",
        "--data.cache",
        place / "cache",
        "--runs",
        place / "runs",
        "--trainer.max_epochs",
        2,
        "--trainer.accelerator",
        "cpu",
        "--model.net.widths",
        "[8]",
        *more,
    )
    return list(map(str, words))


def test_a_run_folder_holds_what_is_needed_to_repeat_it(folder: Path) -> None:
    run = folder / "runs/autoint/simulated/0"
    found = {path.name for path in run.iterdir()}
    assert found >= {
        "checkpoints",
        "config.yaml",
        "environment.txt",
        "metrics.csv",
        "metrics.json",
        "predictions.csv",
        "split.csv",
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["net"]["widths"] == [8]
    split = pd.read_csv(run / "split.csv")
    assert split["split"].value_counts().to_dict() == {
        "train": 2400,
        "validation": 300,
        "test": 300,
    }


def test_predictions_are_those_of_the_test_rows(folder: Path) -> None:
    run = folder / "runs/autoint/simulated/0"
    found = pd.read_csv(run / "predictions.csv")
    split = pd.read_csv(run / "split.csv").set_index("row")["split"]
    assert set(split[found["id"]]) == {"test"}
    log = pd.read_csv(folder / "log" / "clicks.csv")
    assert (found["label"].to_numpy() == log.loc[found["id"], "click"].to_numpy()).all()
    expected = log.loc[found["id"], "age_group"].to_numpy()
    assert (found["segment_age_group"].to_numpy() == expected).all()
    assert not found["group"].isin(log["user"]).any(), "groups are hashed"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_samples"] == 300
    assert metrics["metrics"]["auroc"]["low"] < metrics["metrics"]["auroc"]["value"]
    assert {entry["value"] for entry in metrics["segments"]["device"]} >= {"phone", "desktop"}


def test_weights_give_the_test_scores_again(folder: Path, call: Run, tmp_path: Path) -> None:
    run = folder / "runs/autoint/simulated/0"
    code, out, _ = call("export", run, tmp_path / "weights")
    assert code == 0
    assert "written" in out
    table = folder / "log" / "clicks.csv"
    words = ("predict", "--weights", tmp_path / "weights", "--input", table)
    assert call(*words, "--out", tmp_path / "scores.csv")[0] == 0
    tested = pd.read_csv(run / "predictions.csv").set_index("id")["score"]
    again = pd.read_csv(tmp_path / "scores.csv").set_index("id")["score"]
    np.testing.assert_allclose(again[tested.index], tested, atol=1e-6)
    net = AutoInt.from_pretrained(tmp_path / "weights")
    assert set(net.metrics) >= {"auroc", "logloss"}


def test_validate_calibrate_report_and_explain(folder: Path, call: Run, tmp_path: Path) -> None:
    run = folder / "runs/autoint/simulated/0"
    assert call("validate", "--run", run)[0] == 0
    assert (run / "validation" / "predictions.csv").is_file()
    assert call("calibrate", run)[0] == 0
    assert json.loads((run / "calibration.json").read_text())
    code, _, _ = call("report", run)
    assert code == 0
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    table = folder / "log" / "clicks.csv"
    words = ("explain", "--weights", run, "--input", table, "--out", tmp_path / "explained")
    assert call(*words, "--rows", 200, "--repeats", 1)[0] == 0
    assert (tmp_path / "explained" / "maps.png").stat().st_size > 1000


def test_baselines_train_in_the_same_task_and_are_compared(folder: Path, call: Run) -> None:
    for network in ("lr", "fm", "mlp"):
        more = ("--model.network", network, "--name", network, "--trainer.max_epochs", 1)
        assert call("fit", *options(folder, *more))[0] == 0
        assert call("test", "--run", folder / "runs/autoint" / network / "0")[0] == 0
    runs = [folder / "runs/autoint" / name / "0" for name in ("simulated", "lr", "fm")]
    assert main(["compare", *map(str, runs)]) == 0
    code, _, err = call("export", folder / "runs/autoint/lr/0", folder / "weights-lr")
    assert code == 2
    assert "holds the baseline LogisticRegression; only AutoInt is exported" in err


def test_every_optimiser_trains(folder: Path, call: Run) -> None:
    for name in ("adam_tf", "lazy_adam", "adagrad", "sgd"):
        more = ("--model.optimizer", name, "--name", name, "--model.embedding_l2", 1e-5)
        code, _, err = call("fit", *options(folder, *more, "--trainer.limit_train_batches", 5))
        assert code == 0, err


def test_sizes_of_the_network_follow_the_data(folder: Path) -> None:
    run = folder / "runs/autoint/simulated/0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["net"]["num_fields"] == 10


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ("click,nothing\n1,2\n0,1\n", (), "column 'user' is missing"),
        ("", (), "is empty"),
        (None, ("--data.format", "criteo"), "column 'click' is missing"),
        (None, ("--data.root", "nowhere"), "nowhere does not exist"),
        (None, ("--config", "simulatet"), "did you mean simulated"),
        (None, ("--model.net.num_heads", "3"), "num_heads=3"),
        (None, ("--model.lr", "fast"), "model.lr"),
        (None, ("--model.lr", "-1"), "lr must be a positive number"),
        (None, ("--data.batchsize", "3"), "did you mean"),
        (None, ("--data.split", "random_rows"), "'random_rows' is no file"),
        (None, ("--data.batch_size", "0"), "data.batch_size: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(
    folder: Path, call: Run, tmp_path: Path, change: str | None, words: tuple, message: str
) -> None:
    given = list(options(folder, *words))
    if change is not None:
        (tmp_path / "bad.csv").write_text(change)
        given[given.index("--data.root") + 1] = str(tmp_path / "bad.csv")
    code, out, err = call("fit", *given)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("manyhead autoint")]
    assert len(lines) == 1, err
    assert message in lines[0]
    assert "Traceback" not in err
    assert out == ""


def test_labels_of_one_class_and_not_a_number_are_named(
    folder: Path, call: Run, tmp_path: Path
) -> None:
    log = pd.read_csv(folder / "log" / "clicks.csv")
    for label, message in (
        (0, "a model needs both classes"),
        (np.nan, "is missing"),
        (7, "not 0 or 1"),
    ):
        log.assign(click=label).to_csv(tmp_path / "bad.csv", index=False)
        words = options(folder)
        words[words.index("--data.root") + 1] = str(tmp_path / "bad.csv")
        code, _, err = call("fit", *words)
        assert code == 2
        assert message in err.splitlines()[-1], err
    log.assign(price="cheap").to_csv(tmp_path / "bad.csv", index=False)
    code, _, err = call("fit", *words)
    assert code == 2
    assert "price" in err.splitlines()[-1]
    assert "cheap" in err.splitlines()[-1]


def test_weights_of_something_else_are_refused(folder: Path, call: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    code, _, err = call("test", *options(folder), "--ckpt_path", tmp_path / "bad.ckpt")
    assert code == 2
    assert "is damaged or not a checkpoint" in err
    run = folder / "runs/autoint/simulated/0"
    code, _, err = call("test", "--run", run, "--data.min_count", 500)
    assert code == 2
    assert "encoding" in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_give_the_losses_of_one(folder: Path) -> None:
    words = ("--trainer.log_every_n_steps", 1, "--trainer.max_epochs", 1)
    command = (sys.executable, "-m", "manyhead", "autoint", "fit")
    one = options(folder, *words, "--name", "one", "--data.batch_size", 64)
    two = options(folder, *words, "--name", "two", "--data.batch_size", 32)
    two += ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    for given in (one, two):
        subprocess.run([*command, *given], check=True, capture_output=True)
    runs = [folder / "runs/autoint" / name / "0" / "metrics.csv" for name in ("one", "two")]
    for column in ("train/loss", "val/logloss", "val/auroc"):
        single, double = (pd.read_csv(run)[["step", column]].dropna() for run in runs)
        assert len(single) == len(double) > 0
        np.testing.assert_allclose(double[column], single[column], rtol=0, atol=1e-5)
