"""`manyhead APP calibrate`: a temperature from validation predictions, never from test."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.calibration import (
    LIMITS,
    Temperature,
    calibration_error,
    class_losses,
    fit_temperature,
    reliability,
    row_losses,
    to_log,
    to_logit,
    top_reliability,
)
from manyhead_core.evaluate.files import read_json, replace_json
from manyhead_core.evaluate.kinds import kind_of
from manyhead_core.evaluate.predictions import Results, read_results
from manyhead_core.evaluate.rows import Rows

FORMAT = 1
KIND = "temperature"
NAME = "calibration.json"
PROBABILITIES = ("binary", "classes")


def calibrate(app: App, run: Path, /, out: Path | None = None, bias: bool = False) -> None:
    """Fit a temperature on the validation predictions of a run and show what it does to the test.

    Args:
        app: Row of the app.
        run: Run folder; `validate --run` and `test --run` have been run on it.
        out: File that receives the calibration; default: calibration.json in the run folder.
        bias: Also fit a bias, which moves the mean prediction.
    """
    validation = _validation(app, run)
    kind = kind_of(validation, app)
    if kind.name not in PROBABILITIES:
        raise DataError(f"{run}: holds {kind.name} results; only probabilities can be calibrated")
    if bias and kind.name == "classes":
        raise UserError("--bias: is for a single probability; several classes take a temperature")
    fitted_on = kind.rows(validation.frame)
    logits = to_log if kind.name == "classes" else to_logit
    fitted = fit_temperature(logits(fitted_on.scores), fitted_on.labels, bias=bias)
    parts = {"validation": fitted_on}
    test = _test(run, validation)
    if test is not None:
        parts["test"] = kind.rows(test.frame)
    effects = {name: _effect(rows, fitted) for name, rows in parts.items()}
    path = _target(run, out)
    content = {"format": FORMAT, "kind": KIND, "app": app.name, **asdict(fitted)}
    content["fitted_on"] = {"split": "validation", "num_samples": len(fitted_on.labels)}
    content["checkpoint_hash"] = validation.metrics.get("checkpoint_hash")
    replace_json(path, content | {"effect": effects})
    _show(app, fitted, effects, path)


def saved_temperature(results: Results) -> Temperature | None:
    """The calibration in the run folder, if it was fitted for the checkpoint of these results."""
    file = results.folder / NAME
    if not file.is_file():
        return None
    content = read_json(file)
    if content.get("checkpoint_hash") != results.metrics.get("checkpoint_hash"):
        return None
    return Temperature(content["temperature"], content["bias"])


def _validation(app: App, run: Path) -> Results:
    folder = run / "validation"
    if not run.is_dir():
        raise DataError(f"{run}: folder does not exist; pass a folder that fit has made")
    if not (folder / "predictions.csv").is_file():
        raise DataError(
            f"{run}: holds no validation predictions; run manyhead {app.name} validate --run {run}"
        )
    return read_results(folder)


def _test(run: Path, validation: Results) -> Results | None:
    if not (run / "metrics.json").is_file():
        return None
    test = read_results(run)
    hashes = [results.metrics.get("checkpoint_hash") for results in (validation, test)]
    if hashes[0] != hashes[1]:
        raise DataError(
            f"{run}: validation and test predictions stem from different checkpoints; "
            "run validate and test again"
        )
    return test


def _effect(rows: Rows, fitted: Temperature) -> dict[str, Any]:
    after = fitted.apply(rows.scores)
    return {"before": _quality(rows, rows.scores), "after": _quality(rows, after)}


def _quality(rows: Rows, scores: Any) -> dict[str, float]:
    if scores.ndim == 2:
        bins, losses = top_reliability(rows.labels, scores), class_losses(rows.labels, scores)
    else:
        bins, losses = reliability(rows.labels, scores), row_losses(rows.labels, scores)
    error = calibration_error(bins)
    return {"logloss": float(losses.mean()), "expected_calibration_error": error}


def _target(run: Path, out: Path | None) -> Path:
    path = out or run / NAME
    if path.exists() and (path.is_dir() or read_json(path).get("kind") != KIND):
        raise UserError(f"--out: {path} exists and is no calibration; choose another name")
    return path


def _show(app: App, fitted: Temperature, effects: dict[str, Any], path: Path) -> None:
    rows = [
        (split, name, *(f"{effect[when][name]:.5f}" for when in ("before", "after")))
        for split, effect in effects.items()
        for name in effect["before"]
    ]
    bias = f", bias {fitted.bias:.4f}" if fitted.bias else ""
    title = f"{app.title}: temperature {fitted.temperature:.4f}{bias}, fitted on validation"
    if not LIMITS[0] * 1.01 < fitted.temperature < LIMITS[1] / 1.01:
        console.say(
            "the temperature is at its limit: the validation samples are too few, or too easy, or "
            "the scores say nothing about the label"
        )
    console.table(title, ("split", "metric", "before", "after"), rows)
    if "test" not in effects:
        console.say(f"no test predictions yet; run manyhead {app.name} test --run {path.parent}")
    console.say(f"written: {path}")
