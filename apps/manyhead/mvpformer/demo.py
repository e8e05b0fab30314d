"""The MVPFormer demo: seizures of simulated patients, found in patients that were never seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from manyhead import registry
from manyhead.mvpformer.detector import Detector, Recordings
from manyhead.mvpformer.evaluate import evaluate
from manyhead.mvpformer.events.page import patient_table
from manyhead.mvpformer.events.tsv import read_events
from manyhead.mvpformer.pictures import picture
from manyhead.mvpformer.readers import ReadOptions
from manyhead_core.demo import Check, Commands, Story
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.compare import Difference, compare_results
from manyhead_core.evaluate.evaluation import Evaluation
from manyhead_core.evaluate.predictions import Results, read_results

CONFIG, FOLDS, PATIENTS = "simulated", 4, 12
SIMULATION = ("--patients", PATIENTS, "--minutes", 8, "--channels", 8, "--rate", 256)
# Networks in the order of the tables, with their options; the first is the reference.
NETWORKS = {
    "band_energy": ("--model.network", "band_energy", "--model.lr", 1e-2),
    "mvpformer": (),
}
TITLES = {"band_energy": "band energies", "mvpformer": "MVPFormer"}
METRICS = (
    "event_f1", "event_sensitivity", "event_precision", "false_alarms_per_day", "delay_median",
    "step_auroc", "step_f1",
)  # fmt: skip
# Probabilities are written with six decimals.
ROUNDING = 1e-5
INTRO = (
    "Twelve patients with 8 minutes of 8 channels and two seizures each were drawn from a "
    "published neural mass model and written as BIDS-iEEG. They differ in onset pattern, rhythm, "
    "spread, amplitude and artefacts; runs of spikes and movements are there to deceive. A small "
    "MVPFormer and a linear layer on band energies were trained from scratch in four folds by "
    "patient: six patients trained, three chose epoch and threshold, three tested. Every number is "
    "from patients that neither saw. An hour and a half of model signals, of which a fifth is "
    "seizure, says that the tools work; it says nothing about patients. A day would hold much more "
    "background, so the false alarms a day are extrapolated from few. The settings were chosen on "
    "simulations of other seeds, the number of folds by a look at seed 1."
)


@dataclass(frozen=True)
class Tested:
    """One network over all folds.

    Args:
        runs: Run folder of each fold.
        results: Steps of all recordings, each by the fold that had not seen its patient.
        evaluation: Metrics of them.
    """

    runs: list[Path]
    results: Results
    evaluation: Evaluation


def demo(out: Path, seed: int) -> Story:
    """Simulate, look, train, compare, report, and predict in a fresh process.

    Args:
        out: Empty folder of this demo.
        seed: Seed of the simulation and of the training.
    """
    command = Commands("mvpformer", registry.apps(), registry.TOP_COMMANDS)
    data = out / "data"
    command("simulate", data, *SIMULATION, "--seed", seed)
    command("inspect", "--root", data, "--out", out / "inspected")
    tested = {name: _cross_validate(command, name, data, out / "runs", seed) for name in NETWORKS}
    best = tested["mvpformer"]
    command("report", best.runs[0])
    shown = _first(best.runs[0])
    subject = data / shown.partition("_")[0]
    command.afresh(
        "predict", "--weights", best.runs[0], "--input", subject, "--out", out / "predicted"
    )
    story = Story(registry.get("mvpformer").title, INTRO)
    _tell_results(story, tested)
    story.checks.append(_reload_check(best.runs[0], out / "predicted", shown))
    story.figures.append(_recording_figure(best.runs[0], subject, out / "predicted", shown))
    story.commands = command.lines
    return story


def _cross_validate(command: Commands, network: str, data: Path, runs: Path, seed: int) -> Tested:
    """Fit and test a network in every fold."""
    folders = []
    for fold in range(FOLDS):
        place = runs / network / f"fold-{fold}"
        command(
            "fit", "--config", CONFIG, *NETWORKS[network], "--data.root", data,
            "--data.split", "fold", "--data.folds", FOLDS, "--data.fold", fold,
            "--runs", place, "--seed_everything", seed,
        )  # fmt: skip
        folders.append(place / "mvpformer" / CONFIG / "0")
        command("test", "--run", folders[-1])
    frames = [read_results(folder).frame for folder in folders]
    frame = pd.concat(frames, ignore_index=True).sort_values("id", ignore_index=True)
    results = Results(runs / network, frame, {"app": "mvpformer", "kind": "events"})
    return Tested(folders, results, evaluate(frame))


def _first(folder: Path) -> str:
    """The first test recording of a run, whatever came out of it."""
    return str(read_results(folder).frame["recording"].min())


def _tell_results(story: Story, tested: dict[str, Tested]) -> None:
    ours = tested["mvpformer"].evaluation
    f1, hits = ours.metrics["event_f1"], ours.metrics["event_sensitivity"]
    story.checks.append(
        Check(
            "MVPFormer finds seizures of patients it has not seen: event F1 of 0.6 or more",
            f"{_interval(ours, 'event_f1')}; sensitivity {hits.value or 0:.3f}",
            (f1.value or 0) >= 0.6,
        )
    )
    auroc = ours.metrics["step_auroc"]
    claim = "It ranks steps with a seizure above the others: AUC of 0.8 or more"
    story.checks.append(Check(claim, _interval(ours, "step_auroc"), (auroc.value or 0) >= 0.8))
    differences = {row.metric: row for row in _differences(tested)}
    rows = [
        [
            metric,
            *(_interval(entry.evaluation, metric) for entry in tested.values()),
            _difference(differences.get(metric)),
        ]
        for metric in METRICS
    ]
    header = ["mean over patients", *TITLES.values(), "difference"]
    tolerance = ours.details["tolerance"]
    caption = (
        f"Results with 95 % intervals, patients resampled. A hit: {tolerance}. A negative delay "
        "(s) is a detection that began before the annotated onset, which this tolerance allows"
    )
    story.tables.append((caption, header, rows))
    caption = "MVPFormer on each patient; the names are hashes"
    story.tables.append((caption, *patient_table(ours.details["patients"])))
    curves = {
        TITLES[name]: (
            entry.results.frame["label"].astype(float).to_numpy(),
            entry.results.frame["score"].to_numpy(),
        )
        for name, entry in tested.items()
    }
    caption = "Precision and recall over the steps of all patients, each by its fold"
    story.figures.append((caption, figures.precision_recall(curves)))


def _differences(tested: dict[str, Tested]) -> list[Difference]:
    results = [entry.results for entry in tested.values()]
    found = compare_results(results, app=registry.get("mvpformer"))
    return [row for row in found if row.run == str(results[-1].folder)]


def _difference(row: Difference | None) -> str:
    if row is None or row.difference is None:
        return "-"
    limits = "" if row.low is None else f" ({row.low:+.3f} to {row.high:+.3f})"
    return f"{row.difference:+.3f}{limits}"


def _interval(evaluation: Evaluation, metric: str) -> str:
    found = evaluation.metrics[metric]
    if found.value is None:
        return "-"
    limits = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.value:.3f}{limits}"


def _reload_check(run: Path, predicted: Path, name: str) -> Check:
    """The fresh process, which saw no labels, against the test of the run."""
    frame = read_results(run).frame
    tested = frame[frame["recording"] == name].sort_values("start")
    steps = pd.read_csv(predicted / f"{name}_steps.tsv", sep="\t").sort_values("start")
    same = len(steps) == len(tested)
    worst = np.inf
    if same:
        worst = float(np.abs(steps["p"].to_numpy() - tested["score"].to_numpy()).max())
        same = bool((steps["detected"].to_numpy() == tested["detected"].to_numpy()).all())
    found = f"largest difference {worst:.1e} over {len(steps)} steps"
    found += "" if same else ", other detections"
    claim = "Saved, reloaded in a fresh process: the same probabilities and seizures"
    return Check(claim, found, same and worst < ROUNDING)


def _recording_figure(run: Path, subject: Path, predicted: Path, name: str) -> tuple[str, Figure]:
    """A recording, its annotated seizures and what was detected."""
    detector = Detector.load(registry.get("mvpformer"), run)
    found = Recordings.find(subject, "auto", ReadOptions(), detector.preprocessor.prepare)
    steps = pd.read_csv(predicted / f"{name}_steps.tsv", sep="\t")
    with found.opened(name) as prepared:
        figure = picture(
            prepared,
            steps["start"].to_numpy(),
            steps["time"].to_numpy(),
            steps["p"].to_numpy(),
            detector.threshold,
            read_events(predicted / f"{name}_events.tsv", prepared.duration),
        )
    caption = (
        "The first test recording of the first fold: annotated and detected seizures, the "
        "probability of each step with the threshold from validation, and the channels"
    )
    return caption, figure
