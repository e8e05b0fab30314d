"""Sections of the report page for detected seizures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manyhead.mvpformer.events.tallies import pooled
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.calibration import reliability
from manyhead_core.evaluate.html import Page

MEANING = {
    "event_f1": "harmonic mean of sensitivity and precision of seizures (SzCORE)",
    "event_sensitivity": "share of true seizures that a detection overlaps, within the tolerance",
    "event_precision": "share of detections that are right: hits over hits and false alarms",
    "false_alarms_per_day": "detections without a match in 24 h of recording",
    "false_alarms_per_hour": "detections without a match in an hour of recording",
    "step_f1": "harmonic mean of sensitivity and precision of single steps",
    "step_kappa": "agreement of the steps with their labels beyond chance (Cohen); 0 is chance",
    "step_sensitivity": "share of the steps in seizures that are called one",
    "step_specificity": "share of the other steps that are not",
    "step_precision": "share of the steps called a seizure that are in one",
    "step_auroc": "chance that a step in a seizure is scored above one outside",
    "step_average_precision": "mean precision over the steps in seizures",
    "sample_f1": "harmonic mean of sensitivity and precision of single seconds, no tolerance",
    "sample_sensitivity": "share of the seconds in seizures that are in a detection",
    "sample_precision": "share of the detected seconds that are in a seizure",
}
MEANING |= {
    "delay_median": "from onset to the end of the first positive step, s; detected seizures only",
    "within_10_s": "share of all true seizures that are noticed within 10 s of their onset",
    "within_30_s": "the same within 30 s",
    "within_60_s": "the same within 60 s",
}
PATIENT_COLUMNS = (
    ("recordings", "recordings", "d"),
    ("hours", "hours", ".2f"),
    ("seizures", "seizures", "d"),
    ("detected", "detected", "d"),
    ("event_sensitivity", "sensitivity", ".3f"),
    ("event_f1", "event F1", ".3f"),
    ("false_alarms", "false alarms", "d"),
    ("false_alarms_per_day", "false alarms/day", ".2f"),
    ("delay_median", "median delay (s)", ".1f"),
    ("step_kappa", "step kappa", ".3f"),
)


def event_sections(page: Page, rows: Any, metrics: Mapping[str, Any]) -> None:
    """Tolerances, patients, delays and the ranking of steps.

    Args:
        page: Report.
        rows: Of the table of predictions, one a patient.
        metrics: Content of metrics.json.
    """
    details = metrics.get("details") or {}
    _events(page, details)
    patients_section(page, details.get("patients") or [], few=bool(metrics.get("groups")))
    _delays(page, np.asarray(details.get("delays") or [], np.float64), details)
    whole = pooled(list(rows.counted))
    if len(whole.label):
        _steps(page, np.asarray(whole.label), np.asarray(whole.probability))


def _events(page: Page, details: Mapping[str, Any]) -> None:
    page.section("Seizures")
    page.facts(
        {
            "true seizures": details.get("seizures", 0),
            "recordings": details.get("recordings", 0),
            "hours": f"{details.get('hours', 0.0):.2f}",
        }
    )
    page.note(f"Tolerance of the event metrics: {details.get('tolerance', '')}.")
    keys = ("sensitivity", "precision", "f1", "false_alarms_per_day")
    rows = [
        [entry["name"], entry["rule"], *(_text(entry.get(key), ".3f") for key in keys)]
        for entry in details.get("tolerances") or []
    ]
    header = ["counted", "rule", "sensitivity", "precision", "F1", "false alarms/day"]
    page.table("The same detections counted in three ways, all patients together", header, rows)


def patients_section(
    page: Page, patients: Sequence[Mapping[str, Any]], *, few: bool = False
) -> None:
    """A row for each patient, and how the main metrics spread.

    Args:
        page: Report.
        patients: As `details` of metrics.json has them.
        few: Whether they are too few for intervals.
    """
    page.section("Patients")
    if few:
        page.paragraph("Too few patients for an interval: here is each of them.")
    page.table("Each patient; an empty cell is undefined", *patient_table(patients))
    for key, title in (("event_f1", "event F1"), ("false_alarms_per_day", "false alarms per day")):
        values = [p[key] for p in patients if p.get(key) is not None]
        if len(values) > 1:
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            page.paragraph(
                f"{title}: median over patients {middle:.3f}, quartiles {low:.3f} and {high:.3f}, "
                f"range {min(values):.3f} to {max(values):.3f}."
            )


def patient_table(patients: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Names of columns and rows of the table of patients, as text; columns nobody has are left out.

    Args:
        patients: As `details` of metrics.json has them.
    """
    shown = [column for column in PATIENT_COLUMNS if any(column[0] in p for p in patients)]
    rows = [
        [str(patient["value"]), *(_text(patient.get(key), form) for key, _, form in shown)]
        for patient in patients
    ]
    return ["patient", *(title for _, title, _ in shown)], rows


def _delays(page: Page, delays: Any, details: Mapping[str, Any]) -> None:
    if not len(delays):
        return
    page.section("Delay")
    page.paragraph(
        f"From the onset of a seizure to the end of its first positive step, for the {len(delays)} "
        f"of {details.get('seizures', len(delays))} seizures that were detected. A negative delay "
        "is an alarm within the tolerance before the onset."
    )
    ordered = np.sort(delays)
    share = np.arange(1, len(ordered) + 1) / max(int(details.get("seizures", 0)), len(ordered))
    steps = np.repeat(ordered, 2)[1:] if len(ordered) > 1 else np.r_[ordered, ordered]
    heights = np.repeat(share, 2)[:-1] if len(ordered) > 1 else np.r_[0.0, share]
    lines = {"share of all seizures": {"test": (steps, heights)}}
    page.figure(
        "Share of all true seizures noticed by a delay.", figures.curves(lines, "delay (s)")
    )


def _steps(page: Page, label: Any, probability: Any) -> None:
    page.section("Steps")
    page.paragraph("All steps of all patients together; patients with more recording weigh more.")
    if label.min() < label.max():
        curves = {"model": (label, probability)}
        page.figure("ROC curve of steps; the dashed diagonal is chance.", figures.roc(curves))
        page.figure(
            "Precision against recall of steps; the dot marks the share of seizure steps, which "
            "is chance.",
            figures.precision_recall(curves),
        )
    page.figure(
        "Observed share of seizure steps against predicted probability.",
        figures.reliability({"model": reliability(label, probability)}),
    )


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
