"""The AutoInt demo: a click log with a planted interaction, trained on, found and explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyhead import registry
from manyhead.autoint.explain import (
    explain_effects,
    extremes,
    importance_picture,
    map_picture,
    sample_rows,
)
from manyhead.autoint.interactions import field_maps, pair_interaction, permutation_importance
from manyhead.autoint.model import AutoInt
from manyhead.autoint.predict import Scorer
from manyhead_core.demo import Check, Commands, Story
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.compare import compare_results
from manyhead_core.evaluate.predictions import Results, read_results

ROWS = 30_000
INTRO = (
    "A click log of 30,000 rows with ten fields was simulated and written as CSV. Six fields "
    "matter; two of them, {first} and {second}, say nothing alone and everything together, so no "
    "model that adds up its fields can use them. AutoInt and logistic regression were trained on "
    "80 % of the rows, selected on 10 % and tested on the remaining 10 %."
)


def demo(out: Path, seed: int) -> Story:
    """Simulate, train, compare, explain, export, and predict in a fresh process.

    Args:
        out: Empty folder of this demo.
        seed: Seed of the simulation and of the training.
    """
    command = Commands("autoint", registry.apps(), registry.TOP_COMMANDS)
    data, runs = out / "data", out / "runs"
    command("simulate", data, "--rows", ROWS, "--seed", seed)
    truth = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    table = data / "clicks.csv"
    for config in ("simulated", "simulated-lr"):
        files = ("--data.root", table, "--data.schema", data / "schema.yaml")
        places = ("--data.cache", out / "cache", "--runs", runs)
        command("fit", "--config", config, *files, *places, "--seed_everything", seed)
        command("test", "--run", runs / "autoint" / config / "0")
    best, baseline = (runs / "autoint" / c / "0" for c in ("simulated", "simulated-lr"))
    weights, scores = out / "weights", out / "scores.csv"
    command("export", best, weights)
    command.afresh("predict", "--weights", weights, "--input", table, "--out", scores)
    results = [read_results(baseline), read_results(best)]
    story = Story(
        registry.get("autoint").title, INTRO.format(first=truth["pair"][0], second=truth["pair"][1])
    )
    _tell_results(story, results, truth)
    _tell_interactions(story, best, table, truth, seed)
    story.checks.append(_reload_check(results[1].frame, pd.read_csv(scores)))
    story.commands = command.lines
    return story


def _tell_results(story: Story, results: list[Results], truth: dict[str, Any]) -> None:
    baseline, ours = results
    [gain] = [
        d for d in compare_results(results) if d.metric == "auroc" and d.difference is not None
    ]
    value = ours.metrics["metrics"]["auroc"]
    found = f"{gain.difference:+.3f} AUC (95 %: {gain.low:+.3f} to {gain.high:+.3f})"
    story.checks.append(Check("AutoInt beats logistic regression", found, (gain.low or 0) > 0))
    bound = truth["bayes_auc"]
    story.checks.append(
        Check(
            "AutoInt comes close to the best that the noise allows",
            f"AUC {value['value']:.3f}; best possible {bound:.3f} over all rows",
            value["high"] >= bound - 0.02,
        )
    )
    rows = [_metric_row(name, baseline, ours) for name in ("auroc", "logloss", "brier")]
    header = ["metric (test)", "logistic regression", "AutoInt"]
    story.tables.append(("Test results with 95 % intervals, resampled by user", header, rows))
    curves = {
        name: (entry.frame["label"].to_numpy(), entry.frame["score"].to_numpy())
        for name, entry in zip(("logistic regression", "AutoInt"), results, strict=True)
    }
    story.figures.append(("ROC curves on the test rows", figures.roc(curves)))


def _metric_row(name: str, *results: Results) -> list[str]:
    cells = []
    for entry in results:
        metric = entry.metrics["metrics"][name]
        cells.append(f"{metric['value']:.4f} ({metric['low']:.4f} to {metric['high']:.4f})")
    return [name, *cells]


def _tell_interactions(
    story: Story, best: Path, table: Path, truth: dict[str, Any], seed: int
) -> None:
    scorer = Scorer.load(registry.get("autoint"), best)
    assert isinstance(scorer.net, AutoInt)  # noqa: S101 - the config trains no baseline
    frame, rows = sample_rows(scorer, table, 4000)
    fields = scorer.encoder.field_names
    importance = permutation_importance(scorer.net, rows, fields, repeats=3, seed=seed)
    pairs = pair_interaction(scorer.net, rows, fields, repeats=1, seed=seed)
    planted, pair = set(truth["planted"]), truth["pair"]
    top = importance["field"].head(len(planted)).tolist()
    found = f"the {len(planted)} fields that matter most: {', '.join(top)}"
    story.checks.append(
        Check("Permutation importance finds the planted fields", found, set(top) == planted)
    )
    first, second = pairs.iloc[0], pairs.iloc[1]
    story.checks.append(
        Check(
            f"The planted pair {pair[0]} x {pair[1]} is the strongest interaction",
            f"{first['first']} x {first['second']}: {first['interaction']:.2f} logits; "
            f"next pair: {second['interaction']:.2f}",
            {first["first"], first["second"]} == set(pair),
        )
    )
    lines = [
        [str(r.first), str(r.second), f"{r.interaction:.3f}"] for r in pairs.head(5).itertuples()
    ]
    story.tables.append(
        ("Strongest interactions, in logits", ["field", "field", "strength"], lines)
    )
    story.figures.append(
        (
            "Permutation importance: loss of AUC when a field is shuffled",
            importance_picture(importance),
        )
    )
    maps = field_maps(scorer.net, rows, fields)
    cases = explain_effects(frame, rows, scorer, extremes(scorer.score(frame), 4), seed)
    story.tables.append(_case_table(cases))
    caption = "Mean attention between fields in layer 1: where the model looked, not what it needs"
    story.figures.append((caption, map_picture(maps)))


def _case_table(cases: pd.DataFrame) -> tuple[str, list[str], list[list[str]]]:
    lines = [
        [str(row), f"{table['score'].iloc[0]:.3f}", _strongest(table)]
        for row, table in cases.groupby("id", sort=False)
    ]
    header = ["row", "probability", "fields that move it most, in logits"]
    return "A few cases: the highest and the lowest scores", header, lines


def _strongest(effects: pd.DataFrame) -> str:
    return ", ".join(f"{row.field} {row.effect:+.2f}" for row in effects.head(4).itertuples())


def _reload_check(test: pd.DataFrame, scores: pd.DataFrame) -> Check:
    again = (
        scores.set_index(scores["id"].astype(str))["score"]
        .reindex(test["id"].astype(str))
        .to_numpy()
    )
    worst = float(np.abs(again - test["score"].to_numpy()).max())
    found = f"largest difference {worst:.1e} over {len(test):,} test rows"
    return Check("Saved, reloaded in a fresh process: the same probabilities", found, worst < 1e-5)
