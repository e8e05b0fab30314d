"""Every mistake in a training command costs one line and exit code 2."""

from __future__ import annotations

import pytest
import torch

CASES = {
    "option": (("--modle.lr", "1"), ("unknown option --modle.lr", "did you mean --model.lr?")),
    "nested option": (("--model.net.hiden", "[3]"), ("did you mean --model.net.hidden?",)),
    "stray word": (("word",), ("word",)),
    "value": (("--model.lr", "fast"), ("model.lr: got 'fast', expected float",)),
    "list without brackets": (
        ("--model.net.hidden", "3,4"),
        ("model.net.hidden: got '3,4', expected a list; write '[3,4]'",),
    ),
    "part of a path": (("--data.root.a", "b"), ("data.root: takes one value and has no parts",)),
    "part of a number": (("--model.lr.a", "1"), ("model.lr: takes one value and has no parts",)),
    "trainer value": (
        ("--trainer.max_epochs", "many"),
        ("trainer.max_epochs: got 'many', expected int or null",),
    ),
    "nested value": (
        ("--early_stopping.patience", "x"),
        ("manyhead toy fit: ", "patience: got 'x', expected int"),
    ),
    "value of the config dataclass": (
        ("--model.net.dropout", "1.5"),
        ("dropout must be in [0, 1), got 1.5",),
    ),
    "accelerator": (("--trainer.accelerator", "gpu"), ("no such device; use cpu or auto",)),
    "precision": (("--trainer.precision", "12-true"), ("12-true",)),
    "no value": (("--config",), ("--config: needs a value",)),
    "unknown config": (("--config", "smal"), ("unknown config 'smal'; did you mean small?",)),
    "missing config file": (("--config", "my.yaml"), ("--config: file my.yaml does not exist",)),
    "missing checkpoint": (
        ("--ckpt_path", "no.ckpt"),
        ("--ckpt_path: file no.ckpt does not exist",),
    ),
    "missing run": (("--resume", "runs/9"), ("--resume: folder runs/9 does not exist",)),
    "foreign folder": (("--resume", "data"), ("--resume: data holds no config.yaml",)),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes_of_fit(fit, name):
    words, parts = CASES[name]
    done = fit(*words)
    assert (done.code, done.out) == (2, "")
    assert done.line.startswith("manyhead toy")
    assert all(part in done.line for part in parts), done.line
    assert len(done.line) < 400


def test_a_required_option_is_missing(cli):
    done = cli("toy", "fit")
    assert done.code == 2
    assert "data.root" in done.line


def test_errors_in_the_data(cli, tmp_path):
    done = cli("toy", "fit", "--data.root", "empty")
    assert done.code == 2
    assert done.line == "manyhead toy: data.root: empty/rows.csv does not exist; run the simulator"
    assert not any((tmp_path / "runs").rglob("*.ckpt"))
    assert not (tmp_path / "runs" / "toy" / "default" / "0").exists(), "nothing was run"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("model: {lr: fast}", "model.lr"),
        ("modle: {lr: 1}", "modle"),
        ("model: {net: {dropout: 2.0}}", "dropout must be in [0, 1), got 2.0"),
        ("model: [", "my.yaml"),
        ("- a list", "my.yaml"),
        ("just text", "my.yaml"),
    ],
)
def test_errors_in_a_config_file(fit, tmp_path, content, part):
    (tmp_path / "my.yaml").write_text(content, encoding="utf-8")
    done = fit("--config", "my.yaml")
    assert done.code == 2
    assert part in done.line


def test_runs_cannot_be_written(fit, tmp_path):
    (tmp_path / "file").touch()
    done = fit("--runs", "file")
    assert done.code == 2
    assert "--runs: cannot write file/toy/small/0" in done.line


@pytest.mark.parametrize("command", ["test", "validate"])
def test_evaluation_needs_weights(cli, command):
    done = cli("toy", command, "--data.root", "data")
    assert done.code == 2
    assert done.line == (
        f"manyhead toy: {command}: no weights; pass --run FOLDER or --ckpt_path FILE"
    )


def save(path, **content):
    torch.save(content, path)
    return str(path)


def test_unusable_checkpoints(cli, tmp_path):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"not a checkpoint")
    foreign = save(tmp_path / "foreign.ckpt", state_dict={})
    plain = tmp_path / "plain.ckpt"
    torch.save([1, 2], plain)
    other = save(tmp_path / "other.ckpt", manyhead={"app": "acmil"}, hyper_parameters={})
    odd = save(tmp_path / "odd.ckpt", manyhead=3, hyper_parameters={})
    bare = save(tmp_path / "bare.ckpt", manyhead={"app": "toy"})
    for path, part in [
        (damaged, "is damaged or not a checkpoint"),
        (foreign, "was not written by fit; convert foreign weights with import"),
        (plain, "was not written by fit"),
        (other, "belongs to the app acmil, not to toy"),
        (odd, "was not written by fit"),
        (bare, "was not written by fit"),
    ]:
        done = cli("toy", "test", "--data.root", "data", "--ckpt_path", str(path))
        assert done.code == 2
        assert "--ckpt_path: " in done.line
        assert part in done.line


def test_half_a_checkpoint(cli, fit, tmp_path):
    assert fit("--trainer.max_epochs", "1").code == 0
    whole = tmp_path / "runs/toy/small/0/checkpoints/best.ckpt"
    half = tmp_path / "half.ckpt"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = cli("toy", "test", "--data.root", "data", "--ckpt_path", str(half))
    assert done.code == 2
    assert "is damaged or not a checkpoint" in done.line


def test_weights_that_do_not_fit(cli, fit):
    assert fit("--trainer.max_epochs", "1").code == 0
    done = cli(
        *("toy", "test", "--run", "runs/toy/small/0", "--data.root", "data"),
        *("--model.net.hidden", "[9]"),
    )
    assert done.code == 2
    assert "--ckpt_path: the weights do not fit the network: size mismatch" in done.line


def test_other_data_than_in_the_fit(cli, fit, tmp_path):
    assert fit("--trainer.max_epochs", "1").code == 0
    rows = tmp_path / "data/rows.csv"
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows.csv").write_text(
        rows.read_text(encoding="utf-8").replace("0.1", "0.2"), encoding="utf-8"
    )
    done = cli("toy", "test", "--run", "runs/toy/small/0", "--data.root", "other")
    assert done.code == 2
    assert "the encoding differs from the one in the checkpoint" in done.line


def test_a_loss_that_is_no_number_stops_the_run(fit, tmp_path):
    done = fit("--model.lr", "1e30")
    assert done.code == 2
    line = done.err.splitlines()[-1]
    assert line.startswith("manyhead toy: the training loss is not finite at step ")
    assert "with model.lr 1e+30; lower --model.lr" in line
    assert "Traceback" not in done.err
    for file in (tmp_path / "runs").rglob("*.ckpt"):
        weights = torch.load(file, weights_only=True)["state_dict"].values()
        assert all(bool(weight.isfinite().all()) for weight in weights)
