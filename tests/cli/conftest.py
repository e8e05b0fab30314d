"""Real runs of the toy app, in this process or as a program of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from manyhead_core.app import App, Command
from manyhead_core.cli import console
from manyhead_core.cli.main import run

SCRIPT = Path(__file__).parent / "toy" / "toyrun.py"
TOP = (
    Command("greet", "say hello", "toyapp.functions:greet"),
    Command("data list", "list", "toyapp.functions:greet"),
)
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_JOB_ID", "NODE_RANK")


@dataclass
class Done:
    """What a finished command line has left behind."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error: what stderr holds beside the note on medical use."""
        lines = [line for line in self.err.splitlines() if "research use only" not in line]
        assert len(lines) == 1, self.err
        return lines[0]


Cli = Callable[..., Done]


def write_rows(folder: Path, rows: int = 192) -> None:
    """A table that the toy can learn."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, 3))
    chance = 1 / (1 + np.exp(-features @ np.array([1.0, -2.0, 0.5])))
    label = generator.random(rows) < chance
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "rows.csv", np.c_[features, label], delimiter=",", fmt="%.6f")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own working folder with data, and no traces of a cluster."""
    write_rows(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in (*RANKS, "MANYHEAD_DEBUG", "TOY_KILL_AT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console, "_quiet", False)


@pytest.fixture
def cli(toy: App, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process."""

    def call(*words: str) -> Done:
        capfd.readouterr()
        code = run(words, {"toy": toy}, TOP, "1.2.3", script=str(SCRIPT))
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture
def fit(cli: Cli) -> Cli:
    """`manyhead toy fit` with the small config and the data; three epochs of twelve steps."""
    return lambda *words: cli("toy", "fit", "--config", "small", "--data.root", "data", *words)


@pytest.fixture
def program(tmp_path: Path) -> Cli:
    """Run a command line in a process of its own, as a user does."""

    def call(*words: str, launcher: tuple[str, ...] = (), **environment: str) -> Done:
        command = [sys.executable, *launcher, str(SCRIPT), *words]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call
