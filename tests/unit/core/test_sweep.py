import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.registry import get
from manyhead_core.errors import ConfigError, UserError
from manyhead_core.sweep import run, worker
from manyhead_core.sweep.cells import make_cells, read_seeds, read_variants
from manyhead_core.sweep.slurm import script
from manyhead_core.sweep.table import summarise

# Stands in for the `manyhead` command: keeps a journal, leaves what fit and test leave.
PROGRAM = """
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
with open(os.environ["JOURNAL"], "a") as file:
    file.write(json.dumps(words) + "\\n")
options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
following = dict(zip(words, words[1:]))
if words[1] == "fit" and "--resume" not in words:
    parent = Path(options["runs"], words[0], options["name"])
    run = parent / str(len([path for path in parent.glob("*") if path.name.isdigit()]))
    (run / "checkpoints").mkdir(parents=True)
    if options.get("model.fail"):
        sys.exit("working\\nmanyhead autoint: model.fail: is set")
    (run / "checkpoints" / "last.ckpt").write_text(json.dumps(options))
    if options.get("model.die") and not os.environ.get("SURVIVE"):
        os._exit(9)
elif words[1] == "test":
    run = Path(following["--run"])
    options = json.loads((run / "checkpoints" / "last.ckpt").read_text())
    value = float(options.get("model.lr", 1)) + 0.1 * int(options["seed_everything"])
    entry = {"value": value, "low": None, "high": None}
    fold = int(options.get("data.fold", 0))
    names = [0, 1] if options.get("model.overlap") else [2 * fold, 2 * fold + 1]
    scores = [0.2 + 0.1 * fold, 0.7 + 0.1 * fold]
    rows = [f"{name},{k},ok,{score}" for k, (name, score) in enumerate(zip(names, scores))]
    (run / "predictions.csv").write_text("\\n".join(["id,label,status,score", *rows]) + "\\n")
    (run / "metrics.json").write_text(json.dumps({"metrics": {"logloss": entry}}))
"""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(worker, "PROGRAM", (sys.executable, "-S", str(program)))
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    return tmp_path / "journal"


def calls(journal: Path) -> list[list[str]]:
    lines = journal.read_text().splitlines() if journal.exists() else []
    journal.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def sweep(out: Path, *overrides: str, **options: object) -> int:
    return run.sweep(get("autoint"), overrides, **{"out": out, "seeds": "0,1", **options})


def test_every_cell_is_fitted_and_tested_and_tabulated(
    tmp_path: Path, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(out, "data.root=/x y", variants="base;high:model.lr=2", jobs=2) == 0
    made = calls(journal)
    assert len(made) == 8
    fits = {words[-1]: words for words in made if words[1] == "fit"}
    assert "--data.root=/x y" in fits["--name=base/seed-0"]
    assert "--model.lr=2" in fits["--name=high/seed-1"]
    table = pd.read_csv(out / "summary.csv").set_index("variant")
    assert table.loc["base", "mean"] == pytest.approx(1.05)
    assert table.loc["base", "sd"] == pytest.approx(0.1 / 2**0.5)
    assert table.loc["high", "difference"] == pytest.approx(1.0)
    assert table.loc["high", "low"] == pytest.approx(1.0)
    assert json.loads((out / "summary.json").read_text())["rows"][0]["runs"] == 2
    assert len(pd.read_csv(out / "cells.csv")) == 4
    assert list(pd.read_csv(out / "report.csv")["status"]) == ["done"] * 4
    assert "logloss  high" in capsys.readouterr().out


def test_a_second_start_runs_only_what_is_missing_or_changed(tmp_path: Path, journal: Path) -> None:
    out = tmp_path / "out"
    sweep(out)
    calls(journal)
    sweep(out)
    assert calls(journal) == []
    sweep(out, seeds="0-2")
    assert len(calls(journal)) == 2
    earlier = out / "autoint/base/seed-0/0/metrics.json"
    before = earlier.read_text()
    sweep(out, "model.lr=3")
    assert len(calls(journal)) == 4
    assert earlier.read_text() == before
    assert pd.read_csv(out / "summary.csv")["mean"][0] == pytest.approx(3.05)
    (out / "autoint/base/seed-1/1/predictions.csv").unlink()
    sweep(out, "model.lr=3")
    assert [words[1] for words in calls(journal)] == ["test"]


def test_an_interrupted_cell_goes_on_from_its_checkpoint(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="all 1 runs failed"):
        sweep(out, "model.die=1", seeds="0")
    calls(journal)
    monkeypatch.setenv("SURVIVE", "1")
    assert sweep(out, "model.die=1", seeds="0") == 0
    cell = str(out / "autoint/base/seed-0/0")
    assert calls(journal) == [
        ["autoint", "fit", "--resume", cell],
        ["autoint", "test", "--run", cell],
    ]


@pytest.mark.usefixtures("journal")
def test_a_failed_cell_is_listed_with_its_line_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    variants = "base;bad:model.fail=1"
    assert sweep(out, variants=variants) == 0
    report = pd.read_csv(out / "report.csv").set_index("id")
    assert report.loc["bad/seed-1", "status"] == "failed"
    assert report.loc["bad/seed-1", "error"] == "fit ended with code 1: model.fail: is set"
    assert report.loc["base/seed-1", "status"] == "done"
    assert "2 of 4 runs failed" in capsys.readouterr().err
    assert sweep(out, variants=variants, strict=True) == 2
    with pytest.raises(UserError, match=r"all 1 runs failed.*model.fail: is set"):
        sweep(tmp_path / "none", "model.fail=1", seeds="0")
    log = (out / "autoint/bad/seed-0/log.txt").read_text()
    assert log.startswith("$ manyhead autoint fit")


@pytest.mark.usefixtures("journal")
def test_the_samples_of_all_folds_are_evaluated_as_one_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(out, folds=3) == 0
    table = pd.read_csv(out / "summary.csv").set_index("metric")
    assert table.loc["logloss", "runs"] == 6
    assert table.loc["pooled/auroc", "runs"] == 2
    assert table.loc["pooled/auroc", "mean"] == 1.0
    scores = np.array([0.2, 0.3, 0.4, 0.7, 0.8, 0.9])
    expected = -np.log(np.r_[1 - scores[:3], scores[3:]]).mean()
    assert table.loc["pooled/logloss", "mean"] == pytest.approx(expected)


@pytest.mark.usefixtures("journal")
def test_folds_that_share_samples_are_not_pooled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "out", "model.overlap=1", folds=2, seeds="0") == 0
    assert not pd.read_csv(tmp_path / "out/summary.csv")["metric"].str.startswith("pooled").any()
    assert "two folds test the same sample" in capsys.readouterr().err


def test_one_cell_of_an_array(tmp_path: Path, journal: Path) -> None:
    out = tmp_path / "out"
    assert sweep(out, cell=1) == 0
    assert [words[1] for words in calls(journal)] == ["fit", "test"]
    assert (out / "autoint/base/seed-1/0/metrics.json").is_file()
    assert not (out / "summary.csv").exists()
    assert sweep(out, "model.fail=1", cell=0) == 2
    with pytest.raises(ConfigError, match="--cell: 2 is not one of the 2 cells"):
        sweep(out, cell=2)


def test_folds_are_cells_of_their_own(tmp_path: Path, journal: Path) -> None:
    sweep(tmp_path / "out", folds=3, seeds="5")
    fits = [words for words in calls(journal) if words[1] == "fit"]
    assert [words[-1] for words in fits] == [f"--name=base/seed-5-fold-{k}" for k in range(3)]
    assert {"--data.split=fold", "--data.folds=3", "--data.fold=2"} <= set(fits[2])


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, journal: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.csv").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        sweep(out)
    assert (out / "report.csv").read_text() == "mine"
    assert calls(journal) == []


def test_the_slurm_script_repeats_the_command_for_one_cell(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.sh"
    typed = ["manyhead", "autoint", "sweep", "data.root=/a b", "--slurm", str(file), "--seeds=0,1"]
    monkeypatch.setattr(sys, "argv", typed)
    assert sweep(tmp_path / "out", "data.root=/a b", slurm=file) == 0
    text = file.read_text()
    assert "#SBATCH --array=0-1\n" in text
    command = f"{sys.executable} -m manyhead autoint sweep 'data.root=/a b' --seeds=0,1 --cell"
    assert f'{command} "$SLURM_ARRAY_TASK_ID"' in text
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert calls(journal) == []
    file.write_text("echo mine")
    with pytest.raises(UserError, match="is no script of a sweep"):
        sweep(tmp_path / "out", slurm=file)


def test_a_script_limits_tasks_only_where_asked() -> None:
    assert "#SBATCH --array=0-3\n" in script(["a"], 4, 4, "x")
    assert "#SBATCH --array=0-3%2\n" in script(["a"], 4, 2, "x")


def test_variants_from_text_and_from_yaml_are_the_same(tmp_path: Path) -> None:
    text = "base; wide:model.net.dim=32,model.net.widths=[64,64],model.lr=1e-3"
    file = tmp_path / "variants.yaml"
    file.write_text(
        "base:\nwide:\n  model: {net: {dim: 32, widths: [64, 64]}, lr: 1e-3}\n", encoding="utf-8"
    )
    found = read_variants(text)
    assert list(found) == ["base", "wide"]
    assert found["wide"] == {
        "model.net.dim": "32",
        "model.net.widths": "[64,64]",
        "model.lr": "1e-3",
    }
    from_file = read_variants(str(file))
    assert from_file["wide"] == found["wide"] | {"model.net.widths": "[64, 64]"}
    assert read_variants("") == {"base": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:dim", "write KEY=VALUE"),
        ("a;a:x=1", "occurs twice"),
        ("../x:y=1", "must be of letters"),
        ("none.yaml", "does not exist"),
    ],
)
def test_variants_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_variants(text)


def test_seeds() -> None:
    assert read_seeds("0,1,2") == [0, 1, 2]
    assert read_seeds("[3, 5-7, 5]") == [3, 5, 6, 7]
    for text in ("", "a", "1-", "3-1"):
        with pytest.raises(ConfigError, match="--seeds"):
            read_seeds(text)


def test_the_identity_of_a_cell_follows_what_it_depends_on() -> None:
    def identities(*overrides: str, seeds: str = "0") -> list[str]:
        options = ("", overrides, "", seeds, 0, "")
        return [cell.identity() for cell in make_cells(get("autoint"), *options)]

    base = identities("a=1", "b=2")
    assert base == identities("b=2", "--a=1")
    assert base != identities("a=1", "b=3")
    assert base != identities("a=1", "b=2", seeds="1")


def test_differences_are_paired_by_seed() -> None:
    generator = np.random.default_rng(0)
    by_seed = generator.normal(size=5)
    rows = [
        {"variant": variant, "seed": seed, "fold": -1, "metric": "auroc", "value": value}
        for variant, change in (("a", 0.0), ("b", 0.1))
        for seed, value in enumerate(by_seed + change + 0.001 * generator.normal(size=5))
        if not (variant == "a" and seed == 4)
    ]
    first, second = summarise(pd.DataFrame(rows))
    assert (first.runs, first.pairs, first.difference) == (4, 0, None)
    assert (second.runs, second.pairs) == (5, 4)
    assert second.difference == pytest.approx(0.1, abs=0.003)
    assert second.low < second.difference < second.high < 0.2


def test_mistakes_in_the_call_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--jobs must be at least 1"):
        sweep(tmp_path / "out", jobs=0)
    with pytest.raises(ConfigError, match=r"override 'data\.root': write KEY=VALUE"):
        sweep(tmp_path / "out", "data.root")
    assert not (tmp_path / "out").exists()
