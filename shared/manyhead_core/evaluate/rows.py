"""The rows of a table of predictions that can be scored, whatever is predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manyhead_core.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows with status ok, and which group each belongs to.

    Args:
        frame: Rows with status ok.
        labels: What is true, in float64, `(rows,)`.
        scores: What was predicted, in float64, `(rows,)`, or `(rows, classes)`.
        groups: Code of the group, `(rows,)`; None when no row has one. A row without a group is a
            group of its own.
        num_groups: Groups that have a name.
        named: True where the row has a group, `(rows,)`.
        num_excluded: Rows with another status.
    """

    frame: pd.DataFrame
    labels: Array
    scores: Array
    groups: Array | None
    num_groups: int
    named: Array
    num_excluded: int

    @property
    def units(self) -> Array:
        """Code of what a bootstrap draws with all its rows: the group, else the row; `(rows,)`."""
        return np.arange(len(self.labels)) if self.groups is None else self.groups

    @property
    def unit(self) -> str:
        """What a bootstrap draws: `group` or `row`."""
        return "row" if self.groups is None else "group"

    def subset(self, chosen: Array) -> Self:
        """The chosen rows alone.

        Args:
            chosen: True where a row is kept, `(rows,)`.
        """
        frame = self.frame[chosen].reset_index(drop=True)
        groups, number, named = group_codes(frame)
        known: dict[str, Any] = {
            "frame": frame,
            "groups": groups,
            "num_groups": number,
            "named": named,
        }
        arrays: dict[str, Any] = {
            field.name: value[chosen]
            for field in dataclasses.fields(self)
            if field.name not in known
            for value in [getattr(self, field.name)]
            if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **known, **arrays)


def kept_rows(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The rows with status ok, numbered from 0.

    Raises:
        DataError: A column is missing or no row is left.
    """
    for name in columns:
        if name not in frame:
            raise DataError(f"predictions: column {name} is missing")
    status = frame["status"].astype(str) if "status" in frame else pd.Series("ok", frame.index)
    kept = frame[(status == "ok").to_numpy()].reset_index(drop=True)
    if kept.empty:
        raise DataError(f"predictions: none of the {len(frame)} rows has the status ok")
    return kept


def numbers(frame: pd.DataFrame, name: str) -> Array:
    """A column in float64, `(rows,)`.

    Raises:
        DataError: A value is missing or no number.
    """
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
    check(frame, name, ~np.isnan(values), "missing or not a number")
    return values


def check(frame: pd.DataFrame, name: str, good: Array, what: str) -> None:
    """Refuse a column with a value that cannot be used.

    Raises:
        DataError: `good` is not True everywhere; the message names the first row.
    """
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    where = frame["id"].iloc[first] if "id" in frame else first
    raise DataError(
        f"predictions: {name} is {what} in {int((~good).sum())} of {len(frame)} rows with the "
        f"status ok, first in id {where}"
    )


def group_codes(frame: pd.DataFrame) -> tuple[Array | None, int, Array]:
    """Code of each row's group (None when no row has one), named groups, and who has one."""
    if "group" not in frame:
        return None, 0, np.zeros(len(frame), bool)
    groups = frame["group"].fillna("").astype(str)
    named = (groups != "").to_numpy()
    codes, names = pd.factorize(groups.where(named, None))
    if not len(names):
        return None, 0, named
    codes = np.asarray(codes, dtype=np.int64)
    codes[~named] = len(names) + np.arange(int((~named).sum()))
    return codes, len(names), named


def row_notes(rows: Rows) -> list[str]:
    """What a reader should know about which rows were scored."""
    notes = []
    if rows.num_excluded:
        notes.append(f"{rows.num_excluded} rows without the status ok were left out")
    return notes
