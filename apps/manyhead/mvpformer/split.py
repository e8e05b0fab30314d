"""The command that writes a split file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.readers.options import SEIZURE_PATTERN
from manyhead.mvpformer.signals import Gathered, gather
from manyhead.mvpformer.splits import PARTS, Codes, SplitOptions, assign
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.files import replace


def split(
    app: App,  # noqa: ARG001  the command line gives it to every command
    out: Path,
    /,
    root: Path,
    by: Literal["random", "fold", "official"] = "random",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    folds: int = 5,
    fold: int = 0,
    validation_folds: int = 1,
    shared_patients: Literal["refuse", "drop", "keep"] = "refuse",
    seed: int = 0,
    format: str = "auto",
    patient: str = "",
    include: str = "",
    seizures: Path | None = None,
    units: Literal["auto", "V", "mV", "uV", "nV"] = "auto",
    pattern: str = SEIZURE_PATTERN,
    keep_bad: bool = False,
    zeros: Literal["refuse", "keep"] = "refuse",
) -> None:
    """Write a split file with the columns id and split; all recordings of a patient stay together.

    Folders of the SWEC release that hold the same patient count as one.

    Args:
        app: Row of the app.
        out: New CSV file; `data.split` of fit reads it.
        root: Folder of recordings.
        by: `random`, stratified by having seizures; `fold`, folds of patients; `official`, the
            parts that come with the data set.
        fractions: Share of train, validation and test of `random`, written [0.7,0.1,0.2]; counted
            in patients.
        folds: Number of folds.
        fold: Fold that tests, from 0; the next ones validate.
        validation_folds: How many validate.
        shared_patients: `refuse` official parts that share patients, `drop` their recordings from
            the later part, or `keep` them.
        seed: Of what is drawn.
        format: How the recordings lie on disk; `auto` looks at the files.
        patient: Regular expression that finds the patient in the path of a file.
        include: Regular expression; only recordings with a match in their id are split.
        seizures: Table or folder with seizure times, in place of what the files say.
        units: Unit of the stored numbers; `auto` believes the files.
        pattern: Regular expression that finds seizures in the text of annotations.
        keep_bad: Keep channels that the files call bad.
        zeros: `refuse` or `keep` long stretches in which all channels are zero.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; name a new file")
    options = SplitOptions(
        by=by,
        fractions=fractions,
        folds=folds,
        fold=fold,
        validation_folds=validation_folds,
        shared=shared_patients,
        seed=seed,
    )
    read = ReadOptions(
        units=units, seizures=seizures, pattern=pattern, keep_bad=keep_bad, zeros=zeros
    )
    # What a run does with the channels is not decided here, so no number of them is too many.
    prepare = PrepareOptions(channels="first")
    try:
        found = gather(root, format, read, prepare, cache="none", patient=patient, include=include)
        codes = assign(found.frame, options, root)
    except (ConfigError, DataError) as err:
        raise type(err)(_own_names(str(err))) from err
    if found.left_out:
        name, reason = next(iter(found.left_out.items()))
        reason = reason.removeprefix(f"{name}: ")
        console.say(f"{len(found.left_out)} recordings are left out, first {name}: {reason}")
    table = _table(found.frame, codes)
    replace(out, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    _show(found, codes)
    console.result(f"split of {len(table)} recordings: {out}")


def _own_names(text: str) -> str:
    """Options as this command calls them, not as fit does."""
    text = text.replace("data.split:", "--by:")
    return re.sub(r"(--)?\bdata\.(\w+)", r"--\2", text)


def _table(frame: pd.DataFrame, codes: Codes) -> pd.DataFrame:
    parts = pd.Series(codes).map(dict(enumerate(PARTS)))
    return pd.DataFrame({"id": frame["id"].to_numpy(), "split": parts}).dropna()


def _show(found: Gathered, codes: Codes) -> None:
    hours = np.array([signal.duration / 3600 for signal in found.signals])
    frame, rows = found.frame, []
    for code, part in enumerate(PARTS):
        chosen = codes == code
        if not chosen.any():
            continue
        own = frame[chosen]
        seizures = own["seizures"].fillna(0)
        patients = own["patient"].nunique()
        having = own["patient"][seizures > 0].nunique()
        row = (part, len(own), patients, having, int(seizures.sum()), f"{hours[chosen].sum():.1f}")
        rows.append(row)
    header = ("part", "recordings", "patients", "with seizures", "seizures", "hours")
    console.table("Parts", header, rows)
    lost = int((codes < 0).sum())
    if lost:
        console.say(f"{lost} recordings are in no part")
