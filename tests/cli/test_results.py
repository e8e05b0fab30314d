"""`test` and `validate`: what they write, keep and print."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch

RUN = "runs/toy/small/0"
TEST = ("toy", "test", "--run", RUN, "--data.root", "data")


@pytest.fixture
def run(fit, tmp_path):
    assert fit("--trainer.max_epochs", "2").code == 0
    return tmp_path / RUN


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_test_writes_predictions_and_metrics(cli, run):
    done = cli(*TEST)
    assert done.code == 0
    frame = pd.read_csv(run / "predictions.csv", keep_default_na=False)
    assert list(frame["id"]) == list(range(48))
    assert list(frame)[:5] == ["id", "group", "site", "label", "status"]
    assert set(frame["status"]) == {"ok"}
    # Groups are hashed: the same ones, under other names.
    assert frame["group"].nunique() == 12
    assert not set(frame["group"]) & {str(number) for number in range(12)}
    found = metrics_of(run)
    assert (found["app"], found["config"], found["seed"]) == ("toy", "small", 0)
    best = (run / "checkpoints/best.ckpt").read_bytes()
    assert found["checkpoint_hash"] == hashlib.sha256(best).hexdigest()
    score, label = frame["score"].to_numpy(), frame["label"].to_numpy()
    loss = -np.mean(label * np.log(score) + (1 - label) * np.log(1 - score))
    assert found["metrics"]["logloss"]["value"] == pytest.approx(loss, abs=1e-6)


def test_the_scores_are_those_of_the_checkpoint(cli, run, tmp_path, toy):
    assert cli(*TEST).code == 0
    table = np.loadtxt(tmp_path / "data/rows.csv", delimiter=",", dtype=np.float32)[144:]
    task = toy.load("task").load_from_checkpoint(run / "checkpoints/best.ckpt").eval()
    with torch.no_grad():
        expected = task.net(torch.from_numpy(table[:, :-1])).sigmoid().numpy()
    frame = pd.read_csv(run / "predictions.csv")
    np.testing.assert_allclose(frame["score"], expected, atol=1e-6)
    np.testing.assert_array_equal(frame["label"], table[:, -1])


def test_stdout_holds_one_table_and_nothing_else(cli, run):
    done = cli(*TEST)
    lines = done.out.splitlines()
    assert lines[0] == "Toy, small, test: 48 samples"
    assert lines[1].split() == ["metric", "value", "95", "%", "low", "95", "%", "high"]
    assert lines[2].split()[0] == "logloss"
    assert lines[3:] == ["research use only, not a medical device"]
    assert done.err.splitlines() == [
        "manyhead toy: research use only, not a medical device",
        f"written: {RUN}/predictions.csv and metrics.json",
    ]


def test_json_is_a_copy(cli, run, tmp_path):
    assert cli(*TEST, "--json", "deep/out.json").code == 0
    copy = json.loads((tmp_path / "deep/out.json").read_text(encoding="utf-8"))
    assert copy == metrics_of(run)
    assert copy["config_hash"]


def test_the_same_test_again_changes_nothing(cli, run):
    assert cli(*TEST).code == 0
    before = metrics_of(run), (run / "predictions.csv").read_bytes()
    assert cli(*TEST).code == 0
    assert (metrics_of(run), (run / "predictions.csv").read_bytes()) == before
    assert not (run / "previous-0").exists()


def test_results_of_other_weights_are_kept(cli, run):
    assert cli(*TEST).code == 0
    first = (run / "predictions.csv").read_bytes()
    other = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    other["state_dict"]["net.body.0.bias"] += 1
    torch.save(other, run / "checkpoints/other.ckpt")
    done = cli(*TEST, "--ckpt_path", f"{RUN}/checkpoints/other.ckpt")
    assert done.code == 0
    assert "moved to" in done.err
    assert (run / "previous-0/predictions.csv").read_bytes() == first
    assert cli(*TEST).code == 0
    assert {path.name for path in run.glob("previous-*")} == {"previous-0", "previous-1"}


def test_validate_writes_beside_the_test(cli, run):
    assert cli(*TEST).code == 0
    before = (run / "predictions.csv").read_bytes()
    done = cli("toy", "validate", "--run", RUN, "--data.root", "data")
    assert done.code == 0
    assert done.out.startswith("Toy, small, validate: 48 samples\n")
    assert (run / "predictions.csv").read_bytes() == before
    assert len(pd.read_csv(run / "validation/predictions.csv")) == 48


def test_a_checkpoint_from_elsewhere_gets_a_folder_beside_it(cli, run, tmp_path):
    (run / "checkpoints/best.ckpt").rename(tmp_path / "mine.ckpt")
    done = cli("toy", "test", "--data.root", "data", "--ckpt_path", "mine.ckpt")
    assert done.code == 0
    assert (tmp_path / "mine-results/metrics.json").is_file()
    # The network comes from the checkpoint, not from the defaults.
    assert metrics_of(tmp_path / "mine-results")["num_samples"] == 48


def test_a_run_is_given_by_its_checkpoint_too(cli, run):
    path = f"{RUN}/checkpoints/last.ckpt"
    assert cli("toy", "test", "--run", path, "--data.root", "data").code == 0
    last = (run / "checkpoints/last.ckpt").read_bytes()
    assert metrics_of(run)["checkpoint_hash"] == hashlib.sha256(last).hexdigest()
