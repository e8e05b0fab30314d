"""`manyhead APP report`: the results of a run as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import DataError
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.binary import BinaryRows
from manyhead_core.evaluate.calibrate import saved_temperature
from manyhead_core.evaluate.calibration import calibration_error, reliability
from manyhead_core.evaluate.html import Page
from manyhead_core.evaluate.kinds import Kind, kind_of
from manyhead_core.evaluate.page_classes import class_calibration, class_sections
from manyhead_core.evaluate.page_numbers import number_sections, survival_sections
from manyhead_core.evaluate.predictions import Results, read_results

MEANING = {
    "auroc": "chance that a positive row is scored above a negative one",
    "average_precision": "mean precision over the positives",
    "logloss": "mean negative log-likelihood in nats; smaller is better",
    "brier": "mean squared error of the probability; smaller is better",
    "gauc": "area under the ROC curve within a group, weighted by the group's positives",
    "relative_information_gain": "share of the label's entropy that the model explains",
    "calibration": "mean prediction over mean label; 1 is right on average",
    "expected_calibration_error": "mean gap between predicted and observed in 15 bins",
}
MEANING |= {
    "accuracy": "share of samples whose class is right; the same as micro F1",
    "macro_f1": "mean over the classes present of the harmonic mean of precision and sensitivity",
    "macro_f1_declared": "the same over all classes, an absent one counting 0",
    "balanced_accuracy": "mean sensitivity over the classes present",
    "kappa": "agreement beyond chance (Cohen); 0 is chance, 1 perfect",
    "quadratic_kappa": "kappa in which far classes count more; for classes with an order only",
    "classwise_calibration_error": "mean over classes of the calibration error of each",
    "sensitivity_at_specificity_90": "share of positives found when 90 % of negatives are spared",
    "sensitivity_at_specificity_95": "share of positives found when 95 % of negatives are spared",
    "mae": "mean absolute error, in the unit of the label",
    "rmse": "root of the mean squared error, in the unit of the label",
    "r2": "share of the label's variance that the model explains; negative is worse than the mean",
    "pearson": "linear correlation of prediction and label",
    "spearman": "correlation of the ranks of prediction and label",
    "bias": "mean of prediction less label; 0 is right on average",
    "concordance": "chance that of two comparable samples the one with the higher risk has the "
    "event first (Harrell's C); 0.5 is chance",
}
# What some names mean for several classes.
OF_CLASSES = {
    "auroc": "area under the ROC curve of a class against the rest, mean over classes",
    "average_precision": "mean precision over the positives, mean over classes",
    "brier": "squared error of the probabilities, summed over classes; smaller is better",
    "expected_calibration_error": "mean gap between the largest probability and how often it is "
    "right, in 15 bins",
}
BASELINES = {
    "constant rate": "The constant rate predicts the share of positives of these very samples "
    "for all.",
    "class frequencies": "The class frequencies predict the shares of the classes of these very "
    "samples for all.",
    "constant mean": "The constant mean predicts the mean of these very samples for all.",
}
LIMITS = (
    "These numbers hold for samples drawn like this test set; they say nothing about other "
    "places or times, about the effect of acting on a prediction, or about the chance of the "
    "training seed, which an interval over test samples does not contain."
)
PANELS = 3
STAGES = ("train", "val", "test")
RESEARCH_ONLY = "Research use only, not a medical device."


def report(app: App, run: Path, /, out: Path | None = None) -> None:
    """Turn the test results of a run into one HTML page.

    Args:
        app: Row of the app.
        run: Run folder with predictions.csv and metrics.json.
        out: File of the page; default: report.html in the run folder.
    """
    results = read_results(run)
    if results.metrics.get("app", app.name) != app.name:
        raise DataError(f"{run}: belongs to the app {results.metrics['app']}, not to {app.name}")
    path = build(app, results).write(out or run / "report.html")
    console.result(f"report: {path}")


def build(app: App, results: Results) -> Page:
    """The page of a run, section by section; what does not apply is left out.

    Args:
        app: Row of the app.
        results: What the run has left.
    """
    metrics = results.metrics
    config = str(metrics.get("config", ""))
    subject = f"{app.name} {metrics.get('checkpoint_hash', config)}"
    page = Page(f"{app.title}: {config}", f"Test results of {app.summary}.", subject)
    if app.medical:
        page.note(RESEARCH_ONLY)
    kind = kind_of(results, app)
    _result(page, metrics, kind)
    _predictions(page, results, kind)
    _segments(page, metrics, kind)
    if kind.sections is None:
        _groups(page, metrics)
    _training(page, results.folder)
    page.section("What these numbers are not")
    page.paragraph(LIMITS)
    _origin(page, app, results)
    return page


def _predictions(page: Page, results: Results, kind: Kind) -> None:
    if kind.name == "binary" and "score" not in results.frame:
        return
    rows = kind.rows(results.frame)
    if kind.sections is not None:
        kind.sections(page, rows, results.metrics)
    elif kind.name == "binary":
        _ranking(page, rows)
        _calibration(page, rows, results)
    elif kind.name == "classes":
        class_sections(page, rows, results.metrics)
        class_calibration(page, rows, saved_temperature(results))
    elif kind.name == "regression":
        number_sections(page, rows)
    else:
        survival_sections(page, results.metrics.get("details") or {})


def _result(page: Page, metrics: Mapping[str, Any], kind: Kind) -> None:
    page.section("Result")
    facts = {"samples": f"{metrics['num_samples']:,}"}
    if metrics.get("num_groups"):
        facts["groups"] = f"{metrics['num_groups']:,}"
    baseline = metrics.get("baseline") or {}
    if "rate" in baseline:
        facts["share of positives"] = f"{baseline['rate']:.4f}"
    page.facts(facts | {"seed": str(metrics.get("seed", ""))})
    entries: Mapping[str, Any] = metrics["metrics"]
    header = ["metric", "value", "95 % low", "95 % high"]
    header += [str(baseline.get("name", "baseline"))] if baseline else []
    rows = []
    for name, entry in entries.items():
        row = [_name(name), *(_number(entry.get(key)) for key in ("value", "low", "high"))]
        rows.append(row + ([_number(baseline.get(name))] if baseline else []))
    page.table("Metrics on the test samples", header, rows)
    if baseline.get("name") in BASELINES:
        page.paragraph(BASELINES[baseline["name"]])
    _intervals(page, metrics.get("interval") or {})
    for note in metrics.get("notes") or []:
        page.note(str(note))
    known = MEANING | (OF_CLASSES if len(metrics.get("classes") or []) > 2 else {})
    known |= kind.meaning
    meanings = [[_name(name), known[name]] for name in entries if name in known]
    if meanings:
        page.table("What the metrics mean", ["metric", "meaning"], meanings)


def _intervals(page: Page, interval: Mapping[str, Any]) -> None:
    if not interval:
        return
    if not interval.get("draws"):
        page.paragraph(f"Intervals: {interval.get('method')}.")
        return
    area = interval.get("auroc", interval["method"])
    extra = "" if area == interval["method"] else f" The interval of auroc: {area}."
    page.paragraph(
        f"Intervals: {interval['method']} over {interval['draws']:,} resamples; a resample draws "
        f"whole {interval['unit']}s.{extra}"
    )


def _ranking(page: Page, rows: BinaryRows) -> None:
    page.section("Ranking")
    if rows.labels.min() < rows.labels.max():
        curve = figures.roc({"model": (rows.labels, rows.scores)})
        page.figure("ROC curve; the dashed diagonal is chance.", curve)
    spread = figures.histogram(rows.labels, rows.scores)
    page.figure("Predicted probabilities of the two classes, each with area 1.", spread)


def _calibration(page: Page, rows: BinaryRows, results: Results) -> None:
    page.section("Calibration")
    bins = reliability(rows.labels, rows.scores)
    curves = {"model": bins}
    fitted = saved_temperature(results)
    if fitted is not None:
        calibrated = reliability(rows.labels, fitted.apply(rows.scores))
        curves["with temperature"] = calibrated
        page.paragraph(
            f"A temperature of {fitted.temperature:.3f}, fitted on the validation samples, moves "
            f"the expected calibration error from {calibration_error(bins):.4f} to "
            f"{calibration_error(calibrated):.4f}."
        )
    page.figure(
        "Observed share against predicted probability in 15 bins of equal width. On the dashed "
        "diagonal both agree; a larger point stands for more samples.",
        figures.reliability(curves),
    )
    table = [
        [f"{b.low:.3f} to {b.high:.3f}", f"{b.count:,}", _number(b.predicted), _number(b.observed)]
        for b in bins
    ]
    page.table("The same as numbers", ["bin", "samples", "predicted", "observed"], table)


def _segments(page: Page, metrics: Mapping[str, Any], kind: Kind) -> None:
    segments: Mapping[str, Any] = metrics.get("segments") or {}
    if not segments:
        return
    page.section("Segments")
    metric = kind.shown[0]
    for name, entries in segments.items():
        _segment_table(page, f"By {name}", name, entries)
        shown = [entry for entry in entries if entry.get(metric) is not None]
        if len(shown) > 1:
            limits = [(entry.get(f"{metric}_low"), entry.get(f"{metric}_high")) for entry in shown]
            whole = (metrics["metrics"].get(metric) or {}).get("value")
            title = "Area under the ROC curve" if metric == "auroc" else _name(metric).capitalize()
            page.figure(
                f"{title} by {name}; the dashed line is that of all samples.",
                figures.intervals(
                    [entry["value"] for entry in shown],
                    [entry[metric] for entry in shown],
                    limits,
                    metric,
                    whole,
                ),
            )
    made = "DeLong's" if kind.name == "binary" else "made by resampling"
    page.paragraph(f"Intervals by segment are {made}; many segments make extremes by chance.")


def _groups(page: Page, metrics: Mapping[str, Any]) -> None:
    entries = metrics.get("groups") or []
    if entries:
        page.section("Groups")
        page.paragraph("Too few groups for an interval: here is each of them.")
        _segment_table(page, "By group", "group", entries)


def _segment_table(page: Page, caption: str, name: str, entries: Any) -> None:
    counts = [key for key in ("n", "positives") if key in entries[0]]
    columns = [key for key in _keys(entries) if key not in ("value", "groups", *counts)]
    titles = {"n": "samples"}
    header = [name, *(titles.get(key, key) for key in counts), *map(_column, columns)]
    rows = [
        [entry["value"], *(f"{entry[key]:,}" for key in counts)]
        + [_number(entry.get(column)) for column in columns]
        for entry in entries
    ]
    page.table(caption, header, rows)


def _keys(entries: Any) -> list[str]:
    """Keys of all entries, limits beside what they are the limits of."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    plain = [key for key in keys if not key.endswith(("_low", "_high"))]
    ends = ("", "_low", "_high")
    return [f"{key}{end}" for key in plain for end in ends if f"{key}{end}" in keys]


def _column(key: str) -> str:
    ends = {"_low": "95 % low", "_high": "95 % high"}
    return next((name for end, name in ends.items() if key.endswith(end)), _name(key))


def _training(page: Page, folder: Path) -> None:
    file = folder / "metrics.csv"
    if not file.is_file():
        return
    panels = learning_curves(pd.read_csv(file))
    if not panels:
        return
    page.section("Training")
    names = list(panels)
    for start in range(0, len(names), PANELS):
        chosen = {name: panels[name] for name in names[start : start + PANELS]}
        caption = f"Learning curves: {', '.join(chosen)}, by optimiser step."
        page.figure(caption, figures.curves(chosen, "step"))


def learning_curves(table: pd.DataFrame) -> dict[str, dict[str, tuple[Any, Any]]]:
    """By quantity (`loss`), then by stage (`train`): steps and values.

    Args:
        table: Content of metrics.csv: `step`, and one column a logged `stage/quantity`.
    """
    panels: dict[str, dict[str, tuple[Any, Any]]] = {}
    for column in map(str, table):
        stage, _, quantity = column.partition("/")
        if stage not in STAGES or column.endswith(("_step", "_epoch")):
            continue
        filled = table[table[column].notna()]
        if not filled.empty:
            line = (filled["step"].to_numpy(), filled[column].to_numpy(float))
            panels.setdefault(quantity, {})[stage] = line
    return panels


def _origin(page: Page, app: App, results: Results) -> None:
    metrics = results.metrics
    page.section("Origin")
    hashes = {key: metrics[key] for key in ("config_hash", "checkpoint_hash") if key in metrics}
    page.facts({key.replace("_", " "): str(value)[:16] for key, value in hashes.items()})
    environment: Mapping[str, Any] = metrics.get("environment") or {}
    if environment:
        rows = [[name, value] for name, value in environment.items()]
        page.table("Environment of the test run", ["part", "version"], rows)
    steps = [
        f"manyhead {app.name} fit --config RUN_FOLDER/config.yaml --data.root FOLDER",
        f"manyhead {app.name} test --run RUN_FOLDER",
        f"manyhead {app.name} report RUN_FOLDER",
    ]
    page.code("The same steps by hand", "\n".join(steps))
    config = results.folder / "config.yaml"
    if config.is_file():
        page.code("Configuration (folders without their path)", public_config(config))


def public_config(path: Path) -> str:
    """The YAML of a run with every absolute path cut to its last part."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return yaml.safe_dump(_without_paths(content), sort_keys=False, allow_unicode=True)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and re.match(r"(/|~|\.\.|[A-Za-z]:[\\/]|\\\\)", value):
        return ".../" + re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _name(metric: str) -> str:
    return metric.replace("_", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
