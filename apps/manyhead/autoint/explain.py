"""`explain`: which fields were combined, over all rows and row by row, as tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from manyhead.autoint.interactions import (
    FieldMaps,
    field_maps,
    local_effects,
    pair_interaction,
    permutation_importance,
)
from manyhead.autoint.model import AutoInt
from manyhead.autoint.predict import Format, Scorer
from manyhead.autoint.rows import Rows
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError, UserError
from manyhead_core.evaluate import figures

READ_ME = """What the tables say

pairs.csv         attention of the first layer between two fields, mean over heads and rows.
                  A ratio of 1 is what an even spread would give. It shows where the layer looked.
maps.csv          mean attention per layer and head. From layer 2 on, tokens mix several fields.
rows.csv          for single rows: the strongest pairs of the first layer, and the row's score.
effects.csv       for single rows: what each field does to the logit, against the values of others.
importance.csv    what the AUC loses when one field is shuffled between rows (needs labels).
interactions.csv  how far the logit is from a sum over two fields (mixed difference, in logits).

Attention shows where the model looked, importance what the prediction loses. Where they disagree,
trust the importance.
"""


def explain(
    app: App,
    weights: str,
    input: Path,
    out: Path,
    format: Format = "table",
    rows: int = 5000,
    examples: int = 20,
    top: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> None:
    """Write field-interaction maps per row and overall, with permutation importance beside them.

    Args:
        app: The app.
        weights: Weights folder, run folder, checkpoint file or hub id.
        input: CSV, TSV or Parquet file with the columns of the training data; importance needs
            the label too.
        out: Folder for tables and pictures; must not exist.
        format: How the input lies on disk: `table`, or the raw files of a published data set.
        rows: Rows to look at, taken evenly from the first million.
        examples: Rows to explain one by one.
        top: Pairs listed for a single row.
        repeats: Shuffles per field.
        seed: Seed of the shuffles.
    """
    for name, value in (("rows", rows), ("top", top), ("repeats", repeats)):
        if value < 1:
            raise ConfigError(f"{name}: must be at least 1, got {value}")
    if out.exists():
        raise UserError(f"out: {out} exists; choose another folder")
    scorer = Scorer.load(app, weights, format=format)
    frame, encoded = sample_rows(scorer, input, rows)
    fields = scorer.encoder.field_names
    chosen = extremes(scorer.score(frame), examples)
    found = {"effects": explain_effects(frame, encoded, scorer, chosen, seed)}
    pictures: dict[str, Figure] = {}
    if isinstance(scorer.net, AutoInt):
        maps = field_maps(scorer.net, encoded, fields)
        found |= {"pairs": maps.pairs(), "maps": maps.table()}
        found["rows"] = explain_rows(maps, frame, scorer, chosen, top)
        pictures["maps"] = map_picture(maps)
    found["interactions"] = pair_interaction(scorer.net, encoded, fields, seed=seed)
    if set(encoded.label.tolist()) == {0.0, 1.0}:
        table = permutation_importance(scorer.net, encoded, fields, repeats, seed)
        found["importance"] = table
        pictures["importance"] = importance_picture(table)
    else:
        console.say("note: no labels of both classes, so no permutation importance")
    _write(out, found, pictures)
    _tell(found, len(encoded.label))
    console.result(f"written: {out} ({', '.join(sorted(path.name for path in out.iterdir()))})")


def sample_rows(scorer: Scorer, path: Path, rows: int) -> tuple[pd.DataFrame, Rows]:
    """Rows taken evenly from the first five chunks of a table, raw and encoded."""
    label = scorer.encoder.schema.label
    try:
        frames = list(islice(scorer.chunks(path, labelled=True), 5))
    except DataError as err:
        if label not in str(err):
            raise
        frames = list(islice(scorer.chunks(path), 5))
    frame = pd.concat(frames)
    # Every n-th row would leave out the end: all of 9,999 rows after the 5,000th.
    count = min(rows, len(frame))
    frame = frame.iloc[np.arange(count) * len(frame) // count]
    return frame, scorer.rows(frame)


def extremes(scores: np.ndarray, count: int) -> list[int]:
    """Places of the highest and the lowest scores, half of each."""
    order = [int(place) for place in scores.argsort()[::-1]]
    half = count // 2
    return order[: count - half] + order[len(order) - half :]


def explain_rows(
    maps: FieldMaps, frame: pd.DataFrame, scorer: Scorer, chosen: list[int], top: int
) -> pd.DataFrame:
    """The strongest first-layer pairs of single rows, with id and score."""
    lines = [line for row in chosen for line in _row_pairs(maps, row, top)]
    table = pd.DataFrame(lines, columns=["row", "rank", "query", "key", "weight"])
    table["ratio"] = table["weight"] * len(maps.fields)
    return _named(table, frame, scorer)


def explain_effects(
    frame: pd.DataFrame, encoded: Rows, scorer: Scorer, chosen: list[int], seed: int
) -> pd.DataFrame:
    """What each field does to the logit of single rows: id, score, field, effect."""
    table = local_effects(scorer.net, encoded, chosen, scorer.encoder.field_names, seed=seed)
    named = _named(table, frame, scorer)
    return named.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def map_picture(maps: FieldMaps) -> Figure:
    """Mean first-layer map between fields."""
    mean = maps.layers[0].mean(0)
    return figures.heatmap(mean.numpy(), maps.fields, "query field", "key field")


def importance_picture(table: pd.DataFrame) -> Figure:
    """Permutation importance as bars."""
    return figures.bars(
        table["field"].tolist(),
        table["auc_drop"].to_numpy(),
        table["spread"].to_numpy(),
        "loss of AUC when shuffled",
    )


def agreement(found: dict[str, pd.DataFrame]) -> float | None:
    """Spearman correlation of attention received and permutation importance over the fields."""
    if "pairs" not in found or "importance" not in found or len(found["importance"]) < 3:
        return None
    received = found["pairs"].groupby("key")["weight"].sum()
    drops = found["importance"].set_index("field")["auc_drop"]
    return float(spearmanr(received.reindex(drops.index), drops).statistic)


def _named(table: pd.DataFrame, frame: pd.DataFrame, scorer: Scorer) -> pd.DataFrame:
    """Put id and score of the row in the place of its place."""
    place = table.pop("row").to_numpy(dtype=int)
    row_id = scorer.encoder.schema.row_id
    names = frame[row_id].to_numpy() if row_id and row_id in frame else frame.index.to_numpy()
    table.insert(0, "id", names[place])
    table.insert(1, "score", scorer.score(frame.iloc[place]))
    return table


def _row_pairs(maps: FieldMaps, row: int, top: int) -> Iterator[tuple[int, int, str, str, float]]:
    size = len(maps.fields)
    weights = maps.rows[row].clone()
    weights.fill_diagonal_(-1)
    best = torch.topk(weights.flatten(), min(top, size * (size - 1)))
    for rank, (value, place) in enumerate(
        zip(best.values.tolist(), best.indices.tolist(), strict=True), start=1
    ):
        yield row, rank, maps.fields[place // size], maps.fields[place % size], value


def _write(out: Path, found: dict[str, pd.DataFrame], pictures: dict[str, Figure]) -> None:
    out.mkdir(parents=True)
    for name, table in found.items():
        table.to_csv(out / f"{name}.csv", index=False)
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=150, facecolor="white")
    (out / "README.txt").write_text(READ_ME, encoding="utf-8")


def _tell(found: dict[str, pd.DataFrame], rows: int) -> None:
    if "pairs" in found:
        lines = [
            (row.query, row.key, f"{row.weight:.3f}", f"{row.ratio:.2f}")
            for row in found["pairs"].head(5).itertuples()
        ]
        title = f"Strongest field pairs in layer 1, {rows:,} rows"
        console.table(title, ("query", "key", "attention", "times an even spread"), lines)
    if "importance" in found:
        drops = [
            (row.field, f"{row.auc_drop:.4f}", f"{row.spread:.4f}")
            for row in found["importance"].head(5).itertuples()
        ]
        console.table("Permutation importance", ("field", "loss of AUC", "sd"), drops)
    correlation = agreement(found)
    if correlation is not None:
        console.result(f"rank correlation of attention received and importance: {correlation:.2f}")
