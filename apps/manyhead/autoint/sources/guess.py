"""What the columns of an unknown table may be: kinds, gaps, and what looks wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from manyhead.autoint.fields import Field, Kind, Schema
from manyhead.autoint.sources.files import DELIMITERS, NO_NUMBER, header_of, readable
from manyhead.autoint.sources.table import (
    PARQUET,
    columns_of,
    delimiter_of,
    partition_values,
    read_parquet,
    table_files,
)
from manyhead.autoint.splitting import as_times
from manyhead.autoint.vocabulary import factorise
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.binary import roc_auc

LABELS = ("label", "click", "clk", "clicked", "is_click", "target", "y")
SEPARATORS = ("|", "^", ";")
FEW = 50  # distinct whole numbers up to which a column is taken for a category
LEAK = 0.98
GROUP = re.compile(
    r"(^|_)(uid|(user|patient|subject)(_?id)?|(customer|member|participant)_?id)$", re.IGNORECASE
)
DECIMAL_COMMA = r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?"
TIME = re.compile(r"(time|timestamp|time_stamp|date|day|datetime)$", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """What is known of one column.

    Args:
        name: Name.
        kind: Guess, or what the schema says.
        distinct: Number of distinct values.
        missing: Share of missing values.
        top: Most frequent value and its share.
        auc: How well the column alone orders the labels, 0.5..1; NaN without a label.
        warnings: What looks wrong.
        separator: Between the values of a list.
        role: `group`, `time`, `row_id` or empty.
    """

    name: str
    kind: Kind
    distinct: int
    missing: float
    top: str
    auc: float
    warnings: tuple[str, ...] = ()
    separator: str = "|"
    role: str = ""

    @property
    def usable(self) -> bool:
        """Whether a draft takes the column as a field."""
        return not self.warnings and self.role not in ("group", "row_id", "time")


def read_raw(root: Path, rows: int) -> pd.DataFrame:
    """The first rows of a table, text files as text."""
    parts: list[pd.DataFrame] = []
    for path in table_files(root):
        left = rows - sum(map(len, parts))
        if left <= 0:
            break
        parts.append(_head(path, left).assign(**partition_values(root, path)))
    frame = pd.concat(parts, ignore_index=True)
    if frame.empty:
        raise DataError(f"--input: {root.name} holds no rows")
    return frame


def find_label(frame: pd.DataFrame) -> str:
    """The column that looks like the label.

    Raises:
        ConfigError: There is none, or more than one.
    """
    found = [name for name in map(str, frame.columns) if name.lower() in LABELS]
    if len(found) == 1:
        return found[0]
    names = ", ".join((found or [str(name) for name in frame.columns])[:20])
    state = "more than one column could be the label" if found else "no column is called label"
    raise ConfigError(f"--label: {state}; name it, one of: {names}")


def describe(frame: pd.DataFrame, label: np.ndarray | None, field: Field, given: bool) -> Column:
    """Look at one column.

    Args:
        frame: The table.
        label: 0 and 1 per row, if known.
        field: Name, and with `given` also kind and separator.
        given: The field comes from a schema; nothing is guessed.
    """
    values = frame[field.column]
    if len(values) and isinstance(values.dropna().head(1).squeeze(), list | np.ndarray):
        values = values.map(lambda v: field.separator.join(map(str, v)), na_action="ignore")
        field = replace(field, kind="list") if not given else field
    codes, texts = factorise(values, field.missing)
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    kind, separator = (field.kind, field.separator) if given else _kind(field, texts, counts)
    column = Column(
        field.name,
        kind,
        len(texts) - int((counts == 0).sum()),
        float((codes < 0).mean()),
        _top(texts, counts, len(frame)),
        float("nan") if label is None else alone(codes, texts, kind, label),
        separator=separator,
    )
    column = replace(column, role="" if given else _role(column, texts, len(frame)))
    return replace(column, warnings=_warnings(column, len(frame)))


def alone(codes: np.ndarray, texts: np.ndarray, kind: Kind, label: np.ndarray) -> float:
    """AUC of one column alone, 0.5..1.

    A category is scored by the label rate of its value in the other half of the rows, so that a
    column of unique values does not look like a leak.
    """
    if label.min() == label.max():
        return float("nan")
    if kind == "number":
        numbers = np.append(_numbers(texts), np.nan)[codes]
        if np.isnan(numbers).all():
            return 0.5
        auc = roc_auc(label, np.nan_to_num(numbers, nan=float(np.nanmedian(numbers))))
        return max(auc, 1 - auc)
    return max(roc_auc(label, _cross_rates(codes, len(texts), label)), 0.5)


def guess_delimiter(path: Path) -> str:
    """What stands between the columns of a table, from its first line."""
    if path.suffix.lower() in PARQUET:
        return ","
    usual = delimiter_of(path)
    columns = {mark: len(header_of(path, mark)) for mark in DELIMITERS}
    return usual if columns[usual] > 1 else max(columns, key=lambda mark: columns[mark])


def decimal_commas(frame: pd.DataFrame) -> list[str]:
    """Columns of texts that are all numbers when a comma is read as the decimal mark."""
    found = []
    for name in map(str, frame.columns):
        values = frame[name].dropna()
        if not len(values) or not all(type(value) is str for value in values.head(10)):
            continue
        values = values[~values.isin(NO_NUMBER)].astype(str)
        if values.str.contains(",").any() and values.str.fullmatch(DECIMAL_COMMA).all():
            found.append(name)
    return found


def draft(
    columns: list[Column],
    label: str,
    delimiter: str,
    decimal: str = ".",
    label_above: float | None = None,
) -> Schema:
    """A schema of all columns that look usable.

    Raises:
        DataError: None does.
    """
    fields = [
        Field(c.name, c.kind, separator=c.separator if c.kind == "list" else "|")
        for c in columns
        if c.usable
    ]
    if not fields:
        raise DataError("--write_schema: no column looks usable as a field; write it by hand")
    roles = {c.role: c.name for c in reversed(columns) if c.role}  # the first of several
    return Schema(
        label,
        tuple(fields),
        row_id=roles.get("row_id"),
        group=roles.get("group"),
        time=roles.get("time"),
        label_above=label_above,
        delimiter="" if delimiter == "," else delimiter,
        decimal=decimal,
    )


def _head(path: Path, rows: int) -> pd.DataFrame:
    if path.suffix.lower() in PARQUET:
        names = columns_of(path)
        return next(read_parquet(path, names, rows), pd.DataFrame(columns=names))
    delimiter = guess_delimiter(path)
    header_of(path, delimiter)  # names that come twice would be renamed without a word
    with readable(path):
        return pd.read_csv(
            path,
            sep=delimiter,
            dtype=object,
            keep_default_na=False,
            na_values=[""],
            nrows=rows,
            encoding="utf-8-sig",
            index_col=False,
        )


def _kind(field: Field, texts: np.ndarray, counts: np.ndarray) -> tuple[Kind, str]:
    if field.kind == "list":
        return "list", field.separator
    if separator := _separator(texts):
        return "list", separator
    known = ~np.isin(texts, np.array(NO_NUMBER, dtype=object))
    numbers = _numbers(texts[known])
    if not len(numbers) or np.isnan(numbers).any():
        return "category", "|"
    whole = bool((numbers == np.trunc(numbers)).all())
    is_id = field.name.lower().endswith("id") or GROUP.search(field.name) is not None
    # The same whole number again and again is a code; a spread of numbers is a quantity.
    if whole and (is_id or (counts > 0).sum() <= FEW):
        return "category", "|"
    return "number", "|"


def _separator(texts: np.ndarray) -> str:
    """A character that stands between values in a good part of the texts."""
    for separator in SEPARATORS:
        several = [text.split(separator) for text in texts if separator in text]
        if len(several) >= max(1, 0.2 * len(texts)):
            return separator
    return ""


def _role(column: Column, texts: np.ndarray, rows: int) -> str:
    if GROUP.search(column.name):
        return "group"
    if TIME.search(column.name) and column.kind != "list" and _are_times(texts):
        return "time"
    if column.kind == "category" and rows >= 20 and column.distinct == rows:
        return "row_id"
    return ""


def _are_times(texts: np.ndarray) -> bool:
    try:
        as_times(pd.Series(texts, dtype=object), "")
    except DataError:
        return False
    return True


def _warnings(column: Column, rows: int) -> tuple[str, ...]:
    found = []
    if column.distinct <= 1:
        found.append("constant")
    if column.missing > 0.95:
        found.append("nearly always missing")
    if (
        column.kind == "category"
        and rows >= 20
        and column.distinct > 0.9 * rows
        and not column.role
    ):
        found.append("like an id: hardly a value comes twice")
    if column.auc >= LEAK:
        found.append("gives the label away: AUC alone is near 1")
    return tuple(found)


def _top(texts: np.ndarray, counts: np.ndarray, rows: int) -> str:
    if not len(texts) or not counts.any():
        return "-"
    place = int(counts.argmax())
    text = texts[place] if len(texts[place]) <= 24 else f"{texts[place][:21]}..."
    return f"{text} ({counts[place] / rows:.0%})"


def _numbers(texts: np.ndarray) -> np.ndarray:
    values = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce")
    return np.asarray(values, dtype=np.float64)


def _cross_rates(codes: np.ndarray, values: int, label: np.ndarray) -> np.ndarray:
    score = np.empty(len(label))
    half = np.random.default_rng(0).random(len(label)) < 0.5
    places = np.where(codes < 0, values, codes)
    for part in (half, ~half):
        mean = label[~part].mean() if (~part).any() else 0.5
        clicks = np.bincount(places[~part], label[~part], minlength=values + 1)
        shown = np.bincount(places[~part], minlength=values + 1)
        # Against the mean of the half: the halves would be told apart by it otherwise.
        score[part] = ((clicks + mean) / (shown + 1))[places[part]] - mean
    return score
