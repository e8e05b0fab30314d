"""Which recordings train, validate and test; all recordings of a patient stay together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from manyhead.mvpformer.patients import FORMATS, WHY, official_part
from manyhead_core.data.splits import (
    NAMES,
    NONE,
    PARTS,
    Codes,
    Pairs,
    codes_of,
    dealt,
    fold_codes,
    json_pairs,
    parts_of_groups,
    read_parts,
    shuffled,
    table_pairs,
    without_later,
)
from manyhead_core.data.splits import SplitOptions as CommonOptions
from manyhead_core.errors import DataError

__all__ = ["PARTS", "Codes", "SplitOptions", "assign"]

# What files call the parts, and the names that they use for what is split.
CODES = NAMES | {"dev": 0, "eval": 2}
NAMED_BY = ("id", "recording", "patient", "participant_id", "subject")


@dataclass(frozen=True, kw_only=True)
class SplitOptions(CommonOptions):
    """How recordings are split.

    `by` is `random`, whole patients; `fold`, folds of patients; `official`, the parts that come
    with the data set; `column`, a column of the participants table; or a .json, .csv or .tsv file.

    Args:
        column: Column of the part in a table.
        shared: What to do about patients in two parts: `refuse`; `drop` their recordings outside
            the training part; or `keep` them where they are.
    """

    column: str = "split"
    shared: Literal["refuse", "drop", "keep"] = "refuse"


def assign(frame: pd.DataFrame, options: SplitOptions, root: Path | None = None) -> Codes:
    """Part of each recording: 0 train, 1 validation, 2 test, -1 none, `(recordings,)`.

    Args:
        frame: Columns id, folder (the patient as the data set names it), patient, format, part
            and seizures (how many; NaN where nobody looked).
        options: How.
        root: Of the data set, which holds the participants table.

    Raises:
        ConfigError: Options that make no sense.
        DataError: A file or column is missing, or puts a patient into two parts.
    """
    if options.by == "random":
        found = dealt(_patients(frame, options.seed), options.shares())
        return np.asarray(frame["patient"].map(found), np.int8)
    if options.by == "fold":
        return _folds(frame, options)
    if options.by == "official":
        codes = _official(frame)
    elif options.by == "column":
        codes = _from_file((root or Path()) / "participants.tsv", frame, options)
    else:
        codes = _from_file(Path(options.by), frame, options)
    return _without_shared(frame, codes, options.shared)


def _patients(frame: pd.DataFrame, seed: int) -> list[str]:
    """Patients with seizures and then those without, each in random order."""
    having = frame.groupby("patient", sort=True)["seizures"].max() > 0
    return [name for names in shuffled(having, (True, False), seed) for name in names]


def _folds(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    options.check_folds()
    names = _patients(frame, options.seed)
    if len(names) < options.folds:
        raise DataError(
            f"data.folds: {options.folds} folds cannot be made of {len(names)} patients; use "
            f"{len(names)} or fewer"
        )
    # Dealt like cards: every fold gets as many with seizures as the next, give or take one.
    place = frame["patient"].map({name: place for place, name in enumerate(names)})
    return fold_codes(place.to_numpy() % options.folds, options)


def _official(frame: pd.DataFrame) -> Codes:
    part = frame["part"].astype(str)
    swec = frame["format"].isin(FORMATS) & (part == "")
    part = part.mask(swec, frame["folder"].map(official_part))
    codes = part.str.lower().map(CODES)
    if codes.isna().all():
        raise DataError(
            "data.split: these recordings come with no official parts; use random, fold or a file"
        )
    return np.asarray(codes.fillna(NONE), np.int8)


def _without_shared(
    frame: pd.DataFrame, codes: Codes, shared: Literal["refuse", "drop", "keep"]
) -> Codes:
    """Refuse patients in two parts, or take their recordings out of the later part."""
    if shared == "keep":
        return codes
    if shared == "drop":
        return without_later(frame["patient"], codes)
    parts = parts_of_groups(frame["patient"], codes)["parts"]
    twice = parts.index[parts > 1]
    if len(twice):
        swec = frame.loc[frame["patient"].isin(twice), "format"].isin(FORMATS).any()
        raise DataError(
            f"data.split: {len(twice)} of {len(parts)} patients are in more than one part"
            f"{f' ({WHY})' if swec else ''}; scores would be too good: pass "
            "--data.shared_patients drop to leave their recordings out of the later parts, or keep"
        )
    return codes


def _from_file(path: Path, frame: pd.DataFrame, options: SplitOptions) -> Codes:
    def pairs(path: Path) -> Pairs:
        if path.suffix == ".json":
            found = json_pairs(path, CODES)
        else:
            found = _table_pairs(path, options.column)
        return [(_bare(name), code) for name, code in found]

    found = read_parts(path, pairs, "random, fold, official, column")
    # A file may name recordings or patients; the closest name counts.
    names = [frame[name].astype(str).map(_bare) for name in ("id", "folder", "patient")]
    return codes_of(names, found, path, "recordings")


def _bare(name: str) -> str:
    """Patients are written with and without `sub-`."""
    return name.removeprefix("sub-")


def _table_pairs(path: Path, column: str) -> Pairs:
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    named = next((name for name in NAMED_BY if name in table), None)
    if named is None or column not in table:
        wanted = f"{' or '.join(NAMED_BY)}, and {column}"
        raise ValueError(f"its columns are {', '.join(table.columns[:6])}, not {wanted}")
    return table_pairs(table[named], table[column], CODES, empty=("", "n/a"))
