"""The configs that an app ships, by name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from manyhead_core.app import App, find
from manyhead_core.cli import console
from manyhead_core.errors import UserError

SUFFIXES = (".yaml", ".yml")


def shipped(app: App) -> dict[str, Path]:
    """The YAML files in the `configs` folder of an app, by name; the app is not imported."""
    package = app.task.partition(":")[0].rpartition(".")[0]
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations or []) if spec else []
    files = (file for root in roots for file in sorted(Path(root, "configs").glob("*.yaml")))
    return {file.stem: file for file in files}


def resolve(app: App, given: str) -> Path:
    """The file behind a `--config` value: a shipped name, or a path that ends in .yaml.

    Raises:
        UserError: No shipped config has this name, or the file does not exist.
    """
    if not given.endswith(SUFFIXES):
        known = shipped(app)
        return known[find(given, known, "config")]
    path = Path(given)
    if not path.is_file():
        raise UserError(f"--config: file {given} does not exist")
    return path


def configs(app: App, name: str | None = None, /) -> None:
    """List the shipped configs with the number each should reach, or show one.

    Args:
        app: The app.
        name: Config whose file is written to stdout.
    """
    if name is not None:
        console.result(resolve(app, name).read_text(encoding="utf-8").rstrip())
        return
    rows = [(stem, *describe(path)) for stem, path in shipped(app).items()]
    console.table(f"Configs of {app.title}", ("config", "what", "to reach"), rows)


def describe(path: Path) -> tuple[str, str]:
    """First comment line of a config, and what its line `# Reach: ...` promises."""
    comments = [
        line.lstrip("# ").rstrip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    comments = [line for line in comments if line]
    promised = (re.sub(r"(?i)^reach(es)?:\s*", "", line) for line in comments if _promises(line))
    return (comments[0] if comments else ""), next(promised, "")


def _promises(line: str) -> bool:
    return re.match(r"(?i)reach(es)?:", line) is not None
