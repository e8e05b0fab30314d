"""The command that writes a split file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from manyhead.autoint.fields import Schema
from manyhead.autoint.sources import open_source
from manyhead.autoint.splitting import PARTS, Keys, SplitOptions, Strategy, assign
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError


def split(
    app: App,  # noqa: ARG001  the command line gives it to every command
    out: Path,
    /,
    input: Path,
    schema: Path | None = None,
    format: str = "table",
    by: Strategy = "row",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    folds: int = 10,
    fold: int = 0,
) -> None:
    """Write a split file with the columns row and split.

    Args:
        app: Row of the app.
        out: New CSV file.
        input: Table, or folder of the raw data.
        schema: Schema file, for the format table.
        format: `table`, or the name of a public data set.
        by: `row`, `group` or `time`; `fold` for stratified folds; `reference` for the published
            split of a public data set.
        fractions: Share of train, validation and test, written [0.8,0.1,0.1].
        seed: Of the random assignment.
        folds: Number of folds.
        fold: Fold that tests, from 0; the next one validates.
    """
    if by == "file":
        raise ConfigError("--by: file reads a split; this command makes one")
    if out.exists():
        raise DataError(f"{out}: exists already; name a new file")
    source = open_source(format, input, Schema.load(schema) if schema else None)
    options = SplitOptions(by=by, fractions=fractions, seed=seed, folds=folds, fold=fold)
    part = assign(source, options)
    write_split(part, out)
    _report(part, Keys.read(source))
    console.result(f"split of {len(part)} rows: {out}")


def write_split(part: np.ndarray, path: Path) -> None:
    """Write the part of every row as CSV."""
    names = {number: name for name, number in PARTS.items()}
    table = pd.DataFrame({"row": np.arange(len(part)), "split": pd.Series(part).map(names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    table.to_csv(partial, index=False)
    partial.rename(path)


def _report(part: np.ndarray, keys: Keys) -> None:
    cells = []
    for name, number in PARTS.items():
        chosen = part == number
        if not chosen.any():
            continue
        groups = "-" if keys.group is None else str(len(np.unique(keys.group[chosen])))
        cells.append([name, int(chosen.sum()), f"{keys.label[chosen].mean():.2%}", groups])
    console.table("Parts", ["part", "rows", "label rate", "groups"], cells)
