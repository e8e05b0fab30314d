"""Files of a data set: found, read in chunks, told apart by content."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from manyhead.autoint.coders import to_numbers
from manyhead.autoint.fields import Field, Schema, nearest
from manyhead_core.errors import DataError

CHUNK_ROWS = 200_000
HASHED_WHOLE = 64 << 20  # bytes; a larger file is told apart by size, time, head and tail
DELIMITERS = (",", ";", "\t", "|")
QUOTE = "quote values that hold the delimiter, or set delimiter in the schema"
# Texts that mean "no number". In a category they are values: NA is a country.
NO_NUMBER = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", r"\N")


def find_file(root: Path, pattern: str, what: str) -> Path:
    """The one file that fits, plain or .gz, in `root` or given as `root` itself.

    Args:
        root: Folder or file.
        pattern: Glob without .gz.
        what: What the file is, for the message.

    Raises:
        DataError: There is none, or more than one.
    """
    if root.is_file():
        return root
    if not root.exists():
        raise DataError(f"data.root: {root} does not exist; pass the folder that holds {pattern}")
    found = sorted({*root.glob(pattern), *root.glob(f"{pattern}.gz")})
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"data.root: {root} holds no {pattern} or {pattern}.gz ({what})")
    names = ", ".join(path.name for path in found)
    raise DataError(f"data.root: {root} holds {names}; keep one {what} file or name it")


def open_text(path: Path, encoding: str = "utf-8") -> TextIO:
    """Open a text file, plain or .gz."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding=encoding)
    return path.open(encoding=encoding)


def fingerprint(paths: Sequence[Path], schema: Schema) -> str:
    """Changes when a file or the schema does; the same files elsewhere have the same one."""
    digest = hashlib.sha256(json.dumps(schema.to_dict(), sort_keys=True).encode())
    for path in paths:
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} ".encode())
        with path.open("rb") as file:
            if state.st_size <= HASHED_WHOLE:
                digest.update(file.read())
                continue
            digest.update(str(state.st_mtime_ns).encode() + file.read(1 << 20))
            file.seek(-(1 << 20), io.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def header_of(path: Path, delimiter: str) -> list[str]:
    """Names in the first line of a text file.

    Raises:
        DataError: The file is empty, not text, or names a column twice.
    """
    with readable(path), open_text(path, "utf-8-sig") as file:
        names = next(csv.reader(file, delimiter=delimiter), None)
    if not names:
        raise DataError(f"{path.name}: is empty")
    check_names(names, path.name)
    return names


def check_names(names: Sequence[str], where: str) -> None:
    """Raise when a column name appears twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} appears twice; rename one of them")


def check_columns(wanted: Sequence[str], present: Sequence[str], where: str) -> None:
    """Raise when a wanted column is not there, with the nearest name."""
    for name in wanted:
        if name not in present:
            other = [mark for mark in DELIMITERS if len(present) == 1 and mark in present[0]]
            if other:
                raise DataError(
                    f"{where}: column {name!r} is missing: the one column is {present[0]!r}; "
                    f"set delimiter: {other[0]!r} in the schema"
                )
            names = ", ".join(present[:30])
            raise DataError(
                f"{where}: column {name!r} is missing; {nearest(name, present)}it has: {names}"
            )


def read_text(
    path: Path,
    schema: Schema,
    columns: Sequence[str],
    delimiter: str,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[pd.DataFrame]:
    """Stream columns of a delimited text file; numbers as float64, all else as text.

    Args:
        path: Plain or .gz file.
        schema: Meaning of the columns; its `header` stands in for a missing header line.
        columns: Columns to read.
        delimiter: Between the columns.
        chunk_rows: Rows at a time.

    Raises:
        DataError: The file is empty or malformed, or a number column holds text.
    """
    names = list(schema.header) or header_of(path, delimiter)
    check_columns(columns, names, path.name)
    numbers = {c: f for c, f in number_columns(schema).items() if c in columns}
    gaps = [[*NO_NUMBER, *numbers[c].missing] if c in numbers else [""] for c in names]
    # Never "category": it turns texts into numbers where a whole chunk looks numeric, so that 007
    # and 7, or 1.10 and 1.1, become one value in some chunks and two in others.
    kinds = [np.float64 if c in numbers else object for c in names]
    # A choice of columns switches off the check that every row has the same number of values.
    everything = {c for f in schema.fields for c in f.columns if c in names} <= set(columns)
    options: dict[str, Any] = {
        "sep": delimiter,
        "decimal": schema.decimal,
        "skiprows": 0 if schema.header else 1,
        "usecols": None if everything else [names.index(c) for c in columns],
        "na_values": dict(enumerate(gaps)),
        "dtype": dict(enumerate(kinds)),
        "chunksize": chunk_rows,
    }
    try:
        yield from _stream(path, names, columns, options)
    except ValueError as err:
        texts = _stream(path, names, columns, options | {"dtype": object})
        _find_text(texts, numbers, schema)
        raise DataError(f"{path.name}: {' '.join(str(err).split())}") from err


def _stream(
    path: Path, names: Sequence[str], columns: Sequence[str], options: dict[str, Any]
) -> Iterator[pd.DataFrame]:
    fixed: dict[str, Any] = {"header": None, "keep_default_na": False, "low_memory": False}
    with (
        readable(path),
        pd.read_csv(path, encoding="utf-8-sig", **fixed, **options) as reader,
    ):
        for frame in reader:
            if len(frame.columns) > len(names):
                raise DataError(f"{path.name}: {_surplus(len(names), len(frame.columns))}")
            frame.columns = pd.Index([names[place] for place in frame.columns])
            check_columns(columns, list(frame.columns), path.name)
            yield frame[list(columns)]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what readers raise about a broken text file into one line.

    Raises:
        DataError: The file is empty, malformed, cut off or no text.
    """
    try:
        yield
    except pd.errors.EmptyDataError as err:
        raise DataError(f"{path.name}: is empty") from err
    except pd.errors.ParserError as err:
        line = re.sub(r"^.*C error: ", "", " ".join(str(err).split()))
        raise DataError(f"{path.name}: {line}; {QUOTE}") from err
    except UnicodeDecodeError as err:
        raise DataError(f"{path.name}: is no utf-8 text ({err}); convert it") from err
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise DataError(f"{path.name}: is damaged or cut off ({err}); get it again") from err


def _surplus(names: int, values: int) -> str:
    return f"has {values} values per row for {names} columns; {QUOTE}"


def _find_text(
    frames: Iterator[pd.DataFrame], numbers: Mapping[str, Field], schema: Schema
) -> None:
    """Raise with row and value of the first text in a number column."""
    for frame in frames:
        for name, field in numbers.items():
            values = frame[name].str.replace(schema.decimal, ".", regex=False)
            if name == schema.label:
                _label_numbers(values, schema)
            else:
                to_numbers(values, replace(field, missing=(*NO_NUMBER, *field.missing)))


def number_columns(schema: Schema) -> dict[str, Field]:
    """Columns read as numbers, with a field that describes each; the label is one."""
    found = {f.column: f for f in schema.fields if f.kind == "number"}
    return {schema.label: Field(schema.label, "number")} | found


def clean_labels(column: pd.Series[Any], schema: Schema) -> np.ndarray:
    """Labels as 0.0 and 1.0.

    Args:
        column: Raw labels; the index holds the row numbers.
        schema: Says from where on a label counts as 1.

    Raises:
        DataError: A label is missing or neither 0 nor 1.
    """
    numbers = _label_numbers(column, schema)
    gaps = np.flatnonzero(~np.isfinite(numbers))
    if len(gaps):
        raise DataError(
            f"label {schema.label}, row {column.index[gaps[0]]}: is missing ({len(gaps)} such rows "
            "here); remove rows without a label"
        )
    if schema.label_above is not None:
        return (numbers > schema.label_above).astype(np.float64)
    wrong = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(wrong):
        raise DataError(
            f"label {schema.label}, row {column.index[wrong[0]]}: is {numbers[wrong[0]]:g}, not 0 "
            "or 1; set label_above, in the schema or of inspect: a larger label counts as 1"
        )
    return numbers


def _label_numbers(column: pd.Series[Any], schema: Schema) -> np.ndarray:
    try:
        return to_numbers(column, Field(schema.label, "number", missing=NO_NUMBER))
    except DataError as err:
        value = re.search(r", (row .*?: '.*') is no number;", str(err))
        raise DataError(
            f"label {schema.label}, {value[1] if value else 'holds text'} is neither 0 nor 1; "
            "write 1 for what is to be predicted and 0 for the rest"
        ) from err


def numbered(frames: Iterator[pd.DataFrame], schema: Schema) -> Iterator[pd.DataFrame]:
    """Number the rows over all chunks and clean the labels where they are."""
    done = 0
    for frame in frames:
        frame.index = pd.RangeIndex(done, done + len(frame))
        if schema.label in frame:
            frame = frame.assign(**{schema.label: clean_labels(frame[schema.label], schema)})
        done += len(frame)
        yield frame
