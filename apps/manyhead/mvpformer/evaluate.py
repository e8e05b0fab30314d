"""From the table of predictions to metrics of events, steps and patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from manyhead.mvpformer.events.page import MEANING, event_sections
from manyhead.mvpformer.events.statistics import POOLED
from manyhead.mvpformer.events.szcore import SZCORE, EventScore, Tally
from manyhead.mvpformer.events.table import EventRows, event_rows, event_statistics
from manyhead.mvpformer.events.tallies import OVERLAP, Counted, pooled
from manyhead_core.evaluate.calibration import calibration_json, reliability
from manyhead_core.evaluate.evaluation import (
    Evaluation,
    defined,
    estimates,
    one_part,
    resampled,
    too_few,
    values_of,
)
from manyhead_core.evaluate.kinds import Kind
from manyhead_core.evaluate.rows import row_notes
from manyhead_core.evaluate.segments import segment_masks

SHOWN = (
    "event_f1", "false_alarms_per_day", "event_sensitivity", "event_precision", "step_f1",
    "step_kappa", "step_auroc", "delay_median",
)  # fmt: skip
KIND = Kind("events", event_rows, event_statistics, SHOWN, event_sections, MEANING)


def evaluate(frame: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> Evaluation:
    """Metrics of detected seizures with 95 % intervals that resample patients.

    The headline is `event_f1` after SzCORE, the mean over patients; the tolerance is in `notes`
    and `details`.

    Args:
        frame: Table of predictions, one row a step; `group` is the patient.
        draws: Bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: A column is missing, no row is left, or a value cannot be used.
    """
    rows = event_rows(frame)
    found = evaluate_rows(rows, draws=draws, seed=seed)
    found.segments.update(_segments(frame, draws, seed))
    found.notes.extend(_threshold_notes(frame))
    return found


def evaluate_rows(
    rows: EventRows, tolerance: str = "", *, draws: int = 2000, seed: int = 0
) -> Evaluation:
    """The same from what was counted in each patient.

    Args:
        rows: One row a patient.
        tolerance: When a detection counted; empty for SzCORE.
        draws: Bootstrap resamples.
        seed: Seed of the resamples.
    """
    statistics = event_statistics(rows)
    limits, interval = resampled(rows, statistics, draws, seed)
    whole = pooled(list(rows.counted))
    patients = each_patient(rows)
    return Evaluation(
        num_samples=rows.steps or whole.recordings,
        num_groups=rows.num_groups,
        num_excluded=rows.num_excluded,
        metrics=estimates(values_of(statistics, rows), limits),
        interval=interval,
        calibration=_calibration(whole),
        baseline=_baseline(whole),
        groups=patients if too_few(rows) else [],
        notes=_notes(rows, tolerance or SZCORE.describe()),
        kind=KIND.name,
        details=_details(whole, tolerance or SZCORE.describe()) | {"patients": patients},
    )


def each_patient(rows: EventRows) -> list[dict[str, Any]]:
    """Recordings, hours, seizures and the main metrics of every patient; None where undefined."""
    statistics = event_statistics(rows)
    entries = []
    for number, (name, patient) in enumerate(zip(rows.frame["group"], rows.counted, strict=True)):
        late = patient.delays[np.isfinite(patient.delays)]
        entry: dict[str, Any] = {
            "value": str(name),
            "n": len(patient.label) or patient.recordings,
            "recordings": patient.recordings,
            "hours": patient.events.seconds / 3600,
            "seizures": patient.seizures,
            "detected": len(late),
            "false_alarms": patient.events.alarms,
            "delay_median": float(np.median(late)) if len(late) else None,
        }
        kept = {key: defined(value[number]) for key, value in statistics.each.items()}
        entries.append(entry | {key: kept[key] for key in SHOWN if key in kept})
    return entries


def _details(whole: Counted, tolerance: str) -> dict[str, Any]:
    """What the numbers depend on: the tolerance, and the same detections without any."""
    kinds = (
        ("with tolerance", tolerance, whole.events),
        ("overlap", OVERLAP.describe(), whole.overlap),
        ("seconds", "each second counts for itself, no tolerance", whole.samples),
    )
    return {
        "tolerance": tolerance,
        "tolerances": [_scored(name, text, tally) for name, text, tally in kinds],
        "seizures": whole.seizures,
        "hours": whole.events.seconds / 3600,
        "recordings": whole.recordings,
        "delays": whole.delays[np.isfinite(whole.delays)].tolist(),
    }


def _scored(name: str, text: str, tally: Tally) -> dict[str, Any]:
    score = EventScore(tally)
    values = {
        "sensitivity": score.sensitivity,
        "precision": score.precision,
        "f1": score.f1,
        "false_alarms_per_day": score.alarms_per_day,
    }
    return {"name": name, "rule": text} | {key: defined(v) for key, v in values.items()}


def _calibration(whole: Counted) -> dict[str, Any]:
    if not len(whole.label):
        return {}
    return calibration_json(reliability(whole.label, whole.probability))


def _baseline(whole: Counted) -> dict[str, Any]:
    """What a detector that never fires would reach."""
    some = whole.seizures > 0
    found: dict[str, Any] = {"name": "no detection"}
    for ending in ("", POOLED):
        found |= {f"event_f1{ending}": 0.0 if some else None}
        found |= {f"event_sensitivity{ending}": 0.0 if some else None}
        found |= {f"false_alarms_per_{unit}{ending}": 0.0 for unit in ("day", "hour")}
        if len(whole.label):
            found |= {f"step_auroc{ending}": 0.5, f"step_f1{ending}": 0.0 if some else None}
    return found


def _segments(frame: pd.DataFrame, draws: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    good = frame[(frame["status"].astype(str) == "ok").to_numpy()] if "status" in frame else frame
    for name, parts in segment_masks(good).items():
        for value, chosen in parts:
            rows = event_rows(good[chosen])
            entry = one_part(value, rows, event_statistics, SHOWN, draws, seed)
            found.setdefault(name, []).append(entry | {"n": rows.steps})
    return found


def _notes(rows: EventRows, tolerance: str) -> list[str]:
    patients = list(rows.counted)
    notes = [
        f"a seizure counts as detected with this tolerance: {tolerance}",
        "metrics are means over the patients in which they are defined; those named pooled add "
        "the counts of all patients",
    ]
    silent = sum(1 for patient in patients if not patient.seizures)
    if silent:
        notes.append(
            f"{silent} of {len(patients)} patients have no seizure: they have no sensitivity, and "
            "an event F1 only (0) where there is a false alarm"
        )
    return notes + row_notes(rows)


def _threshold_notes(frame: pd.DataFrame) -> list[str]:
    if "threshold" not in frame:
        return []
    values = pd.to_numeric(frame["threshold"], errors="coerce").dropna().unique()
    return [f"threshold of the step probability: {', '.join(f'{v:g}' for v in sorted(values))}"]


def headline(metrics: Mapping[str, Any]) -> str:
    """The main result in one line, with its tolerance.

    Args:
        metrics: Content of metrics.json.
    """
    found, tolerance = metrics["metrics"], metrics["details"]["tolerance"]
    f1, alarms = (found[name]["value"] for name in ("event_f1", "false_alarms_per_day"))
    shown = "undefined" if f1 is None else f"{f1:.3f}"
    return f"event F1 {shown}, {alarms:.2f} false alarms a day (tolerance: {tolerance})"
