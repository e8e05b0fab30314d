"""`manyhead compare`: runs on the same samples, against the first, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.binary import affordable
from manyhead_core.evaluate.evaluation import Statistics, too_few
from manyhead_core.evaluate.files import replace, replace_json
from manyhead_core.evaluate.intervals import (
    MIN_GROUPS,
    Array,
    bootstrap,
    delong_paired,
    percentiles,
)
from manyhead_core.evaluate.kinds import Kind, kind_of
from manyhead_core.evaluate.predictions import Results, read_results
from manyhead_core.evaluate.rows import Rows

EXAMPLES = 3


@dataclass(frozen=True)
class Difference:
    """One metric of one run against the reference.

    Args:
        run: Folder of the run.
        metric: Name of the metric.
        value: Its value.
        difference: Value less that of the reference; None for the reference itself.
        low: Lower 95 % limit of the difference.
        high: Upper limit.
        p: Two-sided p-value of the paired DeLong test, for the area under the ROC curve.
    """

    run: str
    metric: str
    value: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def compare(
    apps: Mapping[str, App],
    runs: Sequence[Path],
    /,
    out: Path | None = None,
    metrics: str = "",
    draws: int = 2000,
    seed: int = 0,
) -> None:
    """Compare the test results of runs on the same samples; the first is the reference.

    Args:
        apps: The apps of the suite.
        runs: Run folders.
        out: File for the table, .csv or .json.
        metrics: Names of metrics, separated by commas; empty takes those usual for the kind of
            predictions. A metric of one class is called `auroc:CLASS`.
        draws: Bootstrap resamples, the same for both runs of a pair.
        seed: Seed of the resamples.
    """
    if len(runs) < 2:
        raise UserError("runs: pass two or more run folders; the first is the reference")
    if out is not None:
        _check_out(out)
    results = [read_results(run) for run in runs]
    names = {str(entry.metrics.get("app")) for entry in results}
    if len(names) > 1:
        raise DataError(f"runs: belong to different apps: {', '.join(sorted(names))}")
    app = apps.get(*names)
    table = compare_results(results, draws=draws, seed=seed, app=app)
    known = list(dict.fromkeys(row.metric for row in table))
    wanted = [name.strip() for name in metrics.split(",") if name.strip()]
    wanted = wanted or [name for name in kind_of(results[0], app).shown if name in known]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"--metrics: unknown metric {unknown[0]!r}; known: {', '.join(known)}")
    table = [row for name in wanted for row in table if row.metric == name]
    _show(table, results)
    if any(apps[name].medical for name in names if name in apps):
        console.result("research use only, not a medical device")
    if out is not None:
        _write(out, table)


def compare_results(
    results: Sequence[Results], *, draws: int = 2000, seed: int = 0, app: App | None = None
) -> list[Difference]:
    """Every metric of every run, with its difference to the first.

    Differences have a percentile interval of a bootstrap of whole groups (rows when there are no
    groups) that draws the same groups for both runs. The area under the ROC curve also has the p
    of DeLong's paired test. Below 10 groups there is no interval and no p.

    Args:
        results: What the runs have left; the first is the reference.
        draws: Resamples.
        seed: Seed of the resamples.
        app: Row of their app, for an app that has a kind of its own.

    Raises:
        DataError: The runs were tested on different samples, labels or groups, or predict
            different things.
    """
    kind = _kind(results, app)
    frames = aligned(results)
    rows = [kind.rows(frame) for frame in frames]
    statistics = [kind.statistics(entry) for entry in rows]
    _same_metrics(results, statistics)
    ones = np.ones((1, len(rows[0].labels)))
    values = [statistic(ones)[0] for statistic in statistics]
    found = []
    for k, entry in enumerate(results):
        for number, metric in enumerate(statistics[0].names):
            found.append(Difference(str(entry.folder), metric, _finite(values[k][number])))
    size = len(statistics[0].names)
    for k in range(1, len(results)):
        draw = None
        if not too_few(rows[0]):
            draw = _draws(rows[0], statistics[0], statistics[k], draws, seed)
        for number in range(size):
            change = values[k][number] - values[0][number]
            limits = (None, None) if draw is None else percentiles(draw[:, number])
            row = found[k * size + number]
            ranked = row.metric == "auroc" and draw is not None
            p = _p(kind, rows[0], rows[k]) if ranked else None
            found[k * size + number] = Difference(
                row.run, row.metric, row.value, _finite(change), *limits, p
            )
    return found


def _kind(results: Sequence[Results], app: App | None) -> Kind:
    kinds = [kind_of(entry, app) for entry in results]
    for entry, kind in zip(results, kinds, strict=True):
        if kind.name != kinds[0].name:
            raise DataError(
                f"{entry.folder}: holds {kind.name} results, {results[0].folder} {kinds[0].name} "
                "results; they have no metric in common"
            )
    return kinds[0]


def _same_metrics(results: Sequence[Results], statistics: Sequence[Statistics]) -> None:
    for entry, statistic in zip(results, statistics, strict=True):
        if statistic.names != statistics[0].names:
            raise DataError(
                f"{entry.folder}: has other classes, or in another order, than {results[0].folder}"
            )


def aligned(results: Sequence[Results]) -> list[pd.DataFrame]:
    """The tables in the order of the reference's ids, with the rows that are ok in all of them.

    Raises:
        DataError: Ids are repeated, or ids, labels or groups differ.
    """
    frames = [_by_id(entry) for entry in results]
    first = frames[0]
    for entry, frame in zip(results[1:], frames[1:], strict=True):
        _same_ids(results[0], first, entry, frame)
    frames = [first, *(frame.loc[first.index] for frame in frames[1:])]
    ok = np.logical_and.reduce([(frame["status"] == "ok").to_numpy() for frame in frames])
    if not ok.all():
        console.say(f"compared on the {int(ok.sum())} of {len(ok)} samples that are ok in all runs")
    frames = [frame[ok].reset_index() for frame in frames]
    for entry, frame in zip(results[1:], frames[1:], strict=True):
        for column in ("label", "group", "event"):
            _same_column(entry, frames[0], frame, column)
    return frames


def _by_id(entry: Results) -> pd.DataFrame:
    repeated = entry.frame["id"].duplicated()
    if repeated.any():
        raise DataError(
            f"{entry.folder}: id {entry.frame['id'][repeated].iloc[0]} occurs more than once"
        )
    return entry.frame.set_index("id")


def _same_ids(one: Results, first: pd.DataFrame, other: Results, frame: pd.DataFrame) -> None:
    missing = first.index.difference(frame.index)
    extra = frame.index.difference(first.index)
    if not len(missing) and not len(extra):
        return
    examples = ", ".join([*missing[:EXAMPLES], *extra[:EXAMPLES]])
    raise DataError(
        f"{other.folder}: tested on other samples than {one.folder}: {len(missing)} ids are "
        f"missing and {len(extra)} are new, such as {examples}; test both on the same split"
    )


def _same_column(entry: Results, first: pd.DataFrame, frame: pd.DataFrame, column: str) -> None:
    if column not in first and column not in frame:
        return
    if (column in first) != (column in frame):
        raise DataError(f"{entry.folder}: column {column} is missing in one of the runs")
    other = (first[column] != frame[column]).to_numpy()
    if other.any():
        raise DataError(
            f"{entry.folder}: {column} differs from the reference in {int(other.sum())} samples, "
            f"first in id {first['id'][other].iloc[0]}"
        )


def _draws(rows: Rows, first: Statistics, second: Statistics, draws: int, seed: int) -> Array:
    used = affordable(draws, len(rows.labels))
    return bootstrap(lambda weights: second(weights) - first(weights), rows.units, used, seed)


def _p(kind: Kind, reference: Rows, rows: Rows) -> float | None:
    """DeLong's paired p of the area under the ROC curve; None for more than two classes."""
    first, second = reference.scores, rows.scores
    if kind.name == "classes":
        if first.shape[1] > 2:
            return None
        first, second = first[:, 1], second[:, 1]
    if reference.labels.min() == reference.labels.max():
        return None
    return delong_paired(reference.labels, first, second, reference.groups)[1]


def _show(table: Sequence[Difference], results: Sequence[Results]) -> None:
    columns = ("metric", "run", "value", "difference", "95 % low", "95 % high", "DeLong p")
    rows = [
        (row.metric, row.run, *map(_text, (row.value, row.difference, row.low, row.high, row.p)))
        for row in table
    ]
    console.table(f"against {results[0].folder}, {len(results[0].frame)} samples", columns, rows)
    groups = int(results[0].metrics.get("num_groups", 0))
    if 0 < groups < MIN_GROUPS:
        console.say(f"no intervals: {groups} groups are too few")


def _check_out(out: Path) -> None:
    if out.suffix not in (".csv", ".json"):
        raise UserError(f"--out: {out} must end in .csv or .json")
    if out.exists():
        raise UserError(f"--out: {out} exists; choose another name")


def _write(out: Path, table: Sequence[Difference]) -> None:
    rows = [asdict(row) for row in table]
    if out.suffix == ".json":
        replace_json(out, {"format": 1, "reference": table[0].run, "rows": rows})
    else:
        replace(out, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    console.say(f"written: {out}")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
