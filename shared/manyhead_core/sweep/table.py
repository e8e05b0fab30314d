"""The table of a sweep: mean and spread over seeds and folds, paired differences of variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from manyhead_core.evaluate.files import read_json
from manyhead_core.sweep.cells import Cell
from manyhead_core.sweep.worker import is_done, read_state

KEYS = ["variant", "seed", "fold"]


@dataclass(frozen=True)
class Line:
    """One metric of one variant over its cells.

    Args:
        variant: Name.
        metric: Name.
        runs: Number of cells.
        mean: Mean over the cells.
        sd: Sample standard deviation; None for one cell.
        min: Smallest.
        max: Largest.
        pairs: Cells that share seed and fold with the first variant.
        difference: Mean difference to the first variant over these pairs.
        low: Lower 95 % limit of that mean, Student's t over the pairs.
        high: Upper limit.
    """

    variant: str
    metric: str
    runs: int
    mean: float
    sd: float | None
    min: float
    max: float
    pairs: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def gather(cells: Sequence[Cell], out: Path) -> pd.DataFrame:
    """One row a finished cell and metric: variant, seed, fold, metric, value."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        state = read_state(cell, out)
        if state is None or not is_done(cell, out):
            continue
        found = read_json(cell.folder(out) / state.run / "metrics.json")["metrics"]
        fold = -1 if cell.fold is None else cell.fold
        key = {"variant": cell.variant, "seed": cell.seed, "fold": fold}
        rows += [
            key | {"metric": name, "value": entry["value"]}
            for name, entry in found.items()
            if entry["value"] is not None
        ]
    return pd.DataFrame(rows, columns=[*KEYS, "metric", "value"])


def summarise(values: pd.DataFrame) -> list[Line]:
    """Mean, spread and paired difference of every variant and metric.

    The interval speaks of the chance of seeds and folds on this one test set. Folds share training
    samples, so with folds it is somewhat too narrow.

    Args:
        values: As `gather` gives it; its first variant is the reference.
    """
    lines = []
    for metric in values["metric"].unique():
        table = values[values["metric"] == metric].set_index(KEYS)["value"]
        variants = list(dict.fromkeys(table.index.get_level_values("variant")))
        reference = table.xs(values["variant"].iloc[0], level="variant") if variants else table
        for variant in variants:
            own = table.xs(variant, level="variant")
            first = variant == values["variant"].iloc[0]
            lines.append(_line(variant, metric, own, None if first else reference))
    return lines


def _line(variant: str, metric: str, own: pd.Series, reference: pd.Series | None) -> Line:
    numbers = own.to_numpy(dtype=float)
    count = len(numbers)
    sd = float(numbers.std(ddof=1)) if count > 1 else None
    base = (variant, metric, count, float(numbers.mean()), sd)
    line = (*base, float(numbers.min()), float(numbers.max()))
    if reference is None:
        return Line(*line)
    both = own.index.intersection(reference.index)
    change = (own.loc[both] - reference.loc[both]).to_numpy(dtype=float)
    if not len(change):
        return Line(*line)
    mean = float(change.mean())
    low, high = _student(change)
    return Line(*line, len(change), mean, low, high)


def _student(change: np.ndarray[Any, Any]) -> tuple[float | None, float | None]:
    count = len(change)
    if count < 2:
        return None, None
    half = float(t.ppf(0.975, count - 1) * change.std(ddof=1) / np.sqrt(count))
    return float(change.mean()) - half, float(change.mean()) + half
