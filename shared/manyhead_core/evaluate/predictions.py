"""The two files of a test run: predictions.csv and metrics.json."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import read_json, replace, replace_json

FORMAT = 1
TEXT = ("id", "group", "site", "status")
REQUIRED = ("id", "label", "status")


class Evaluated(Protocol):
    """What an app's `evaluate` function returns."""

    def to_json(self) -> dict[str, Any]:
        """Metrics by name, each with `value`, `low`, `high`, and whatever else it found."""
        ...


@dataclass(frozen=True)
class Results:
    """What a test run has left.

    Args:
        folder: Where it was read from.
        frame: One row a sample; id, group, site, status and segments are strings.
        metrics: Content of metrics.json.
    """

    folder: Path
    frame: pd.DataFrame
    metrics: dict[str, Any]


def write_results(
    folder: Path, frame: pd.DataFrame, evaluation: Evaluated, meta: Mapping[str, Any]
) -> None:
    """Write predictions.csv and metrics.json, each in one step.

    Floating-point columns are written so that reading gives the same float64.

    Args:
        folder: Run folder, or its folder `validation`.
        frame: One row a sample.
        evaluation: What was found.
        meta: App, config, seed, environment and hashes.
    """
    found = evaluation.to_json()
    groups = frame["group"].astype(str) if "group" in frame else pd.Series([], dtype=str)
    counts = {"num_samples": len(frame), "num_groups": int(groups[groups != ""].nunique())}
    single = frame.select_dtypes("float32").columns
    table = frame.astype(dict.fromkeys(single, np.float64))
    replace(folder / "predictions.csv", lambda path: table.to_csv(path, index=False))
    replace_json(folder / "metrics.json", {"format": FORMAT, **meta, **counts, **found})


def read_results(folder: Path) -> Results:
    """Read what `write_results` has written.

    Raises:
        DataError: The folder is missing, was never tested, or its files are damaged.
    """
    metrics_file = folder / "metrics.json"
    if not folder.is_dir():
        raise DataError(f"{folder}: folder does not exist")
    if not metrics_file.is_file():
        raise DataError(f"{folder}: holds no results yet; {_remedy(folder)}")
    metrics = read_json(metrics_file)
    if metrics.get("format") != FORMAT:
        raise DataError(
            f"{metrics_file}: format {metrics.get('format')} is not {FORMAT}; {_remedy(folder)}"
        )
    return Results(folder, read_predictions(folder), metrics)


def read_predictions(folder: Path) -> pd.DataFrame:
    """The table of predictions of a run folder.

    Raises:
        DataError: It is missing, damaged, or lacks a column.
    """
    path = folder / "predictions.csv"
    if not path.is_file():
        raise DataError(f"{folder}: holds no predictions.csv; {_remedy(folder)}")
    try:
        # Text first: how pandas rounds numbers depends on its version, float() never rounds twice.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        names = [str(name) for name in frame]
        for name in names:
            if name.startswith("score"):
                frame[name] = _numbers(frame[name])
            elif name not in TEXT and not name.startswith("segment_"):
                with contextlib.suppress(ValueError):  # class names stay text
                    frame[name] = _numbers(frame[name])
    except (ValueError, OSError) as err:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: is damaged; {_remedy(folder)}") from err
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"{path}: column {missing[0]} is missing; {_remedy(folder)}")
    return frame


def _numbers(values: pd.Series) -> pd.Series:
    return values.map(lambda text: float(text) if text else math.nan).astype(np.float64)


def _remedy(folder: Path) -> str:
    if folder.name == "validation":
        return f"run manyhead APP validate --run {folder.parent}"
    return f"run manyhead APP test --run {folder}"
