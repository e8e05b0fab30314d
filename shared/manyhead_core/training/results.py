"""From the rows of a test run to predictions.csv, metrics.json and one table."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.training.environment import environment

WRITTEN = ("predictions.csv", "metrics.json", "report.html")
RESEARCH_ONLY = "research use only, not a medical device"


@dataclass
class Results:
    """How the recorded rows of a run are evaluated and where they go.

    Args:
        app: Row of the app; its `evaluate` turns the rows into metrics.
        folder: Run folder. `test` writes there, `validate` into its folder `validation`.
        config: Name of the config.
        seed: Seed of the run.
        identity: What the results belong to (hashes of configuration and checkpoint); results of
            another identity are kept in `previous-K`.
        json: File that receives a copy of metrics.json.
        evaluation: What the last `write` found.
    """

    app: App
    folder: Path
    config: str
    seed: int
    identity: dict[str, str]
    json: Path | None = None
    evaluation: Any = field(default=None, init=False)

    def write(self, frame: pd.DataFrame, stage: str) -> None:
        """Evaluate the rows, write both files and print one table.

        Args:
            frame: One row a sample, with the columns of `Task.record`.
            stage: `test` or `validate`.
        """
        from manyhead_core.evaluate.predictions import write_results

        folder = self.folder if stage == "test" else self.folder / "validation"
        keep_earlier(folder, self.identity)
        frame = completed(frame)
        self.evaluation = self.app.load("evaluate")(frame)
        meta = {
            "app": self.app.name,
            "config": self.config,
            "seed": self.seed,
            "environment": environment(),
            **self.identity,
        }
        write_results(folder, frame, self.evaluation, meta)
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "metrics.json", self.json)
        self._show(json.loads((folder / "metrics.json").read_text(encoding="utf-8")), stage, folder)

    def _show(self, metrics: dict[str, Any], stage: str, folder: Path) -> None:
        rows = [
            (name, *(_number(entry.get(key)) for key in ("value", "low", "high")))
            for name, entry in metrics["metrics"].items()
        ]
        title = f"{self.app.title}, {self.config}, {stage}: {metrics['num_samples']} samples"
        console.table(title, ("metric", "value", "95 % low", "95 % high"), rows)
        console.say(f"written: {folder / 'predictions.csv'} and metrics.json")
        if self.app.medical:
            console.result(RESEARCH_ONLY)


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of predictions with the columns that a task may leave out, groups hashed."""
    columns: dict[str, Any] = {str(name): frame[name] for name in frame}
    columns.setdefault("id", range(len(frame)))
    columns.setdefault("site", "")
    columns.setdefault("status", "ok")
    groups = frame["group"] if "group" in frame else pd.Series([""] * len(frame))
    columns["group"] = groups.map({value: hashed(value) for value in groups.unique()})
    first = ["id", "group", "site", "label", "status"]
    order = [name for name in first if name in columns]
    return pd.DataFrame(columns)[order + [name for name in columns if name not in order]]


def hashed(group: Any) -> str:
    """A group id that tells nobody who it is; empty when there is none (-1 or empty)."""
    if group == "" or group == -1:
        return ""
    return hashlib.sha256(f"manyhead group {group}".encode()).hexdigest()[:12]


def keep_earlier(folder: Path, identity: dict[str, str]) -> None:
    """Move results of another checkpoint or configuration to the next free `previous-K`."""
    file = folder / "metrics.json"
    if not file.is_file():
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    if all(earlier.get(key) == value for key, value in identity.items()):
        return
    number = 0
    while (folder / f"previous-{number}").exists():
        number += 1
    kept = folder / f"previous-{number}"
    kept.mkdir()
    for name in WRITTEN:
        if (folder / name).exists():
            (folder / name).rename(kept / name)
    console.say(f"earlier results of another checkpoint or configuration moved to {kept}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
