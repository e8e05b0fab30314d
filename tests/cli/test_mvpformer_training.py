"""Training of MVPFormer through the command line: from pre-training to a table of seeds."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from manyhead.__main__ import main
from manyhead.mvpformer import MVPFormer
from manyhead.mvpformer.task import MVPFormerTask
from manyhead_core.sweep import worker

Run = Callable[..., tuple[int, str, str]]
SIMULATION = ("--patients", 4, "--minutes", 3, "--channels", 3, "--rate", 128, "--seizures", 1)
# What is small enough for a test, over any config.
SMALL = (
    "--model.net.dim", 16, "--model.net.num_layers", 1, "--model.net.num_heads", 2,
    "--model.net.num_key_heads", 1, "--model.net.hidden_dim", 16, "--model.net.max_segments", 8,
    "--model.net.max_channels", 8, "--trainer.accelerator", "cpu",
)  # fmt: skip
LAYOUT = (
    "--data.rate", 128, "--data.num_segments", 3, "--data.segment_seconds", 2,
    "--data.stride_seconds", 2, "--data.fractions", "[0.5,0.25,0.25]",
    "--data.batch_windows", 16, "--data.eval_batch_windows", 64, "--data.patients_per_batch", 1,
)  # fmt: skip
SEIZURES = ("--config", "default", *SMALL, *LAYOUT, "--model.lr", 1e-3)


def mvpformer(*words: object) -> int:
    return main(["mvpformer", *map(str, words)])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `manyhead mvpformer WORDS`; gives exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = mvpformer(*words)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("training") / "data"
    assert mvpformer("simulate", place, *SIMULATION) == 0
    return place


def last(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = last(folder)["state_dict"]
    return found


def logged(folder: Path, name: str) -> list[tuple[str, float]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as lines:
        return [(r["step"], float(r[name])) for r in csv.DictReader(lines) if r.get(name)]


def test_pre_training_adapters_test_validate_export(data: Path, tmp_path: Path, call: Run) -> None:
    runs = ("--data.root", data, "--runs", "runs")
    short = ("--trainer.max_steps", 6, "--data.batches_per_epoch", 3)
    code, shown, errors = call("fit", "--config", "pretrain", *SMALL, *LAYOUT, *short, *runs)
    assert code == 0, errors
    base = tmp_path / "runs/mvpformer/pretrain/0"
    assert f"run folder {Path('runs/mvpformer/pretrain/0')}" in shown
    assert last(base)["global_step"] == 6
    [(_, first), (_, second)] = logged(base, "val/loss")
    assert np.isfinite([first, second]).all()
    assert all(0 <= value <= 1 for _, value in logged(base, "val/accuracy"))

    code, _, errors = call("test", "--run", base)
    assert code == 2
    assert "the target next_token has no seizures to score" in errors

    adapters = ("--config", "finetune-adapters", *SMALL, *LAYOUT, "--trainer.max_epochs", 1)
    begin = ("--model.init", base, "--model.net.lora_rank", 2, "--model.lr", 1e-2)
    code, _, errors = call("fit", *adapters, *begin, *runs)
    assert code == 0, errors
    run = tmp_path / "runs/mvpformer/finetune-adapters/0"
    before, after = (
        torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
        for folder in (base, run)
    )
    for name, tensor in before.items():
        if name not in ("net.head.weight", "net.threshold"):
            assert torch.equal(after[name], tensor), name
    assert any(after[name].any() for name in after if name.endswith("lora_B"))

    assert call("test", "--run", run)[0] == 0
    frame = pd.read_csv(run / "predictions.csv")
    np.testing.assert_allclose(frame["threshold"], after["net.threshold"], rtol=1e-6)
    assert json.loads((run / "metrics.json").read_text())["kind"] == "events"
    assert call("validate", "--run", run)[0] == 0
    assert call("export", run, "weights")[0] == 0
    net = MVPFormer.from_pretrained(tmp_path / "weights")
    torch.testing.assert_close(net.threshold, after["net.threshold"], rtol=0, atol=0)


def test_a_sweep_of_two_seeds(
    data: Path, tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def inside(command: list[str], **_: object) -> SimpleNamespace:
        """In place of a process, which takes seconds to import everything."""
        started.append(command[len(worker.PROGRAM) + 1])
        return SimpleNamespace(returncode=main(command[len(worker.PROGRAM) :]))

    monkeypatch.setattr(worker, "subprocess", SimpleNamespace(run=inside, DEVNULL=0, STDOUT=0))
    words = [str(word).removeprefix("--") for word in SEIZURES[2:]]
    overrides = [f"{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]
    code, _, errors = call(
        "sweep", *overrides, f"data.root={data}", "trainer.max_epochs=1",
        "--config", "default", "--seeds", "0,1", "--out", "swept",
    )  # fmt: skip
    assert code == 0, errors
    assert started == ["fit", "test"] * 2
    rows = json.loads((tmp_path / "swept/summary.json").read_text())["rows"]
    assert {row["runs"] for row in rows} == {2}
    files = sorted((tmp_path / "swept").rglob("last.ckpt"))
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in files)
    assert not torch.equal(first["net.head.weight"], second["net.head.weight"])


@pytest.mark.parametrize(
    ("kill_at", "every", "saved_at"), [(9, 0, 8), (13, 5, 10)], ids=["epoch end", "mid-epoch"]
)
def test_an_interrupted_fit_goes_on_to_the_same_weights(
    data: Path,
    tmp_path: Path,
    call: Run,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int,
    every: int,
    saved_at: int,
) -> None:
    fit = (
        "fit", *SEIZURES, "--data.root", data, "--data.batches_per_epoch", 8,
        "--data.patients_per_batch", 2, "--model.flip", "true", "--model.scale_jitter", 0.1,
        "--trainer.max_epochs", 2, "--trainer.deterministic", "true",
        "--checkpoint_every_n_steps", every,
    )  # fmt: skip
    assert call(*fit, "--name", "whole")[0] == 0

    def interrupt(task: MVPFormerTask, *_: object) -> None:
        if task.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MVPFormerTask, "on_train_batch_start", interrupt)
        code, _, errors = call(*fit, "--name", "cut")
    assert code == 130
    assert "fit --resume runs/mvpformer/cut/0" in errors
    whole, cut = (tmp_path / "runs/mvpformer" / name / "0" for name in ("whole", "cut"))
    assert last(cut)["global_step"] == saved_at
    assert call("fit", "--resume", cut)[0] == 0
    torch.testing.assert_close(weights(whole), weights(cut), rtol=0, atol=0)
    for name in ("val/loss", "val/score", "val/threshold"):
        assert logged(whole, name) == logged(cut, name)


def test_a_run_goes_on_when_its_start_is_gone(data: Path, tmp_path: Path, call: Run) -> None:
    fit = ("fit", *SEIZURES, "--data.root", data, "--data.batches_per_epoch", 2)
    once = ("--trainer.max_epochs", 1)
    assert call(*fit, *once, "--name", "base")[0] == 0
    runs = tmp_path / "runs/mvpformer"
    begin = ("--model.init", runs / "base/0/checkpoints/last.ckpt")
    assert call(*fit, *once, *begin, "--name", "next")[0] == 0
    (runs / "base").rename(runs / "moved")
    again = ("fit", "--resume", runs / "next/0", "--trainer.max_epochs", 2)
    code, _, errors = call(*again)
    assert code == 2
    assert "does not exist; pass a weights folder" in errors
    assert "(null where a run is resumed)" in errors
    assert call(*again, "--model.init", "null")[0] == 0
    assert last(runs / "next/0")["global_step"] == 4


def test_mistakes_are_one_line_and_leave_no_run_folder(
    data: Path, tmp_path: Path, call: Run
) -> None:
    fit = ("fit", *SEIZURES, "--data.root", data)
    mistakes = {
        ("--model.init", "nothing"): "init: nothing does not exist",
        ("--model.train", "adapters"): "needs net.lora_rank of 1 or more",
        ("--data.include", "sub-x"): "data.include: 'sub-x' matches none of 4 recordings",
        ("--model.threshold", 2): "threshold: 2.0 is no probability",
        ("--model.init", data / "participants.tsv"): "is damaged or no checkpoint; pass another",
    }
    for words, message in mistakes.items():
        code, _, errors = call(*fit, *words)
        assert code == 2
        assert message in errors
        assert "Traceback" not in errors
    assert not list(tmp_path.glob("runs/mvpformer/*/*/*"))


def test_bf16_and_accumulation_train(data: Path, tmp_path: Path, call: Run) -> None:
    code, _, errors = call(
        "fit", *SEIZURES, "--data.root", data, "--trainer.precision", "bf16-mixed",
        "--trainer.accumulate_grad_batches", 2, "--data.batches_per_epoch", 4,
        "--trainer.max_epochs", 2,
    )  # fmt: skip
    assert code == 0, errors
    folder = tmp_path / "runs/mvpformer/default/0"
    assert last(folder)["global_step"] == 4
    assert all(x.dtype == torch.float32 for x in weights(folder).values())
    code, _, errors = call(
        "fit", *SEIZURES, "--data.root", data, "--trainer.precision", "bf16-true"
    )
    assert code == 2
    assert "use bf16-mixed" in errors


def test_the_real_sessions_train_and_are_tested(data_dir: Path, tmp_path: Path, call: Run) -> None:
    split = tmp_path / "split.csv"
    split.write_text("id,split\nID01,train\nID14,test\n")
    code, _, errors = call(
        "fit", "--config", "swec", *SMALL, "--data.root", data_dir / "ieeg/swec_layout",
        "--data.split", split, "--data.rate", 128, "--data.num_segments", 5,
        "--data.batch_windows", 8, "--data.batches_per_epoch", 4, "--data.cache", "memory",
        "--data.max_channels", 4, "--trainer.max_steps", 8, "--name", "real",
    )  # fmt: skip
    assert code == 0, errors
    assert "no validation part: the last epoch counts as the best" in errors
    run = tmp_path / "runs/mvpformer/real/0"
    assert call("test", "--run", run)[0] == 0
    frame = pd.read_csv(run / "predictions.csv")
    # ID14 is 330 s, a decision every 5 s.
    assert len(frame) == 66
    assert (frame["threshold"] == 0.5).all()
    assert json.loads((run / "metrics.json").read_text())["details"]["seizures"] == 1
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["net"]["segment_samples"] == 640


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_train_like_one(data: Path, tmp_path: Path, call: Run, strategy: str) -> None:
    """Two processes with half a batch each take the steps of one with the whole batch."""
    fit = (
        "fit", *SEIZURES, "--data.root", data, "--model.net.dropout", 0,
        "--model.net.attention_dropout", 0, "--data.batches_per_epoch", 8,
        "--trainer.max_epochs", 2, "--model.class_weights", "none",
    )  # fmt: skip
    two = (*fit, "--trainer.strategy", strategy, "--trainer.devices", 2, "--name", "two")
    command = [sys.executable, "-m", "manyhead", "mvpformer", *map(str, two)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    accumulated = ("--trainer.accumulate_grad_batches", 2, "--name", "one")
    assert call(*fit, *accumulated)[0] == 0
    one, both = (tmp_path / f"runs/mvpformer/{name}/0" for name in ("one", "two"))
    assert last(both)["global_step"] == last(one)["global_step"] == 8
    torch.testing.assert_close(weights(one), weights(both), rtol=0, atol=1e-5)
    for name in ("val/loss", "val/score"):
        ours, theirs = ([value for _, value in logged(run, name)] for run in (one, both))
        assert ours == pytest.approx(theirs, abs=1e-4)
