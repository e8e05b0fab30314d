"""Tables of seizures and of steps: the events.tsv of SzCORE, and what users have instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.mvpformer.readers.annotations import from_events, from_table, read_table
from manyhead.mvpformer.readers.options import SEIZURE_PATTERN
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import replace

NONE = "n/a"
COLUMNS = (
    "onset", "duration", "eventType", "confidence", "channels", "dateTime", "recordingDuration",
)  # fmt: skip
EMPTY = ("", "n/a", "nan", "none")
SEIZURE, BACKGROUND = "sz", "bckg"


def write_events(
    path: Path,
    events: Sequence[Interval],
    duration: float,
    *,
    confidence: Sequence[float | None] | None = None,
    channels: Sequence[str] | None = None,
    date_time: str = NONE,
) -> Path:
    """Write detected seizures as SzCORE does; a recording without any is one line `bckg`.

    Args:
        path: File; replaced in one step.
        events: Seizures in s.
        duration: Length of the recording in s.
        confidence: Of each event, from 0 to 1; None for unknown.
        channels: Names of the channels of each event, separated by commas.
        date_time: When the recording began. Left out by default: a date can identify a patient.
    """
    known = list(confidence) if confidence is not None else [None] * len(events)
    where = list(channels) if channels is not None else [NONE] * len(events)
    rows = [
        (_time(event.onset), _time(event.offset - event.onset), SEIZURE, _share(share), place)
        for event, share, place in zip(events, known, where, strict=True)
    ]
    rows = rows or [(_time(0.0), _time(duration), BACKGROUND, NONE, NONE)]
    table = pd.DataFrame([(*row, date_time, _time(duration)) for row in rows], columns=COLUMNS)
    return replace(path, lambda file: table.to_csv(file, sep="\t", index=False))


def write_steps(
    path: Path,
    stop: npt.ArrayLike,
    probability: npt.ArrayLike,
    more: Mapping[str, npt.ArrayLike] | None = None,
) -> Path:
    """Write the probability of each step: `time` (when it could be known, s), `p`, and more.

    Args:
        path: File, tab-separated; replaced in one step.
        stop: End of the newest segment of each step in s, `(steps,)`.
        probability: Of a seizure, `(steps,)`.
        more: Further columns by name.
    """
    columns = {
        "time": np.round(np.asarray(stop, np.float64), 3),
        "p": np.round(np.asarray(probability, np.float64), 6),
    }
    table = pd.DataFrame(
        columns | {name: np.asarray(value) for name, value in (more or {}).items()}
    )
    return replace(path, lambda file: table.to_csv(file, sep="\t", index=False, na_rep=NONE))


def recording_length(path: Path) -> float | None:
    """Length of the recording in s by the column `recordingDuration`; None without a value.

    Raises:
        DataError: The file is no table, or the value is no length.
    """
    table = read_table(path, path.name)
    if "recordingDuration" not in table:
        return None
    texts = [text for text in table["recordingDuration"] if text.lower() not in EMPTY]
    values = pd.to_numeric(pd.Series(texts, dtype=str), errors="coerce").to_numpy(float)
    if not np.isfinite(values).all() or (values <= 0).any():
        raise DataError(f"{path.name}: recordingDuration is {texts[0]!r}; a number in s is needed")
    return float(values.max()) if len(values) else None


def read_events(path: Path, duration: float) -> tuple[Interval, ...]:
    """Seizures of an events.tsv, or of a table with `onset` and `offset` or `duration`, in s.

    Rows whose `eventType` starts with `sz` are seizures, without that column those whose
    `trial_type` says so, and without either every row is one.

    Args:
        path: The table.
        duration: Length of the recording in s.

    Raises:
        DataError: The file is no such table, or a seizure lies outside of the recording.
    """
    table = read_table(path, path.name)
    if not len(table.columns):
        raise DataError(f"{path.name}: is empty; a table of events has a line of column names")
    typed = {"eventType", "trial_type"} & set(table)
    if typed:
        found = from_events(path, path.name, duration, SEIZURE_PATTERN)
    else:
        found = from_table(path, path.stem, duration)
    return found.seizures or ()


def _time(value: float) -> str:
    return f"{value:.3f}"


def _share(value: float | None) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value:.4f}"
