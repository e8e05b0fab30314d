"""Two processes train like one with the batch of both."""

from __future__ import annotations

import csv

import pytest
import torch

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "4")
FIT = ("toy", "fit", "--config", "small", "--data.root", "data", "--trainer.accelerator", "cpu")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def losses(folder):
    with (folder / "metrics.csv").open(encoding="utf-8") as lines:
        return [float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"]]


def weights(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["ddp", "torchrun"])
def test_two_processes_equal_one(cli, program, tmp_path, launcher):
    assert cli(*FIT, "--name", "one").code == 0
    done = program(*FIT, *TWO, "--name", "two", launcher=launcher)
    assert done.code == 0, done.err
    one, two = (tmp_path / f"runs/toy/{name}/0" for name in ("one", "two"))
    assert [path.name for path in two.parent.iterdir()] == ["0"]
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=1e-5)
    assert "2 process(es)" in (two / "environment.txt").read_text(encoding="utf-8")
    assert done.out.count("best val/loss") == 1
    assert done.err.count("run folder") == 1


def test_a_run_of_two_processes_resumes_and_is_tested_on_one(cli, program, tmp_path):
    two = (*TWO, "--name", "two")
    assert program(*FIT, *two, "--trainer.max_epochs", "1").code == 0
    done = program("toy", "fit", "--resume", "runs/toy/two/0", "--trainer.max_epochs", "3")
    assert done.code == 0, done.err
    assert cli(*FIT, "--name", "one").code == 0
    folder = tmp_path / "runs/toy/two/0"
    torch.testing.assert_close(
        weights(folder), weights(tmp_path / "runs/toy/one/0"), rtol=0, atol=1e-5
    )
    assert cli("toy", "test", "--run", "runs/toy/two/0", "--data.root", "data").code == 0
