"""A folder of results belongs to one command, its weights and its options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.files import plain, read_json, replace_json
from manyhead_core.training.environment import environment
from manyhead_core.training.results import RESEARCH_ONLY

MANIFEST = "manifest.json"
FORMAT = 1
SHORT = 60


def claim(out: Path, command: str, setup: Mapping[str, Any], *, overwrite: bool = False) -> str:
    """Make the folder one of this command and set-up.

    Args:
        out: Folder.
        command: Name of the command.
        setup: All that decides the results.
        overwrite: Whether results of another set-up give way.

    Returns:
        A key that changes with the set-up.

    Raises:
        UserError: The folder holds results of another set-up, or something else.
    """
    wanted = plain(json.loads(json.dumps({"format": FORMAT, "command": command, **setup})))
    path = out / MANIFEST
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; choose a folder")
    if path.is_file():
        _compare(out, read_json(path).get("setup"), wanted, overwrite=overwrite)
    elif out.is_dir() and any(not file.name.startswith(".") for file in out.iterdir()):
        raise UserError(
            f"out: {out} holds files but no results of {command}; choose a new or empty folder"
        )
    about = {"note": RESEARCH_ONLY, "setup": wanted, "environment": environment()}
    replace_json(path, about)
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]


def _compare(out: Path, found: Any, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    if not isinstance(found, Mapping) or found.get("command") != wanted["command"]:
        raise UserError(
            f"out: {out} holds results of another command than {wanted['command']}; choose another "
            "folder"
        )
    before, now = _flat(found), _flat(wanted)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name) and not overwrite:
            raise UserError(
                f"out: {out} was made with {name} {_short(before.get(name))}, not "
                f"{_short(now.get(name))}; choose another folder, or pass --overwrite"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


@dataclass(frozen=True)
class Finished:
    """Which recordings are done: each has ID.json, written last.

    Args:
        out: Folder of the results.
        key: Of the set-up.
        digest: What the file of a recording holds, by its id, so that another file of the same name
            is not taken for it.
    """

    out: Path
    key: str
    digest: Callable[[str], str]

    def about(self, name: str) -> dict[str, Any]:
        """What is written of a recording; empty if it is not done.

        Args:
            name: Id of the recording.
        """
        found = self._found(name)
        return found if found and found.get("file") == self.digest(name) else {}

    def need_same(self, name: str) -> None:
        """Refuse to write over the results of another file.

        Args:
            name: Id of the recording.

        Raises:
            DataError: The folder holds results of another file of this name.
        """
        if self._found(name) and not self.about(name):
            raise DataError(
                f"{name}: {self.out} holds results of another file of this name; choose another "
                "folder, or pass --overwrite"
            )

    def _found(self, name: str) -> dict[str, Any]:
        path = self.out / f"{name}.json"
        found = read_json(path) if path.is_file() else {}
        return found if found.get("key") == self.key else {}

    def write(self, name: str, about: Mapping[str, Any]) -> None:
        """Call a recording done.

        Args:
            name: Id of the recording.
            about: What was done to it.
        """
        marks = {"note": RESEARCH_ONLY, "key": self.key, "file": self.digest(name)}
        replace_json(self.out / f"{name}.json", marks | dict(about))

    def forget(self, names: Iterable[str]) -> None:
        """Call recordings not done.

        Args:
            names: Their ids.
        """
        for name in names:
            (self.out / f"{name}.json").unlink(missing_ok=True)
