"""The command that writes a split file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from manyhead.acmil.bag_output import Target
from manyhead.acmil.labels import CASE, SLIDE, LabelOptions, read_labels
from manyhead.acmil.sources import open_source
from manyhead.acmil.splits import PARTS, Codes, SplitOptions, assign
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.files import replace


def split(
    app: App,  # noqa: ARG001  the command line gives it to every command
    out: Path,
    /,
    labels: Path | None = None,
    root: Path | None = None,
    by: Literal["random", "fold"] = "random",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    folds: int = 5,
    fold: int = 0,
    validation_folds: int = 1,
    seed: int = 0,
    target: Target = "classes",
    label: str = "label",
    event: str = "event",
    slide: str = SLIDE,
    case: str = CASE,
    classes: str = "",
) -> None:
    """Write a split file with the columns id and split; all slides of a patient stay together.

    Args:
        app: Row of the app.
        out: New CSV file; `data.split` of fit reads it.
        labels: CSV with a row for each slide.
        root: Folder or file with features, to split only slides that have some; or a classic table
            of bags, which needs no labels.
        by: `random`, stratified by class; `fold`, stratified folds.
        fractions: Share of train, validation and test of `random`, written [0.7,0.1,0.2].
        folds: Number of folds.
        fold: Fold that tests, from 0; the next ones validate.
        validation_folds: How many validate.
        seed: Of what is drawn.
        target: What a slide is labelled with.
        label: Column of the class, the number or the time.
        event: Column that is 1 where the event of a survival time was seen.
        slide: Column of the slide.
        case: Column of the patient.
        classes: Classes with their values, as for training.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; name a new file")
    columns = LabelOptions(
        target=target, label=label, event=event, slide=slide, case=case, classes=classes
    )
    options = SplitOptions(
        by=by,
        fractions=fractions,
        folds=folds,
        fold=fold,
        validation_folds=validation_folds,
        seed=seed,
    )
    frame, names = _bags(labels, root, columns)
    codes = assign(frame, options)
    parts = pd.Series(codes).map(dict(enumerate(PARTS)))
    table = pd.DataFrame({"id": frame["id"].to_numpy(), "split": parts})
    replace(out, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    _show(frame, codes, names)
    console.result(f"split of {len(table)} slides: {out}")


def _bags(
    labels: Path | None, root: Path | None, columns: LabelOptions
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    if root is not None:
        source = open_source(root, labels, columns)
        return source.frame, source.class_names
    if labels is None:
        raise ConfigError("--labels: not given; pass the label table, or --root with bags")
    found = read_labels(labels, columns)
    if found.left_out:
        name, reason = next(iter(found.left_out.items()))
        console.say(f"{len(found.left_out)} slides are left out, first {name}: {reason}")
    return found.frame.assign(id=found.frame["slide"]), found.class_names


def _show(frame: pd.DataFrame, codes: Codes, names: tuple[str, ...]) -> None:
    rows = []
    label = frame["label"].to_numpy()
    for code, part in enumerate(PARTS):
        chosen = codes == code
        if not chosen.any():
            continue
        patients = frame["case"][chosen].nunique()
        counts = [int(np.sum(label[chosen] == k)) for k in range(len(names))]
        rows.append((part, int(chosen.sum()), patients, *counts))
    console.table("Parts", ("part", "slides", "patients", *names), rows)
