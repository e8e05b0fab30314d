"""Tables of any multivariate series: columns are channels, rows are moments in order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead_core.errors import DataError

# Names of a column with the time of a row, in lower case.
TIMES = ("date", "time", "datetime", "timestamp")
# A step between rows that is longer than so many usual ones is a gap.
GAP = 1.5


@dataclass(frozen=True)
class Series:
    """A table in memory.

    Args:
        values: `(rows, channels)`, float32.
        columns: Names of the channels.
        label: Class of each row, int64 `(rows,)`, or None.
        class_names: Of the classes, in order.
        piece: Number of the piece without gaps that a row belongs to, int64 `(rows,)`.
    """

    values: npt.NDArray[np.float32]
    columns: tuple[str, ...]
    label: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    piece: npt.NDArray[np.int64]


def read_series(
    path: Path,
    *,
    columns: Sequence[str] = (),
    time: str = "",
    label: str = "",
    missing: str = "refuse",
) -> Series:
    """Read a table.

    Args:
        path: `.csv`, `.tsv`, `.parquet`, or `.npz` with `values` `(rows, channels)` and maybe
            `columns`, a time and a label of each row.
        columns: Channels in order; empty takes all but time and label.
        time: Column with the time of each row, which must grow; empty looks for the usual names.
        label: Column with the class of each row; empty for none.
        missing: `refuse` empty cells, or `last` to go on with the value before.

    Raises:
        DataError: The table is missing, unreadable, or not what the options say.
    """
    frame = _frame(path)
    names = [str(name) for name in frame]
    time = time or next((name for name in names if name.lower() in TIMES), "")
    chosen = list(columns) or [name for name in names if name not in (time, label)]
    for option, name in [("columns", c) for c in chosen] + [("time", time), ("label", label)]:
        if name and name not in names:
            known = ", ".join(names[:10])
            raise DataError(f"data.{option}: {path.name} has no column {name!r}; it has {known}")
    if not chosen or label in chosen:
        raise DataError(
            f"data.columns: {path.name} needs at least one channel beside time and label; name the "
            "channels without them"
        )
    values = np.column_stack([_numbers(frame[name], path, missing) for name in chosen])
    classes, class_names = _classes(frame[label], path) if label else (None, ())
    piece = _pieces(frame[time], path) if time else np.zeros(len(frame), np.int64)
    return Series(values, tuple(chosen), classes, class_names, piece)


def _frame(path: Path) -> pd.DataFrame:
    readers: dict[str, Any] = {
        ".csv": pd.read_csv,
        ".tsv": lambda name: pd.read_csv(name, sep="\t"),
        ".parquet": pd.read_parquet,
        ".npz": _arrays,
    }
    kind = path.suffix.lower()
    if kind not in readers:
        raise DataError(f"data.root: {path.name} is none of {', '.join(readers)}; convert it")
    if not path.is_file():
        raise DataError(f"data.root: {path} does not exist; pass a table")
    try:
        frame: pd.DataFrame = readers[kind](path)
    except (OSError, ValueError, KeyError, ImportError) as err:
        reason = " ".join(str(err).split())
        raise DataError(f"data.root: {path.name} cannot be read: {reason}") from err
    if frame.empty:
        raise DataError(f"data.root: {path.name} has no rows; pass another table")
    return frame.rename(columns=str)


def _arrays(path: Path) -> pd.DataFrame:
    with np.load(path) as file:
        if "values" not in file or file["values"].ndim != 2:
            raise ValueError("it needs an array values (rows, channels)")
        values = file["values"]
        names = file["columns"] if "columns" in file else range(values.shape[1])
        frame = pd.DataFrame(values, columns=[str(name) for name in names])
        for name in set(file.files) - {"values", "columns"}:
            frame[name] = file[name]
    return frame


def _numbers(column: pd.Series[Any], path: Path, missing: str) -> npt.NDArray[np.float32]:
    numbers = pd.to_numeric(column, errors="coerce").replace([np.inf, -np.inf], np.nan)
    text = numbers.isna() & column.notna()
    if text.any():
        row = int(text.argmax())
        raise DataError(
            f"{path.name}: column {column.name!r}, row {row + 1}: {column.iloc[row]!r} is no "
            "finite number; name the channels with data.columns"
        )
    empty = int(numbers.isna().sum())
    if missing == "last":
        numbers = numbers.ffill()
    if numbers.isna().any():
        # What comes before the first value has none to go on with; a later one would leak.
        remedy = "cut the first rows" if missing == "last" else "set data.missing=last"
        raise DataError(
            f"{path.name}: column {column.name!r} has {empty} empty cells; fill them, or {remedy}"
        )
    return numbers.to_numpy(dtype=np.float32)


def _classes(column: pd.Series[Any], path: Path) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    codes, names = pd.factorize(column, sort=True)
    if (codes < 0).any():
        raise DataError(f"{path.name}: column {column.name!r} has rows without a class; fill them")
    if len(names) < 2:
        raise DataError(
            f"{path.name}: column {column.name!r} has one class alone; choose another data.label"
        )
    return codes.astype(np.int64), tuple(str(name) for name in names)


def _pieces(column: pd.Series[Any], path: Path) -> npt.NDArray[np.int64]:
    if pd.api.types.is_numeric_dtype(column):
        moments = column.to_numpy(dtype=float)
    else:
        try:
            # A format that cannot be guessed brings a warning and guesses row by row.
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                found = pd.to_datetime(column).astype("datetime64[ns]")
        except (ValueError, UserWarning) as err:
            raise DataError(
                f"{path.name}: column {column.name!r} is no time; name another with data.time"
            ) from err
        moments = found.to_numpy().astype(np.int64).astype(float)
    steps = np.diff(moments)
    if not (steps > 0).all():
        row = int(np.argmin(steps > 0)) + 2
        raise DataError(
            f"{path.name}: column {column.name!r}, row {row}: the time does not grow; sort the "
            "table"
        )
    usual = np.median(steps) if len(steps) else 1.0
    return np.concatenate([[0], np.cumsum(steps > GAP * usual)]).astype(np.int64)
