"""Run folders, configs, verbosity: what a fit reads, writes and says."""

from __future__ import annotations

import csv
import re
import warnings

import pytest
import torch
import yaml


def config_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def test_a_run_folder_holds_what_is_needed_to_repeat_it(fit, tmp_path):
    done = fit()
    folder = tmp_path / "runs/toy/small/0"
    assert done.code == 0
    assert re.fullmatch(r"best val/loss 0\.\d+; run folder runs/toy/small/0\n", done.out)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "environment.txt", "split.csv"} <= names
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    environment = (folder / "environment.txt").read_text(encoding="utf-8")
    assert f"torch: {torch.__version__}\n" in environment
    assert "run on: cpu, 1 process(es)\n" in environment
    with (folder / "metrics.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert sum(row["val/loss"] != "" for row in rows) == 3


def test_a_normal_run_says_no_more_than_it_has_to(fit):
    assert fit().err.splitlines() == [
        "manyhead toy: research use only, not a medical device",
        "run folder runs/toy/small/0; 26 parameters",
    ]


def test_one_line_an_epoch_in_a_pipe(cli):
    done = cli("toy", "fit", "--data.root", "data", "--trainer.max_epochs", "2")
    lines = [line for line in done.err.splitlines() if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "train/loss" in lines[0]
    assert "val/loss" in lines[0]


def test_q_leaves_only_the_result(fit):
    done = fit("-q")
    assert done.err == ""
    assert done.out.startswith("best val/loss")


def test_v_shows_what_lightning_says(fit, caplog):
    quick = ("--trainer.max_epochs", "1")
    assert fit(*quick).code == 0
    assert not [record for record in caplog.records if record.name.startswith("pytorch_lightning")]
    assert fit("-v", *quick).code == 0
    assert "`Trainer.fit` stopped: `max_epochs=1` reached." in caplog.text
    assert "Tip:" not in caplog.text


def test_clipping(fit):
    assert fit("--trainer.max_epochs", "1", "--trainer.gradient_clip_val", "0.5").code == 0


def test_warnings_are_one_line(fit, recwarn):
    """Lightning's warnings carry a file, a line and a class that tell a user nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = fit("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    assert done.code in (0, 2)
    noted = [line for line in done.err.splitlines() if "arning" in line]
    assert all(line.startswith("manyhead toy: warning: ") for line in noted)
    assert not recwarn.list


def test_runs_are_numbered(fit, tmp_path):
    (tmp_path / "runs/toy/small/7").mkdir(parents=True)
    (tmp_path / "runs/toy/small/notes").mkdir()
    quick = ("--trainer.max_epochs", "1")
    assert "runs/toy/small/8" in fit(*quick).out
    assert "runs/toy/small/9" in fit(*quick).out
    assert "elsewhere/toy/mine/0" in fit(*quick, "--runs", "elsewhere", "--name", "mine").out


def test_configs_merge_from_left_to_right_and_flags_win(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "model: {momentum: 0.25}\ntrainer: {max_epochs: 1}\n", encoding="utf-8"
    )
    done = cli(
        *("toy", "fit", "--model.lr", "0.05", "--config", "small", "-c", "wide"),
        *("--config=mine.yaml", "--data.root", "data"),
    )
    assert done.code == 0
    assert "runs/toy/small+wide+mine/0" in done.out
    config = config_of(tmp_path / "runs/toy/small+wide+mine/0")
    net = config["model"]["net"]
    assert (net["hidden"], net["dropout"], net["num_features"]) == ([7, 3], 0.25, 3)
    assert (config["model"]["lr"], config["model"]["momentum"]) == (0.05, 0.25)
    assert config["trainer"]["max_epochs"] == 1


def test_a_run_repeats_from_its_own_config_to_the_last_bit(fit, cli, tmp_path):
    assert fit("--model.net.dropout", "0.3", "--seed_everything", "5").code == 0
    first = tmp_path / "runs/toy/small/0"
    assert cli("toy", "fit", "--config", str(first / "config.yaml"), "--name", "again").code == 0
    again = tmp_path / "runs/toy/again/0"
    same_weights(first, again, tolerance=0)
    assert (first / "metrics.csv").read_bytes() == (again / "metrics.csv").read_bytes()


def same_weights(first, second, tolerance=1e-6):
    states = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (first, second)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=tolerance)


def test_the_seed_decides(fit, tmp_path):
    quick = ("--trainer.max_epochs", "1")
    assert fit(*quick).code == 0
    assert fit(*quick, "--seed_everything", "1").code == 0
    folders = [tmp_path / f"runs/toy/small/{number}" for number in (0, 1)]
    with pytest.raises(AssertionError):
        same_weights(*folders, tolerance=1e-3)


def test_epochs_are_ten_unless_another_limit_is_given(cli, tmp_path):
    fit = ("toy", "fit", "--data.root", "data", "--trainer.accelerator", "cpu", "-q")
    assert cli(*fit).code == 0
    assert cli(*fit, "--trainer.max_steps", "150").code == 0
    steps = [
        torch.load(tmp_path / f"runs/toy/default/{run}/checkpoints/last.ckpt", weights_only=True)[
            "global_step"
        ]
        for run in (0, 1)
    ]
    assert steps == [120, 150]


def test_early_stopping(fit):
    stop = ("--early_stopping.patience", "1", "--early_stopping.min_delta", "10")
    done = fit("--trainer.max_epochs", "50", "--trainer.enable_progress_bar", "null", *stop)
    assert done.code == 0
    assert sum(line.startswith("epoch") for line in done.err.splitlines()) == 2


def test_fast_dev_run_writes_nothing(fit, tmp_path):
    assert fit("--trainer.fast_dev_run", "1").code == 0
    assert not (tmp_path / "runs").exists()


def test_a_run_leaves_no_traces_in_the_process(fit):
    deterministic = torch.are_deterministic_algorithms_enabled()
    assert fit("--trainer.max_epochs", "1").code == 0
    assert torch.are_deterministic_algorithms_enabled() == deterministic


@pytest.mark.parametrize("command", ["fit", "test"])
def test_help_of_a_training_command_is_readable(cli, command):
    done = cli("toy", command, "--help")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) < 110
    assert lines[0].startswith(f"usage: manyhead toy {command} [--config NAME_OR_FILE]")
    for option in ("--data.root", "--model.lr", "--model.net.hidden", "--trainer.max_epochs"):
        assert option in done.out
    assert ("--resume" if command == "fit" else "--run FOLDER") in done.out
    assert "<class" not in done.out


def test_help_with_v_shows_every_option_of_the_trainer(cli):
    assert "--trainer.sync_batchnorm" not in cli("toy", "fit", "--help").out
    assert "--trainer.sync_batchnorm" in cli("-v", "toy", "fit", "--help").out


def test_print_config(fit):
    done = fit("--print_config")
    assert done.code == 0
    assert yaml.safe_load(done.out)["model"]["lr"] == 0.2


def test_configs_lists_what_each_should_reach(cli):
    out = cli("toy", "configs").out
    assert "small" in out
    assert "Toy run, no paper." in out
    assert "val/loss 0.3" in out
    assert cli("toy", "configs", "wide").out.startswith("# Wider toy.\n")
