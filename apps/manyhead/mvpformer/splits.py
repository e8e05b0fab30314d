"""Which recordings train, validate and test; all recordings of a patient stay together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.mvpformer.patients import FORMATS, WHY, official_part
from manyhead_core.errors import ConfigError, DataError

PARTS = ("train", "validation", "test")
Codes = npt.NDArray[np.int8]
NONE = -1
# What files call the parts, and the names that they use for what is split.
SYNONYMS = {
    "train": ("train", "training", "dev"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing", "eval"),
}
CODES = {name: code for code, part in enumerate(PARTS) for name in SYNONYMS[part]}
NAMED_BY = ("id", "recording", "patient", "participant_id", "subject")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How recordings are split.

    Args:
        by: `random`, whole patients; `fold`, folds of patients; `official`, the parts that come
            with the data set; `column`, a column of the participants table; or a .json, .csv or
            .tsv file.
        fractions: Share of train, validation and test of `random`.
        folds: Number of folds.
        fold: Fold that tests, from 0.
        validation_folds: Folds after it that validate; with 0 nothing is held out for selection.
        column: Column of the part in a table.
        shared: What to do about patients in two parts: `refuse`; `drop` their recordings outside
            the training part; or `keep` them where they are.
        seed: Seed of what is drawn.
    """

    by: str = "random"
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folds: int = 5
    fold: int = 0
    validation_folds: int = 1
    column: str = "split"
    shared: Literal["refuse", "drop", "keep"] = "refuse"
    seed: int = 0


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
        return _random(frame, options)
    if options.by == "fold":
        return _folds(frame, options)
    if options.by == "official":
        codes = _official(frame)
    elif options.by == "column":
        codes = _from_file((root or Path()) / "participants.tsv", frame, options)
    else:
        codes = _from_file(Path(options.by), frame, options)
    return _without_shared(frame, codes, options.shared)


def strata(frame: pd.DataFrame, seed: int) -> list[list[str]]:
    """Patients with seizures and patients without, each in random order.

    Args:
        frame: As of `assign`.
        seed: Of the order.
    """
    generator = np.random.default_rng(seed)
    most = frame.groupby("patient", sort=True)["seizures"].max()
    with_seizures = (most > 0).to_numpy()
    names = most.index.to_numpy()
    return [
        generator.permutation(names[which]).tolist() for which in (with_seizures, ~with_seizures)
    ]


def _random(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    shares = np.asarray(options.fractions, float)
    if shares.shape != (3,) or (shares < 0).any() or not math.isclose(shares.sum(), 1):
        raise ConfigError(
            f"data.fractions: {list(options.fractions)} must be three shares that sum to 1"
        )
    found: dict[str, int] = {}
    have = np.zeros(3)
    for name in (name for stratum in strata(frame, options.seed) for name in stratum):
        owed = np.round(shares * (len(found) + 1) - have, 9)
        # Of parts that are owed as much the later one gets the patient: few patients would all
        # train otherwise, and nothing be left to test with.
        part = max(range(3), key=lambda k: (owed[k], k))
        found[name] = part
        have[part] += 1
    return np.asarray(frame["patient"].map(found), np.int8)


def _folds(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    count = options.folds
    if not 0 <= options.fold < count or count < 2:
        raise ConfigError(f"data.fold: {options.fold} is not one of 0 to folds - 1 = {count - 1}")
    if not 0 <= options.validation_folds <= count - 2:
        raise ConfigError(
            f"data.validation_folds: of {count} folds {options.validation_folds} validate and 1 "
            "tests, which leaves none to train"
        )
    names = [name for stratum in strata(frame, options.seed) for name in stratum]
    if len(names) < count:
        raise DataError(
            f"data.folds: {count} folds cannot be made of {len(names)} patients; use "
            f"{len(names)} or fewer"
        )
    # Dealt like cards: every fold gets as many with seizures as the next, give or take one.
    after = {name: (place - options.fold) % count for place, name in enumerate(names)}
    codes = {n: 2 if k == 0 else int(k <= options.validation_folds) for n, k in after.items()}
    return np.asarray(frame["patient"].map(codes), np.int8)


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
    used = pd.DataFrame({"patient": frame["patient"], "part": codes})[codes >= 0]
    first = used.groupby("patient")["part"].agg(["min", "nunique"])
    twice = first.index[first["nunique"] > 1]
    if not len(twice):
        return codes
    if shared == "refuse":
        swec = frame.loc[frame["patient"].isin(twice), "format"].isin(FORMATS).any()
        raise DataError(
            f"data.split: {len(twice)} of {len(first)} patients are in more than one part"
            f"{f' ({WHY})' if swec else ''}; scores would be too good: pass "
            "--data.shared_patients drop to leave their recordings out of the later parts, or keep"
        )
    earliest = frame["patient"].map(first["min"]).to_numpy()
    later = frame["patient"].isin(twice).to_numpy() & (codes != earliest)
    return np.where(later, NONE, codes).astype(np.int8)


def _from_file(path: Path, frame: pd.DataFrame, options: SplitOptions) -> Codes:
    if not path.is_file():
        raise ConfigError(
            f"data.split: {str(path)!r} is no file and none of random, fold, official, column"
        )
    try:
        pairs = _read_json(path) if path.suffix == ".json" else _read_table(path, options.column)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as err:
        text = " ".join(str(err).split())
        raise DataError(f"data.split: {path.name} is no split file ({text})") from err
    found: dict[str, str] = {}
    for name, part in pairs:
        if found.setdefault(name, part) != part:
            raise DataError(f"data.split: {path.name} puts {name} into {found[name]} and {part}")
    codes = _first_known(frame, {_bare(name): CODES[part] for name, part in found.items()})
    if codes.isna().all():
        raise DataError(
            f"data.split: {path.name} names none of the {len(frame)} recordings; it names "
            f"{', '.join(list(found)[:2]) or 'nothing'}, they are {', '.join(frame['id'][:2])}"
        )
    return np.asarray(codes.fillna(NONE), np.int8)


def _first_known(frame: pd.DataFrame, codes: dict[str, int]) -> pd.Series:
    """A file may name recordings or patients; the closest name counts."""
    found = pd.Series(np.nan, frame.index)
    for column in ("id", "folder", "patient"):
        found = found.fillna(frame[column].astype(str).map(_bare).map(codes))
    return found


def _bare(name: str) -> str:
    """Patients are written with and without `sub-`."""
    return name.removeprefix("sub-")


def _read_json(path: Path) -> Iterable[tuple[str, str]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if unknown := [key for key in content if key not in CODES]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(CODES)}")
    return [(str(name), key) for key, names in content.items() for name in names]


def _read_table(path: Path, column: str) -> Iterable[tuple[str, str]]:
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    named = next((name for name in NAMED_BY if name in table), None)
    if named is None or column not in table:
        wanted = f"{' or '.join(NAMED_BY)}, and {column}"
        raise ValueError(f"its columns are {', '.join(table.columns[:6])}, not {wanted}")
    part = table[column].str.strip().str.lower()
    empty = part.isin(["", "n/a"])
    if len(odd := part[~empty & ~part.isin(list(CODES))]):
        raise ValueError(f"{odd.iloc[0]!r} in the column {column} is none of {', '.join(CODES)}")
    return list(zip(table[named][~empty].str.strip(), part[~empty], strict=True))
