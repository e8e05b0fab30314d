"""Mixers of the attention core; each mechanism has its replay in a module `core_<name>`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from comparison import Reference

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("core_*.py"))


def mechanisms() -> dict[str, Callable[[Reference], None]]:
    """Replay by the name that headers give to the mechanism."""
    found: dict[str, Callable[[Reference], None]] = {}
    for module in MODULES:
        found |= import_module(module).MECHANISMS
    return found


CASES = mechanisms()


def replay(reference: Reference) -> None:
    """Replay the mechanism that the header names."""
    CASES[reference.config["case"]](reference)
