"""A run that was cut goes on as if nothing had happened."""

from __future__ import annotations

import csv
import os
import signal

import pytest
import torch

from manyhead_core.training.checkpoints import AtomicFiles

# Dropout draws from the global generator, the scheduler changes the rate, the loader has a
# position: everything that a resume can get wrong.
WIDE = ("toy", "fit", "--config", "wide", "--data.root", "data", "--trainer.max_epochs", "3")
CPU = ("--trainer.accelerator", "cpu", "--trainer.deterministic", "true")


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def logged(folder, name):
    with (folder / "metrics.csv").open(encoding="utf-8") as lines:
        return [(row["step"], float(row[name])) for row in csv.DictReader(lines) if row[name]]


def assert_same_run(first, second, tolerance=1e-6):
    ours, theirs = last(first), last(second)
    assert ours["global_step"] == theirs["global_step"]
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=tolerance)
    for name in ("train/loss", "val/loss"):
        (steps, values), (others, found) = (
            zip(*logged(folder, name), strict=True) for folder in (first, second)
        )
        assert steps == others
        assert found == pytest.approx(values, abs=tolerance)
    best, other = (
        torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
        for folder in (first, second)
    )
    assert best["global_step"] == other["global_step"]


@pytest.mark.parametrize(
    ("kill_at", "every", "saved_at"),
    [(12, 0, 12), (17, 5, 15), (25, 4, 24)],
    ids=["epoch end", "mid-epoch", "first step after an epoch"],
)
def test_interrupted_runs_resume(cli, tmp_path, monkeypatch, kill_at, every, saved_at):
    every_n = ("--checkpoint_every_n_steps", str(every))
    assert cli(*WIDE, *CPU, *every_n, "--name", "whole").code == 0
    monkeypatch.setenv("TOY_KILL_AT", str(kill_at))
    monkeypatch.setenv("TOY_SIGNAL", "SIGINT")
    done = cli(*WIDE, *CPU, *every_n, "--name", "cut")
    assert done.code == 130
    assert done.err.splitlines()[-1] == (
        "manyhead toy: interrupted; resume with: manyhead toy fit --resume runs/toy/cut/0"
    )
    cut = tmp_path / "runs/toy/cut/0"
    assert last(cut)["global_step"] == saved_at
    monkeypatch.delenv("TOY_KILL_AT")
    done = cli("toy", "fit", "--resume", "runs/toy/cut/0")
    assert done.code == 0
    assert f"resuming at step {saved_at}" in done.err
    assert "runs/toy/cut/0" in done.out
    assert_same_run(tmp_path / "runs/toy/whole/0", cut)


def test_a_killed_process_resumes(cli, program, tmp_path):
    every = ("--checkpoint_every_n_steps", "5")
    assert cli(*WIDE, *CPU, *every, "--name", "whole").code == 0
    done = program(*WIDE, *CPU, *every, "--name", "cut", TOY_KILL_AT="17")
    assert done.code == -signal.SIGKILL
    assert cli("toy", "fit", "--resume", "runs/toy/cut/0").code == 0
    assert_same_run(tmp_path / "runs/toy/whole/0", tmp_path / "runs/toy/cut/0")


def test_sigterm_is_no_success(cli, monkeypatch):
    monkeypatch.setenv("TOY_KILL_AT", "17")
    monkeypatch.setenv("TOY_SIGNAL", "SIGTERM")
    done = cli(*WIDE, *CPU)
    assert done.code == 143
    assert done.err.splitlines()[-1] == (
        "manyhead toy: stopped by SIGTERM; resume with: manyhead toy fit --resume runs/toy/wide/0"
    )


def test_interrupt_before_the_first_checkpoint(cli, monkeypatch):
    monkeypatch.setenv("TOY_KILL_AT", "3")
    monkeypatch.setenv("TOY_SIGNAL", "SIGINT")
    done = cli(*WIDE, *CPU)
    assert (done.code, done.err.splitlines()[-1]) == (130, "manyhead toy: interrupted")


def test_the_interrupt_signal_works_again_after_a_run(cli, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("TOY_KILL_AT", "3")
    monkeypatch.setenv("TOY_SIGNAL", "SIGINT")
    cli(*WIDE, *CPU)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_can_go_on_for_more_epochs(cli, tmp_path):
    assert cli(*WIDE, *CPU, "--name", "whole").code == 0
    short = ("--trainer.max_epochs", "1", "--name", "short")
    assert cli(*WIDE, *CPU, *short).code == 0
    done = cli("toy", "fit", "--resume", "runs/toy/short/0", "--trainer.max_epochs", "3")
    assert done.code == 0
    assert_same_run(tmp_path / "runs/toy/whole/0", tmp_path / "runs/toy/short/0")


def test_a_moved_run_resumes_in_its_new_place(cli, tmp_path):
    assert cli(*WIDE, *CPU, "--trainer.max_epochs", "1").code == 0
    (tmp_path / "runs/toy/wide/0").rename(tmp_path / "moved")
    assert cli("toy", "fit", "--resume", "moved", "--trainer.max_epochs", "2").code == 0
    assert last(tmp_path / "moved")["global_step"] == 24
    assert not (tmp_path / "runs/toy/wide/0").exists()


def rates(folder):
    return [value for _, value in logged(folder, "lr-SGD")]


def test_flags_beat_the_hyper_parameters_of_a_checkpoint(fit, cli, tmp_path):
    assert fit("--trainer.max_epochs", "1").code == 0
    run = "runs/toy/small/0"
    done = cli(
        *("toy", "fit", "--resume", run, "--trainer.max_epochs", "3"),
        *("--model.lr", "0.5", "--model.momentum", "0"),
    )
    assert done.code == 0
    saved = last(tmp_path / run)
    group = saved["optimizer_states"][0]["param_groups"][0]
    # The schedule halves the rate every two epochs.
    assert (group["initial_lr"], group["lr"], group["momentum"]) == (0.5, 0.25, 0)
    assert saved["hyper_parameters"]["lr"] == 0.5


def test_without_flags_the_checkpoint_decides(fit, cli, tmp_path):
    assert fit("--trainer.max_epochs", "1", "--model.lr", "0.05").code == 0
    path = "runs/toy/small/0/checkpoints/last.ckpt"
    fit_more = ("toy", "fit", "--data.root", "data", "--ckpt_path", path)
    assert cli(*fit_more, "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu").code == 0
    saved = last(tmp_path / "runs/toy/small/0")
    assert saved["hyper_parameters"]["lr"] == 0.05
    assert saved["hyper_parameters"]["net"]["hidden"] == [5]


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    files = AtomicFiles()
    files.save_checkpoint({"step": 1}, path)

    def die(*_):
        raise OSError("killed while writing")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(OSError, match="killed"):
        files.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    monkeypatch.undo()
    files.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["last.ckpt"]
