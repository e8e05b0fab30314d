"""Event and sample scores against results of the package that defines them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from comparison import Reference

from manyhead.mvpformer.events.steps import step_counts, step_metrics
from manyhead.mvpformer.events.szcore import (
    EventScore,
    ScoreOptions,
    pieces,
    sample_mask,
    score_events,
    score_samples,
)

NAMES = {
    "toleranceStart": "before",
    "toleranceEnd": "after",
    "minOverlap": "overlap",
    "maxEventDuration": "longest",
    "minDurationBetweenEvents": "merge",
}


def replay_scoring(reference: Reference | Path) -> None:
    """All cases of the file, exactly."""
    path = reference.path if isinstance(reference, Reference) else reference
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["cases"], f"{path.name}: no cases"
    for number, case in enumerate(content["cases"]):
        replay_case(case, f"case {number}")


def replay_case(case: dict[str, Any], where: str) -> None:
    """One recording: pieces, events, samples and kappa."""
    options = ScoreOptions(**{NAMES[name]: value for name, value in case["parameters"].items()})
    true, found, duration = case["reference"], case["hypothesis"], case["duration"]
    for name, events in (("merged_split_ref", true), ("merged_split_hyp", found)):
        ours = [list(piece) for piece in pieces(events, duration, options)]
        assert ours == case[name], f"{where}: {name}"
    check(score_events(true, found, duration, options), case["event"], f"{where}: event")
    check(score_samples(true, found, duration), case["sample"], f"{where}: sample")
    counts = step_counts(sample_mask(true, duration), sample_mask(found, duration))
    close(float(step_metrics(counts)["kappa"]), case["kappa_1hz"], f"{where}: kappa")


def check(score: EventScore, expected: dict[str, Any], where: str) -> None:
    """Counts are equal, ratios too but for rounding."""
    ours = {"tp": score.tally.hits, "fp": score.tally.alarms, "refTrue": score.tally.true}
    assert ours == {name: expected[name] for name in ours}, where
    ratios = {name: getattr(score, name) for name in ("sensitivity", "precision", "f1")}
    for name, value in (ratios | {"fpRate": score.alarms_per_day}).items():
        close(value, expected[name], f"{where} {name}")
    assert set(expected) == {*ours, *ratios, "fpRate"}, where


def close(ours: float, expected: float | None, where: str) -> None:
    """Equal to 12 digits; None stands for undefined."""
    if expected is None:
        assert math.isnan(ours), f"{where}: {ours} instead of undefined"
    else:
        assert math.isclose(ours, expected, rel_tol=1e-12, abs_tol=1e-13), f"{where}: {ours}"
