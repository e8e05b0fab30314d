"""The command that reports on the columns of a table before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources import open_source
from manyhead.autoint.sources.files import check_columns, clean_labels
from manyhead.autoint.sources.guess import (
    Column,
    decimal_commas,
    describe,
    draft,
    find_label,
    guess_delimiter,
    read_raw,
)
from manyhead.autoint.sources.table import table_files
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError

HEADER = ["column", "kind", "distinct", "missing", "top value", "AUC alone", "remarks"]


def inspect(
    app: App,  # noqa: ARG001  the command line gives it to every command
    input: Path,
    schema: Path | None = None,
    label: str | None = None,
    write_schema: Path | None = None,
    format: str = "table",
    rows: int = 200000,
    label_above: float | None = None,
) -> None:
    """Report on the columns of a table: kinds, gaps, label rate and what looks wrong.

    Args:
        app: Row of the app.
        input: Table, or folder of the raw data.
        schema: Schema file; without one the kinds are guessed.
        label: Column of the label, where there is no schema; guessed by its name.
        write_schema: New file for a draft of the schema.
        format: `table`, or the name of a public data set.
        rows: How many of the first rows to look at.
        label_above: A label larger than this counts as 1, where there is no schema.
    """
    if write_schema is not None and write_schema.exists():
        raise DataError(f"--write_schema: {write_schema} exists already; name a new file")
    if rows < 1:
        raise ConfigError(f"--rows: is {rows}; must be 1 or more")
    given = Schema.load(schema) if schema else None
    if given is not None or format != "table":
        source = open_source(format, input, given)
        frame, meaning = _first(source.chunks(), rows), source.schema
        columns = described(frame, meaning, rows)
        _report(columns, frame[meaning.label].to_numpy(np.float64), meaning.label, len(frame))
    else:
        frame = read_raw(input, rows)
        name = label or find_label(frame)
        delimiter = guess_delimiter(table_files(input)[0])
        # Beside a comma as delimiter, 1,234 is as likely a thousand.
        commas = decimal_commas(frame) if delimiter != "," else []
        frame = frame.assign(**{c: frame[c].str.replace(",", ".") for c in commas})
        columns, labels = guessed(frame, name, label_above)
        _report(columns, labels, name, len(frame))
        if write_schema is not None:
            meaning = draft(columns, name, delimiter, "," if commas else ".", label_above)
    _note_copies(frame)
    if write_schema is not None:
        _write(write_schema, meaning)


def guessed(
    frame: pd.DataFrame, label: str, label_above: float | None = None
) -> tuple[list[Column], np.ndarray]:
    """Columns of an unknown table, and its labels.

    Raises:
        DataError: The label column is missing or holds no 0 and 1.
    """
    check_columns([label], [str(name) for name in frame.columns], "--label")
    labels = clean_labels(frame[label], _only_label(label, label_above))
    names = [name for name in map(str, frame.columns) if name != label]
    columns = [describe(frame, labels, Field(name, "category"), False) for name in names]
    return columns, labels


def described(frame: pd.DataFrame, schema: Schema, rows: int) -> list[Column]:
    """Columns of a table as its schema declares them."""
    labels = frame[schema.label].to_numpy(np.float64)[:rows]
    return [describe(frame, labels, field, True) for field in schema.fields]


def _report(columns: list[Column], labels: np.ndarray, label: str, rows: int) -> None:
    cells = [
        [
            c.name,
            c.kind,
            c.distinct,
            f"{c.missing:.1%}",
            c.top,
            "-" if np.isnan(c.auc) else f"{c.auc:.3f}",
            "; ".join([*([c.role] if c.role else []), *c.warnings]) or "-",
        ]
        for c in columns
    ]
    console.table(f"{rows} rows, {len(columns)} columns", HEADER, cells)
    console.result(f"label {label}: {labels.mean():.2%} of the rows are 1")
    if labels.min() == labels.max():
        console.say(f"label {label}: all rows are {labels[0]:g}; a model needs both classes")


def _first(frames: Iterator[pd.DataFrame], rows: int) -> pd.DataFrame:
    parts: list[pd.DataFrame] = []
    for frame in frames:
        parts.append(frame.iloc[: rows - sum(map(len, parts))])
        if sum(map(len, parts)) >= rows:
            break
    if not parts or not sum(map(len, parts)):
        raise DataError("--input: the table holds no rows")
    return pd.concat(parts)


def _only_label(label: str, label_above: float | None) -> Schema:
    name = "any" if label != "any" else "other"
    return Schema(label, (Field(name, "category"),), label_above=label_above)


def _note_copies(frame: pd.DataFrame) -> None:
    try:
        copies = int(frame.duplicated().sum())
    except TypeError:  # lists cannot be compared this way
        return
    if copies:
        console.say(
            f"note: {copies} of {len(frame)} rows repeat an earlier one; a random split puts "
            "copies into train and test"
        )


def _write(path: Path, schema: Schema) -> None:
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(yaml.safe_dump(schema.to_dict(), sort_keys=False), encoding="utf-8")
    partial.rename(path)
    console.result(f"draft of the schema, to be checked by you: {path}")
