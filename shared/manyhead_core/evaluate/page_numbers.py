"""Sections of the report page for predicted numbers and for survival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manyhead_core.evaluate import figures
from manyhead_core.evaluate.html import Page
from manyhead_core.evaluate.regression import NumberRows

ROWS_AT_RISK = 6


def number_sections(page: Page, rows: NumberRows) -> None:
    """Predicted against true numbers."""
    page.section("Predictions")
    page.figure(
        "Predicted against true values; on the dashed diagonal both agree.",
        figures.scatter(rows.labels, rows.scores),
    )


def survival_sections(page: Page, details: Mapping[str, Any]) -> None:
    """Survival curves of the halves by predicted risk, with the log-rank test."""
    page.section("Survival")
    curves = details.get("curves") or []
    if not curves:
        page.paragraph("All predicted risks are equal: there are no risk groups to compare.")
        return
    page.figure(
        "Kaplan-Meier curves of the samples above and below the median predicted risk of this "
        "very test set, with pointwise 95 % limits; ticks mark censored times.",
        figures.survival(curves),
    )
    p, ratio = details.get("log_rank_p"), details.get("hazard_ratio")
    if p is not None:
        shown = "below 0.0001" if p < 1e-4 else f"= {p:.4f}"
        extra = f" Events observed over expected, high over low risk: {ratio:.2f}." if ratio else ""
        page.paragraph(f"Log-rank test of the two groups: p {shown}.{extra}")
    facts = [
        [
            c["name"],
            c["n"],
            c["events"],
            "not reached" if c["median"] is None else f"{c['median']:g}",
        ]
        for c in curves
    ]
    page.table("Risk groups", ["group", "samples", "events", "median survival time"], facts)
    times = np.linspace(0, max(curve["time"][-1] for curve in curves), ROWS_AT_RISK)
    rows = [
        [f"{time:.4g}", *(_at_risk(curve, time) for curve in curves)] for time in times.tolist()
    ]
    page.table("Samples under observation", ["time", *(c["name"] for c in curves)], rows)


def _at_risk(curve: Mapping[str, Any], time: float) -> int:
    """Samples whose own time is at least this."""
    place = int(np.searchsorted(curve["time"], time))
    return int(curve["at_risk"][place]) if place < len(curve["time"]) else 0
