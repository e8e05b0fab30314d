"""`manyhead weights`: known public checkpoints, and a check of local weights. Downloads nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from manyhead_core.app import App, find
from manyhead_core.cli import console
from manyhead_core.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A public checkpoint.

    Args:
        app: App that can use it.
        name: Short name.
        source: Where it is published.
        licence: Licence of the weights.
        sha256: Hash of the published file, or empty.
        convert: Command that turns it into a weights folder.
    """

    app: str
    name: str
    source: str
    licence: str
    sha256: str = ""
    convert: str = ""


def catalogue(app: App) -> tuple[list[Entry], str]:
    """Known checkpoints of an app, from `weights.yaml` in its package, and a remark."""
    package = app.task.partition(":")[0].rpartition(".")[0]
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        file = Path(root) / "weights.yaml"
        if file.is_file():
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            entries = [Entry(app=app.name, **entry) for entry in content.get("checkpoints") or []]
            return entries, content.get("remark", "")
    return [], ""


def list_weights(apps: Mapping[str, App], name: str | None = None, /) -> None:
    """List known public checkpoints with source, licence and import command.

    Args:
        apps: The apps of the suite.
        name: One app; all when not given.
    """
    chosen = list(apps.values()) if name is None else [apps[find(name, apps, "app")]]
    rows, remarks = [], []
    for app in chosen:
        entries, remark = catalogue(app)
        rows += [(e.app, e.name, e.source, e.licence, e.sha256[:12], e.convert) for e in entries]
        remarks += [f"{app.name}: {remark}"] if remark else []
    if rows:
        columns = ("app", "checkpoint", "source", "licence", "sha256", "import with")
        console.table("Public checkpoints", columns, rows)
    for line in remarks or ([] if rows else ["no public checkpoints are known"]):
        console.result(line)


def verify(apps: Mapping[str, App], path: Path, /) -> None:
    """Check a weights folder (or a published file) for completeness and against the catalogue.

    Args:
        apps: The apps of the suite.
        path: Weights folder, or a downloaded checkpoint file.
    """
    if not path.exists():
        raise WeightsError(f"weights: no file or folder {path}")
    if path.is_file():
        console.result(f"{path}: {_known(apps, path)}")
        return
    app = apps[find(_app_of(path), apps, "app")]
    net = app.load("model").from_pretrained(path)
    numbers = sum(parameter.numel() for parameter in net.parameters())
    rows = [
        ("app", app.name),
        ("architecture", f"{type(net).__name__}, {numbers:,} parameters"),
        ("preprocessor", "present" if net.preprocessor_state else "none: takes encoded input only"),
        ("model card", "present" if (path / "README.md").is_file() else "missing"),
        ("model.safetensors", _known(apps, path / "model.safetensors")),
    ]
    console.table(f"Weights in {path}", ("part", "state"), rows)


def _app_of(folder: Path) -> str:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(content["app"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise WeightsError(
            f"weights: {folder} holds no readable config.json; pass a folder written by export"
        ) from err


def _known(apps: Mapping[str, App], file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    for app in apps.values():
        for entry in catalogue(app)[0]:
            if entry.sha256 == digest:
                return f"is {entry.name} of {entry.app}; import with: {entry.convert}"
    return f"sha256 {digest}; not in the catalogue of public checkpoints"
