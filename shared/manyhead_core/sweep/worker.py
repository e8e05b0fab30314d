"""Run one cell: fit and test in fresh processes, resuming what was begun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from manyhead_core.evaluate.files import read_json, replace_json
from manyhead_core.sweep.cells import Cell

# What starts a command; a cell runs in its own process, as if typed by hand.
PROGRAM: tuple[str, ...] = (sys.executable, "-m", "manyhead")
STATE = "cell.json"
LOG = "log.txt"


@dataclass
class State:
    """What is known of a cell; kept in `cell.json`.

    Args:
        identity: Hash of everything the cell depends on.
        run: Number of its run folder.
        status: `started`, `done` or `failed`.
        fitted: Whether the fit came to its end; then only the test is to be done.
        seconds: Time of the last start.
        error: One line when it failed.
    """

    identity: str
    run: str
    status: str = "started"
    fitted: bool = False
    seconds: float = 0.0
    error: str = ""


def read_state(cell: Cell, out: Path) -> State | None:
    """State of a cell; None when it was never started, or with other settings."""
    file = cell.folder(out) / STATE
    if not file.is_file():
        return None
    state = State(**read_json(file))
    return state if state.identity == cell.identity() else None


def is_done(cell: Cell, out: Path) -> bool:
    """Whether the results of the cell are there."""
    state = read_state(cell, out)
    if state is None or state.status != "done":
        return False
    run = cell.folder(out) / state.run
    return all((run / name).is_file() for name in ("predictions.csv", "metrics.json"))


def run_cell(cell: Cell, out: Path, threads: int | None = None) -> State:
    """Fit and test one cell, unless it is done; a begun fit goes on from its last checkpoint.

    Args:
        cell: What to run.
        out: Folder of the sweep.
        threads: Threads of the process; None leaves them to the environment.

    Returns:
        The state it ended in; a failure is a state, not an exception.
    """
    state = read_state(cell, out)
    if state is not None and is_done(cell, out):
        return state
    started = time.perf_counter()
    state = state or State(cell.identity(), _next_number(cell.folder(out)))
    state.error = _steps(cell, out, state, threads)
    state.status = "failed" if state.error else "done"
    state.seconds = round(time.perf_counter() - started, 1)
    _keep(cell, out, state)
    return state


def _steps(cell: Cell, out: Path, state: State, threads: int | None) -> str:
    folder = cell.folder(out)
    run = folder / state.run
    if not state.fitted:
        resumes = (run / "checkpoints" / "last.ckpt").is_file()
        if resumes:
            words = [cell.app, "fit", "--resume", str(run)]
        else:
            words, state.run = cell.arguments(out), _next_number(folder)
            run = folder / state.run
        state.status = "started"
        _keep(cell, out, state)
        error = _call(words, folder / LOG, threads)
        if error:
            return error
        state.fitted = True
        _keep(cell, out, state)
    error = _call([cell.app, "test", "--run", str(run)], folder / LOG, threads)
    if not error and not (run / "metrics.json").is_file():
        error = f"test wrote no metrics.json into {run}"
    return error


def _call(words: list[str], log: Path, threads: int | None) -> str:
    """Run one command with its output in `log`; its last line when it fails, else nothing."""
    environment = dict(os.environ)
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"$ manyhead {' '.join(words)}\n".encode())
        file.flush()
        start = file.tell()
        code = subprocess.run(  # noqa: S603
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        ).returncode
    if code == 0:
        return ""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()
    last = lines[-1].strip().removeprefix(f"manyhead {words[0]}: ") if lines else "no output"
    return f"{words[1]} ended with code {code}: {last}"


def _next_number(folder: Path) -> str:
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return str(max(taken, default=-1) + 1)


def _keep(cell: Cell, out: Path, state: State) -> None:
    replace_json(cell.folder(out) / STATE, asdict(state))
