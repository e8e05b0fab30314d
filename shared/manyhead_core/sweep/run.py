"""`manyhead APP sweep`: run every cell, then tabulate what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, UserError
from manyhead_core.evaluate.files import read_json, replace, replace_json
from manyhead_core.sweep.cells import Cell, make_cells
from manyhead_core.sweep.slurm import write_script
from manyhead_core.sweep.table import POOLED, Line, gather, pool_folds, summarise
from manyhead_core.sweep.worker import State, is_done, read_state, run_cell

PLAN = "sweep.json"


def sweep(
    app: App,
    overrides: Sequence[str] = (),
    /,
    config: str = "",
    variants: str = "",
    seeds: str = "0,1,2",
    folds: int = 0,
    fold_options: str = "data.split=fold,data.folds={folds},data.fold={fold}",
    out: Path = Path("runs/sweep"),
    jobs: int = 1,
    metric: str = "",
    slurm: Path | None = None,
    cell: int | None = None,
    strict: bool = False,
) -> int:
    """Fit and test every combination of variant, seed and fold; a second start goes on.

    Args:
        app: Row of the app.
        overrides: Options for all runs, KEY=VALUE, as in data.root=/data/x trainer.max_epochs=3.
        config: Names or files of configs, separated by commas; merged left to right.
        variants: File .yaml with one mapping of options a variant, or the text
            'base;wide:model.net.dim=32;deep:model.net.widths=[64,64,64,64]'. The first is the
            reference.
        seeds: Seeds, as 0,1,2 or 0-4.
        folds: Number of folds; 0 for the one split of the config. The table then also has the
            metrics of the test samples of all folds together, pooled/NAME, one value a seed.
        fold_options: Options of the run of one fold; {fold} counts from 0.
        out: Folder of the sweep, of its own.
        jobs: Runs at the same time; with `slurm`, tasks at the same time if more than 1.
        metric: Metrics of the printed table, separated by commas; default: the metric that selects
            checkpoints, and auroc; of folds also pooled, with accuracy.
        slurm: Write a SLURM array script to this file instead of running.
        cell: Run this one cell, counted from 0, and print no table.
        strict: Exit with code 2 when any run failed.
    """
    if jobs < 1 or folds < 0 or folds == 1:
        raise ConfigError("--jobs must be at least 1, and --folds 0 (none) or at least 2")
    cells = make_cells(app, config, overrides, variants, seeds, folds, fold_options)
    _claim(app, out, cells)
    if slurm is not None:
        write_script(slurm, _own_command(), len(cells), jobs, f"manyhead-{app.name}")
        console.result(f"sbatch {slurm}   # {len(cells)} runs; then sweep again for the table")
        return 0
    if cell is not None:
        return _one(cells, cell, out)
    _run(cells, out, jobs)
    states = _report(cells, out)
    values = gather(cells, out)
    pooled = pool_folds(cells, out, app.load("evaluate")) if folds else values[:0]
    if len(pooled):
        values = pd.concat([values, pooled], ignore_index=True)
    if values.empty:
        raise UserError(f"all {len(cells)} runs failed; see {out / 'report.csv'}; {_first(states)}")
    _tabulate(app, values, out, metric)
    failed = sum(state is None or state.status != "done" for state in states)
    if failed:
        console.error(f"{failed} of {len(cells)} runs failed; see {out / 'report.csv'}")
    return 2 if failed and strict else 0


def _claim(app: App, out: Path, cells: Sequence[Cell]) -> None:
    """Make `out` the folder of this sweep, unless it belongs to something else."""
    plan = out / PLAN
    if plan.is_file():
        if read_json(plan).get("app") != app.name:
            raise UserError(f"--out: {out} holds a sweep of another app; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty and holds no sweep; choose another folder")
    content: dict[str, Any] = {"format": 1, "app": app.name, "cells": [c.name for c in cells]}
    if not plan.is_file() or read_json(plan) != content:
        replace_json(plan, content)


def _one(cells: Sequence[Cell], number: int, out: Path) -> int:
    if not 0 <= number < len(cells):
        raise ConfigError(f"--cell: {number} is not one of the {len(cells)} cells, from 0")
    state = run_cell(cells[number], out)
    _say(cells[number], state)
    return 2 if state.status == "failed" else 0


def _run(cells: Sequence[Cell], out: Path, jobs: int) -> None:
    waiting = [entry for entry in cells if not is_done(entry, out)]
    if len(waiting) < len(cells):
        console.say(f"{len(cells) - len(waiting)} of {len(cells)} runs are done already")
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    # Threads suffice: each waits for a process of its own.
    pool = Parallel(n_jobs=jobs, backend="threading", return_as="generator_unordered")
    done = pool(delayed(_named)(entry, out, threads) for entry in waiting)
    for number, (entry, state) in enumerate(done, start=1):
        _say(entry, state, f"{number} of {len(waiting)}: ")


def _named(cell: Cell, out: Path, threads: int | None) -> tuple[Cell, State]:
    return cell, run_cell(cell, out, threads)


def _say(cell: Cell, state: State, number: str = "") -> None:
    console.say(f"{number}{cell.name}: {state.error or state.status} ({state.seconds:.0f} s)")


def _report(cells: Sequence[Cell], out: Path) -> list[State | None]:
    states = [read_state(entry, out) for entry in cells]
    table = pd.DataFrame(
        [
            (
                entry.name,
                state.status,
                state.seconds,
                state.error,
                str(entry.folder(out) / state.run),
            )
            for entry, state in zip(cells, states, strict=True)
            if state is not None
        ],
        columns=["id", "status", "seconds", "error", "run"],
    )
    replace(out / "report.csv", lambda path: table.to_csv(path, index=False))
    return states


def _tabulate(app: App, values: pd.DataFrame, out: Path, metric: str) -> None:
    lines = summarise(values)
    replace(out / "cells.csv", lambda path: values.to_csv(path, index=False))
    table = pd.DataFrame([asdict(line) for line in lines])
    replace(out / "summary.csv", lambda path: table.to_csv(path, index=False))
    rows = [asdict(line) for line in lines]
    replace_json(out / "summary.json", {"format": 1, "app": app.name, "rows": rows})
    _show(app, [line for line in lines if line.metric in _chosen(app, lines, metric)], out)


def _chosen(app: App, lines: Sequence[Line], metric: str) -> list[str]:
    known = list(dict.fromkeys(line.metric for line in lines))
    if not metric:
        usual = [app.monitor.rpartition("/")[2], "auroc"]
        # Of folds, a value of all samples says more than a mean over small parts.
        usual += [f"{POOLED}{name}" for name in (*usual, "accuracy")]
        return [name for name in usual if name in known] or known[:1]
    wanted = [name.strip() for name in metric.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(f"--metric: unknown metric {unknown[0]!r}; known: {', '.join(known)}")
    return wanted


def _show(app: App, lines: Sequence[Line], out: Path) -> None:
    columns = ["metric", "variant", "runs", "mean", "sd", "min", "max"]
    columns += ["difference", "95 % low", "95 % high"]
    rows = []
    for line in lines:
        spread = (line.mean, line.sd, line.min, line.max)
        change = (line.difference, line.low, line.high)
        rows.append((line.metric, line.variant, line.runs, *map(_text, spread + change)))
    first = lines[0].variant
    console.table(f"{app.title}: differences to {first}, paired by seed and fold", columns, rows)
    console.say(f"written: {out / 'summary.csv'}, summary.json, cells.csv and report.csv")
    if app.medical:
        console.result("research use only, not a medical device")


def _own_command() -> list[str]:
    """The command line of this process, less the option that asked for the script."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word == "--slurm":
            next(words, None)
        elif not word.startswith("--slurm="):
            kept.append(word)
    return [sys.executable, "-m", "manyhead", *kept]


def _first(states: Sequence[State | None]) -> str:
    errors = [state.error for state in states if state is not None and state.error]
    return f"first: {errors[0]}" if errors else ""


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
