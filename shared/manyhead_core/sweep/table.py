"""The table of a sweep: mean and spread over seeds and folds, paired differences of variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from manyhead_core.cli import console
from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import read_json
from manyhead_core.evaluate.predictions import Evaluated, read_predictions
from manyhead_core.sweep.cells import Cell
from manyhead_core.sweep.worker import is_done, read_state

KEYS = ["variant", "seed", "fold"]
POOLED = "pooled/"


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


def pool_folds(
    cells: Sequence[Cell], out: Path, evaluate: Callable[[pd.DataFrame], Evaluated]
) -> pd.DataFrame:
    """One row a variant, seed and metric `pooled/<name>`: the folds' test samples as one table.

    Each sample is predicted once, by the fold that held it out. A seed counts when all of its folds
    are done and share no sample.

    Args:
        cells: All cells; those without a fold are left alone.
        out: Folder of the sweep.
        evaluate: Metrics of a table of predictions.
    """
    rows: list[dict[str, Any]] = []
    for (variant, seed), folds in _by_seed(cells).items():
        if not all(is_done(cell, out) for cell in folds):
            continue
        states = [(cell, read_state(cell, out)) for cell in folds]
        places = [cell.folder(out) / state.run for cell, state in states if state is not None]
        try:
            frame = pd.concat([read_predictions(place) for place in places], ignore_index=True)
            if frame["id"].duplicated().any():
                raise DataError("two folds test the same sample")
            found = evaluate(frame).to_json()["metrics"]
        except DataError as err:
            console.say(f"{variant}/seed-{seed}: folds are not pooled: {err}")
            continue
        key = {"variant": variant, "seed": seed, "fold": -1}
        rows += [
            key | {"metric": f"{POOLED}{name}", "value": entry["value"]}
            for name, entry in found.items()
            if entry["value"] is not None
        ]
    return pd.DataFrame(rows, columns=[*KEYS, "metric", "value"])


def _by_seed(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        if cell.fold is not None:
            found.setdefault((cell.variant, cell.seed), []).append(cell)
    return found


def summarise(values: pd.DataFrame) -> list[Line]:
    """Mean, spread and paired difference of every variant and metric.

    The interval speaks of the chance of seeds and folds on this one test set. Folds share training
    samples, so with folds it is somewhat too narrow; pooled metrics have one value a seed.

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
