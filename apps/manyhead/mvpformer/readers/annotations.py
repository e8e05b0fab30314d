"""Seizure times from event tables, from free text and from lists of times."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from manyhead.mvpformer.readers.files import merged
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import DataError

# Times are written with two or three digits; less than this beyond the end is rounding.
ROUNDING_S = 0.02
END = re.compile(r"(?i)(?<![a-z])(end|ends|ended|offset|off|stop|stops|stopped|over)(?![a-z])")
ONSETS, OFFSETS = ("onset", "onsets", "start"), ("offset", "offsets", "end", "stop")
RECORDINGS = ("recording", "id", "file", "filename")


class Found(NamedTuple):
    """Seizures and what has to be said about them.

    Args:
        seizures: In order and apart; None if nothing tells.
        notes: One line each.
    """

    seizures: tuple[Interval, ...] | None
    notes: tuple[str, ...] = ()


class Remark(NamedTuple):
    """Text that somebody wrote at a time of a recording.

    Args:
        onset: s from the start.
        duration: s; NaN if none is given.
        text: What was written.
    """

    onset: float
    duration: float
    text: str


def inside(id: str, intervals: Iterable[tuple[float, float]], duration: float) -> Found:
    """Seizures within a recording; an offset of NaN means until the end.

    Args:
        id: Recording, for messages.
        intervals: Onset and offset, s.
        duration: Of the recording, s.

    Raises:
        DataError: A seizure lies outside, ends before it begins, or begins nowhere.
    """
    kept, notes = [], []
    for onset, offset in intervals:
        if np.isnan(offset):
            notes.append(f"the seizure at {onset:g} s has no end: taken until the recording ends")
            offset = duration
        if np.isnan(onset) or offset < onset:
            raise DataError(
                f"{id}: a seizure from {onset:g} s to {offset:g} s is none; correct the times"
            )
        if onset >= duration or onset < 0 >= offset:
            raise DataError(
                f"{id}: the seizure from {onset:g} s to {offset:g} s lies outside the recording "
                f"of {duration:.2f} s; times count in s from the start of the file"
            )
        if onset < -ROUNDING_S or offset > duration + ROUNDING_S:
            notes.append(f"the seizure from {onset:g} s to {offset:g} s is cut at the recording")
        kept.append(Interval(max(float(onset), 0.0), min(float(offset), duration)))
    return Found(merged(kept), tuple(notes))


def read_table(path: Path, id: str) -> pd.DataFrame:
    """Rows of a TSV or CSV as text, with names of columns as they are.

    Raises:
        DataError: The file is missing or no table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{id}: no table {path.name}; pass one that exists") from error
    first = text.split("\n", 1)[0]
    separator = "\t" if "\t" in first else ";" if ";" in first else ","
    # A lone quotation mark in a TSV is text and must not swallow the rows below it.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(text.splitlines(), delimiter=separator, quoting=quoting)
    cells = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    if not cells:
        return pd.DataFrame()
    width = len(cells[0])
    if any(len(row) > width for row in cells):
        raise DataError(f"{id}: {path.name} has rows with more cells than columns; correct it")
    padded = [row + [""] * (width - len(row)) for row in cells[1:]]
    return pd.DataFrame(padded, columns=cells[0], dtype=str)


def from_events(path: Path, id: str, duration: float, pattern: str) -> Found:
    """Seizures of a BIDS `events.tsv`.

    An `eventType` that starts with `sz` is a seizure; without that column, a `trial_type` in which
    `pattern` is found.

    Args:
        path: The table.
        id: Recording, for messages.
        duration: Of the recording, s.
        pattern: Regular expression.

    Raises:
        DataError: The table or a time in it is wrong.
    """
    table = read_table(path, id)
    if "eventType" in table:
        chosen = table["eventType"].str.lower().str.startswith("sz")
    elif "trial_type" in table:
        remarks = [
            Remark(onset, length, text)
            for onset, length, text in zip(
                _times(table, "onset", path, id),
                _times(table, "duration", path, id),
                table["trial_type"],
                strict=True,
            )
        ]
        found = from_remarks(remarks, id, duration, pattern)
        return Found(found.seizures or (), found.notes)
    else:
        return Found(None, ("events.tsv has neither eventType nor trial_type: no seizures known",))
    return _rows(table[chosen.to_numpy(bool)], path, id, duration)


def from_table(path: Path, id: str, duration: float) -> Found:
    """Seizures that the user keeps in a table or a folder of tables.

    Args:
        path: As `ReadOptions.seizures`.
        id: Recording.
        duration: Of the recording, s.

    Raises:
        DataError: The table is missing or wrong.
    """
    if path.is_dir():
        names = (f"{id}.csv", f"{id}.tsv", f"{id}_events.tsv")
        own = next((path / name for name in names if (path / name).is_file()), None)
        if own is None:
            return Found(None, (f"the folder of seizures has no table {id}.csv or {id}.tsv",))
        path = own
    table = read_table(path, id)
    _need_times(table, path, id)
    column = _recordings(table)
    if column is not None:
        table = table[[Path(name).stem == id or name == id for name in table[column]]]
    if "eventType" in table:
        table = table[table["eventType"].str.lower().str.startswith("sz").to_numpy(bool)]
    return _rows(table, path, id, duration)


def check_table(path: Path, ids: Sequence[str]) -> list[str]:
    """What a table of seizures says about other recordings, one note each.

    Recordings that a table does not name have no seizures, so that a table which fits none of them
    would make every detection a false alarm.

    Args:
        path: As `ReadOptions.seizures`.
        ids: Recordings that were found.

    Raises:
        DataError: The table is missing or wrong, or it does not say which recording it means.
    """
    if path.is_dir():
        return []
    table = read_table(path, "seizures")
    column = _recordings(table)
    _need_times(table, path, "seizures")
    if column is None:
        if len(ids) > 1:
            raise DataError(
                f"seizures: {path.name} has no column recording, and there are {len(ids)} "
                "recordings; add it, with ids as in report.csv"
            )
        return []
    named = list(dict.fromkeys(table[column]))
    strange = [name for name in named if name not in ids and Path(name).stem not in ids]
    if named and len(strange) == len(named):
        raise DataError(
            f"seizures: {path.name} names none of the {len(ids)} recordings; it has {named[0]}, "
            f"they are called {ids[0]}"
        )
    if not strange:
        return []
    return [f"{path.name} names {len(strange)} recordings that are not here, first {strange[0]}"]


def _recordings(table: pd.DataFrame) -> str | None:
    return next((name for name in RECORDINGS if name in table), None)


def _need_times(table: pd.DataFrame, path: Path, id: str) -> None:
    if len(table.columns):
        _column(table, ONSETS, path, id)
        _column(table, ("duration", *OFFSETS), path, id)


def from_remarks(remarks: Iterable[Remark], id: str, duration: float, pattern: str) -> Found:
    """Seizures in free text: remarks with a duration, or pairs of begin and end.

    A remark that also says end, offset or stop closes the seizure that is open.

    Args:
        remarks: In any order.
        id: Recording, for messages.
        duration: Of the recording, s.
        pattern: Regular expression that finds seizures.

    Raises:
        DataError: A seizure lies outside the recording.
    """
    kept = sorted(remark for remark in remarks if re.search(pattern, remark.text))
    if not kept:
        return Found(None)
    intervals: list[tuple[float, float]] = []
    notes: list[str] = []
    begun: float | None = None
    for onset, length, text in kept:
        if END.search(text):
            if begun is None:
                notes.append(f"the end of a seizure at {onset:g} s has no beginning: left out")
            else:
                intervals.append((begun, onset))
            begun = None
        elif length > 0:
            intervals.append((onset, onset + length))
        elif begun is None:
            begun = onset
    if begun is not None:
        intervals.append((begun, float("nan")))
    found = inside(id, intervals, duration)
    return Found(found.seizures, (*notes, *found.notes))


def _rows(table: pd.DataFrame, path: Path, id: str, duration: float) -> Found:
    if table.empty:
        return Found(())
    onsets = _times(table, _column(table, ONSETS, path, id), path, id)
    if "duration" in table:
        offsets = [
            onset + length
            for onset, length in zip(onsets, _times(table, "duration", path, id), strict=True)
        ]
    else:
        offsets = _times(table, _column(table, OFFSETS, path, id), path, id)
    return inside(id, zip(onsets, offsets, strict=True), duration)


def _column(table: pd.DataFrame, names: Sequence[str], path: Path, id: str) -> str:
    for name in names:
        if name in table:
            return name
    raise DataError(
        f"{id}: {path.name} has the columns {', '.join(map(str, table.columns))}; "
        f"needed are onset and duration or offset, in s"
    )


def _times(table: pd.DataFrame, name: str, path: Path, id: str) -> list[float]:
    """A column in s; n/a and empty cells are NaN."""
    if name not in table:
        return [float("nan")] * len(table)
    found = []
    for cell in table[name]:
        try:
            blank = str(cell).lower() in ("", "n/a", "na", "nan")
            found.append(float("nan") if blank else float(cell))
        except ValueError:
            raise DataError(
                f"{id}: {path.name} has {name} {cell!r}; times are numbers in s"
            ) from None
    return found
