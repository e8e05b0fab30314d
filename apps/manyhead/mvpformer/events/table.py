"""From the table of predictions, one row a step, to what is counted in each patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from manyhead.mvpformer.events.postprocess import ROUNDING, Array, follows, merged
from manyhead.mvpformer.events.statistics import PatientStatistics
from manyhead.mvpformer.events.szcore import SZCORE, ScoreOptions
from manyhead.mvpformer.events.tallies import Counted, Steps, count_steps, pooled
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import DataError
from manyhead_core.evaluate.rows import Rows, check, kept_rows, numbers

COLUMNS = (
    "label", "score", "recording", "start", "stop", "event_start", "event_stop", "detected",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EventRows(Rows):
    """One row a patient, or a recording where the patients are not known.

    Labels are numbers of seizures, `(patients,)`; scores say nothing.

    Args:
        counted: What was counted in each patient, of type `Counted`, `(patients,)`.
        steps: Rows of the table of predictions that were scored.
    """

    counted: Array
    steps: int


def event_statistics(rows: EventRows) -> PatientStatistics:
    """Metrics as a function of patient multiplicities."""
    return PatientStatistics(list(rows.counted))


def event_rows(frame: pd.DataFrame, options: ScoreOptions = SZCORE) -> EventRows:
    """Count what can be scored in a table of predictions.

    Args:
        frame: One row a step: `label`, `score`, `recording`, `start`, `stop`, `event_start`,
            `event_stop`, `detected`, and where known `group`, `status` and `duration` (length of
            the recording in s; without it a recording ends with its last step).
        options: When a detection counts.

    Raises:
        DataError: A column is missing, no row is left, or a value cannot be used.
    """
    kept = _checked(frame)
    counted: dict[str, list[Counted]] = {}
    for (group, _), part in kept.groupby(["unit", "recording"], sort=False):
        counted.setdefault(str(group), []).append(_count(part, options))
    return patient_rows(
        {name: pooled(parts) for name, parts in sorted(counted.items())},
        num_excluded=len(frame) - len(kept),
        steps=len(kept),
    )


def patient_rows(
    patients: dict[str, Counted], *, num_excluded: int = 0, steps: int = 0
) -> EventRows:
    """Rows of patients whose counts are known.

    Args:
        patients: By group id.
        num_excluded: Steps, or recordings, that could not be scored.
        steps: Steps that were.
    """
    number = len(patients)
    column = np.empty(number, object)
    column[:] = list(patients.values())
    return EventRows(
        frame=pd.DataFrame({"group": list(patients)}),
        labels=np.array([patient.seizures for patient in patients.values()], np.float64),
        scores=np.zeros(number),
        groups=np.arange(number),
        num_groups=number,
        named=np.ones(number, bool),
        num_excluded=num_excluded,
        counted=column,
        steps=steps,
    )


def true_seizures(start: Array, stop: Array, onset: Array, offset: Array) -> list[Interval]:
    """Whole seizures from the part of one that lies in each step.

    Parts belong together when they touch, or when one reaches the end of its step and the next one
    the beginning of the step that follows.

    Args:
        start: Start of each step in s, rising, `(steps,)`.
        stop: End in s, `(steps,)`.
        onset: Start of the part in s, NaN for none, `(steps,)`.
        offset: Its end in s.
    """
    reaches = np.abs(offset[:-1] - stop[:-1]) <= ROUNDING
    begins = np.abs(onset[1:] - start[1:]) <= ROUNDING
    joined = np.r_[False, reaches & begins & follows(start)]
    found: list[Interval] = []
    for number in np.flatnonzero(np.isfinite(onset) & np.isfinite(offset)):
        part = Interval(float(onset[number]), float(offset[number]))
        if joined[number]:
            found[-1] = Interval(found[-1].onset, max(found[-1].offset, part.offset))
        else:
            found.append(part)
    return merged(found, 0.0)


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    kept = kept_rows(frame, COLUMNS)
    values = {name: numbers(kept, name) for name in ("label", "score", "start", "stop")}
    for name in ("event_start", "event_stop"):
        values[name] = pd.to_numeric(kept[name], errors="coerce").to_numpy(np.float64)
    flags = kept["detected"].astype(str).str.lower().replace({"true": "1", "false": "0"})
    values["detected"] = numbers(kept.assign(detected=flags), "detected")
    check(kept, "label", np.isin(values["label"], (0.0, 1.0)), "neither 0 nor 1")
    check(kept, "detected", np.isin(values["detected"], (0.0, 1.0)), "neither 0 nor 1")
    share = values["score"]
    check(kept, "score", (share >= 0) & (share <= 1), "no probability in [0, 1]")
    check(kept, "stop", values["stop"] > values["start"], "not after start")
    if "duration" in kept:
        values["duration"] = numbers(kept, "duration")
    recording = kept["recording"].astype(str)
    group = kept["group"].fillna("").astype(str) if "group" in kept else recording
    names = {"recording": recording, "unit": group.where(group != "", recording)}
    table = pd.DataFrame({**names, **values})
    repeated = table.duplicated(["unit", "recording", "start"])
    if repeated.any():
        raise DataError(
            f"predictions: recording {table['recording'][repeated].iloc[0]} has two steps that "
            f"start at {table['start'][repeated].iloc[0]:g} s"
        )
    return table.sort_values(["unit", "recording", "start"], kind="stable", ignore_index=True)


def _count(part: pd.DataFrame, options: ScoreOptions) -> Counted:
    column = {str(name): part[name].to_numpy() for name in part}
    steps = Steps(
        start=column["start"],
        stop=column["stop"],
        label=column["label"],
        probability=column["score"],
        detected=column["detected"],
    )
    seizures = true_seizures(
        column["start"], column["stop"], column["event_start"], column["event_stop"]
    )
    duration = float(column["stop"].max())
    if "duration" in column:
        duration = max(duration, float(column["duration"].max()))
    return count_steps(steps, seizures, duration, options)
