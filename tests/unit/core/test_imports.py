"""What a fresh interpreter pays for: help imports no torch, a model no trainer."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from manyhead import registry

HEAVY = ("pytorch_lightning", "pandas", "monai", "mne", "sklearn")


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a fresh interpreter has imported after `code`."""
    program = f"import sys\n{code}\nprint('loaded', *(n for n in {names} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("name", registry.apps())
def test_model_needs_torch_and_nothing_heavier(name: str) -> None:
    row = registry.get(name)
    package, kind = row.model.split(":")
    code = f"from {package.rpartition('.')[0]} import {kind}; import manyhead_core.attention"
    assert loaded(code, ("torch", *HEAVY)) == ["torch"]


@pytest.mark.parametrize("words", [[], ["--help"], ["autoint"], ["data"], ["--version"], ["autin"]])
def test_help_imports_neither_torch_nor_numpy(words: list[str]) -> None:
    code = f"from manyhead.__main__ import main\nmain({words})"
    assert loaded(code, ("torch", "numpy", *HEAVY)) == []


def test_catalogue_needs_no_torch() -> None:
    code = "from manyhead_core.data import cards, check\nassert cards.load()"
    assert loaded(code, ("torch", "numpy", *HEAVY)) == []


def test_help_through_the_module(capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-m", "manyhead", "--help"], check=True, timeout=120)
    out = capfd.readouterr().out
    for name in (*registry.apps(), "doctor", "data check"):
        assert f"  {name} " in out


@pytest.mark.parametrize("name", registry.apps())
def test_every_string_of_a_row_points_to_something(name: str) -> None:
    row = registry.get(name)
    for part in ("model", "config", "task", "data", "evaluate", "demo"):
        assert callable(row.load(part)), part
    for command in (*row.commands, *registry.TOP_COMMANDS):
        package, _, function = command.run.partition(":")
        assert callable(getattr(importlib.import_module(package), function)), command.name
