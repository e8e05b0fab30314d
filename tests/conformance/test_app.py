"""What every row of the registry promises: commands, configs, model card, a run."""

import inspect
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from manyhead import registry
from manyhead.__main__ import main
from manyhead_core.app import App
from manyhead_core.cli.configs import describe, shipped

COMMANDS = {
    "predict", "import", "export", "simulate", "explain", "report", "configs", "inspect", "split",
    "calibrate", "sweep",
}  # fmt: skip
# Options of a run on simulated data, for a table of `manyhead APP simulate FOLDER`.
SIMULATED = {
    "acmil": (
        "--config",
        "simulated",
        "--data.root",
        "{folder}/features",
        "--data.labels",
        "{folder}/labels.csv",
    ),
    "autoint": (
        "--config",
        "simulated",
        "--data.root",
        "{folder}/clicks.csv",
        "--data.schema",
        "{folder}/schema.yaml",
        "--data.cache",
        "{cache}",
    ),
    "mvpformer": ("--config", "simulated", "--data.root", "{folder}"),
}
# Words of `simulate` where its usual size takes long.
SIMULATION = {
    "mvpformer": ("--patients", "4", "--minutes", "8", "--channels", "4", "--rate", "128")
}


def package(app: App) -> Path:
    spec = find_spec(app.task.split(":")[0].rpartition(".")[0])
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def test_every_command_is_there_and_documented(app: App) -> None:
    assert {command.name for command in app.commands} >= COMMANDS
    for command in (*app.commands, *registry.TOP_COMMANDS):
        function = pkgutil.resolve_name(command.run)
        described = inspect.getdoc(function) or ""
        for name in inspect.signature(function).parameters:
            assert re.search(rf"^ +{name}: ", described, re.MULTILINE), f"{command.name}: {name}"


def test_every_part_of_the_row_resolves(app: App) -> None:
    for part in ("model", "config", "task", "data", "evaluate", "demo"):
        assert callable(app.load(part)), part
    assert app.load("model").app == app.name
    assert app.load("model").medical == app.medical


def test_configs_say_what_they_are_and_what_to_reach(app: App) -> None:
    found = shipped(app)
    assert found
    for name, path in found.items():
        what, reach = describe(path)
        assert what, name
        assert reach, f"{name}: add a line `# Reach: ...`"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content.keys() <= {"model", "data", "trainer", "early_stopping", "seed_everything"}


def test_configs_are_accepted_by_the_parser(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    for name in shipped(app):
        words = [
            "fit",
            "--config",
            name,
            "--data.root",
            "/nowhere/at/all",
            "--trainer.fast_dev_run",
        ]
        code = main([app.name, *words, "1"])
        shown = capsys.readouterr().err
        assert code == 2, name
        assert "/nowhere/at/all" in shown.replace("\n", " "), f"{name}: {shown}"


def test_model_card_matches(app: App) -> None:
    card = (package(app) / "README.md").read_text(encoding="utf-8")
    assert "arxiv" in card.lower()
    assert "## Limits" in card
    for name in re.findall(r"--config ([a-z0-9-]+)", card):
        assert name in shipped(app), f"the card names the config {name}"
    if app.medical:
        assert "not a medical device" in card


def test_one_step_from_simulated_data(app: App, tmp_path: Path) -> None:
    assert app.name in SIMULATED, f"{app.name}: add a row to SIMULATED"
    few = SIMULATION.get(app.name, ())
    assert main([app.name, "simulate", str(tmp_path / "data"), *few]) == 0
    folders = {"folder": tmp_path / "data", "cache": tmp_path / "cache"}
    words = [word.format(**folders) for word in SIMULATED[app.name]]
    places = ["--runs", str(tmp_path / "runs")]
    code = main([app.name, "fit", *words, *places, "--trainer.fast_dev_run", "1"])
    assert code == 0
    assert not (tmp_path / "runs").exists(), "a trial run leaves no run folder"
