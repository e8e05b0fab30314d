"""Which bags train, validate and test; all bags of a patient stay together."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from manyhead_core.errors import ConfigError, DataError

PARTS = ("train", "validation", "test")
Codes = npt.NDArray[np.int8]
# What tools call the parts.
NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How bags are split.

    Args:
        by: `random`, stratified by class and whole patients; `fold`, stratified folds; `column`,
            the column split of the label table; or a .json or .csv file.
        fractions: Share of train, validation and test of `random`.
        folds: Number of folds.
        fold: Fold that tests, from 0.
        validation_folds: Folds after it that validate; with 0 nothing is held out for selection.
        seed: Seed of what is drawn.
    """

    by: str = "random"
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folds: int = 5
    fold: int = 0
    validation_folds: int = 1
    seed: int = 0


def assign(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    """Part of each bag: 0 train, 1 validation, 2 test, -1 none, `(bags,)`.

    Args:
        frame: Columns id, case, label and, for `column`, split.
        options: How.

    Raises:
        ConfigError: Options that make no sense.
        DataError: A file or column is missing, or puts a patient into two parts.
    """
    if options.by == "random":
        return _random(frame, options)
    if options.by == "fold":
        return _folds(frame, options)
    codes = _column(frame) if options.by == "column" else read_split(Path(options.by), frame)
    refuse_shared_patients(frame, codes)
    return codes


def refuse_shared_patients(frame: pd.DataFrame, codes: Codes) -> None:
    """Check that no patient is in two parts.

    Raises:
        DataError: One is.
    """
    used = pd.DataFrame({"case": frame["case"], "part": codes})[codes >= 0]
    parts = used.groupby("case")["part"].nunique()
    if (parts > 1).any():
        raise DataError(
            f"data.split: {int((parts > 1).sum())} of {len(parts)} patients are in more than one "
            "part; if the column of data.case names no patients, pass --data.case slide_id"
        )


def _random(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    shares = np.asarray(options.fractions, float)
    if (shares < 0).any() or not np.isclose(shares.sum(), 1):
        raise ConfigError(
            f"data.fractions: {list(options.fractions)} must be three shares that sum to 1"
        )
    generator = np.random.default_rng(options.seed)
    cases = frame.groupby("case", sort=True)["label"].max()
    found: dict[str, int] = {}
    for label in _strata(cases):
        names = generator.permutation(cases.index[label].to_numpy())
        edges = np.rint(np.cumsum(shares)[:2] * len(names)).astype(int)
        for part, group in enumerate(np.split(names, edges)):
            found |= dict.fromkeys(group, part)
    return np.asarray(frame["case"].map(found), np.int8)


def _strata(cases: pd.Series) -> list[npt.NDArray[np.bool_]]:
    """Patients by class; numbers are one stratum."""
    if cases.dtype.kind == "f":
        return [np.ones(len(cases), bool)]
    return [(cases == label).to_numpy() for label in sorted(cases.unique())]


def _folds(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    count = options.folds
    if count < 2 or not 0 <= options.fold < count:
        raise ConfigError(f"data.fold: {options.fold} is not one of 0 to folds - 1 = {count - 1}")
    if not 0 <= options.validation_folds < count - 1:
        raise ConfigError(
            f"data.validation_folds: {options.validation_folds} of {count} folds leave none to "
            "train"
        )
    label = frame["label"].to_numpy()
    strata = np.zeros(len(frame), int) if label.dtype.kind == "f" else label
    rows = np.zeros(len(frame))
    if frame["case"].is_unique:
        split = StratifiedKFold(count, shuffle=True, random_state=options.seed).split(rows, strata)
    else:
        grouped = StratifiedGroupKFold(count, shuffle=True, random_state=options.seed)
        split = grouped.split(rows, strata, frame["case"].to_numpy())
    try:
        fold_of = np.zeros(len(frame), int)
        with warnings.catch_warnings():
            # A class with fewer patients than folds is absent from some; who reads the split
            # report sees it.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for number, (_, held) in enumerate(split):
                fold_of[held] = number
    except ValueError as err:
        raise DataError(
            f"data.folds: {count} folds cannot be made of {len(frame)} bags: "
            f"{' '.join(str(err).split())}"
        ) from err
    codes = np.zeros(len(frame), np.int8)
    after = (fold_of - options.fold) % count
    codes[(after > 0) & (after <= options.validation_folds)] = 1
    codes[after == 0] = 2
    return codes


def _column(frame: pd.DataFrame) -> Codes:
    if "split" not in frame:
        raise DataError("data.split: the label table has no column split")
    # An empty field is a slide that is in no part.
    names = NAMES | {"": -1}
    codes = frame["split"].map(names)
    if codes.isna().any():
        odd = frame["split"][codes.isna()].iloc[0]
        raise DataError(f"data.split: {odd!r} in the column split is none of {', '.join(NAMES)}")
    return np.asarray(codes, np.int8)


def read_split(path: Path, frame: pd.DataFrame) -> Codes:
    """Parts from a file: ACMIL's .json, CLAM's splits_K.csv or _bool.csv, or our split.csv.

    Raises:
        DataError: The file is missing or names no bag of the data.
    """
    if not path.is_file():
        raise ConfigError(f"data.split: {str(path)!r} is no file and none of random, fold, column")
    try:
        parts = _json_parts(path) if path.suffix == ".json" else _csv_parts(path)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as err:
        # Wrong encodings and broken JSON are ValueErrors.
        text = f"{err} is missing" if isinstance(err, KeyError) else " ".join(str(err).split())
        raise DataError(f"data.split: {path.name} is no split file ({text})") from err
    twice = [name for name, codes in parts.items() if len(codes) > 1]
    if twice:
        raise DataError(f"data.split: {twice[0]} is in two parts of {path.name}")
    found = {name: next(iter(codes)) for name, codes in parts.items()}
    # A file may name slides or patients.
    codes = frame["id"].map(found).fillna(frame["case"].map(found))
    if codes.isna().all():
        raise DataError(
            f"data.split: {path.name} names none of the {len(frame)} bags; it names "
            f"{', '.join(list(found)[:2]) or 'nothing'}, they are {', '.join(frame['id'][:2])}"
        )
    return np.asarray(codes.fillna(-1), np.int8)


def _json_parts(path: Path) -> dict[str, set[int]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    named = (("train_names", 0), ("val_names", 1), ("test_names", 2))
    return _by_name([(str(name), code) for key, code in named for name in content[key]])


def _csv_parts(path: Path) -> dict[str, set[int]]:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    name = next((name for name in ("id", "slide_id", "case_id") if name in table), None)
    if name is not None and "split" in table:
        split = table["split"].str.strip().str.lower()
        unknown = split[~split.isin(NAMES)]
        if len(unknown):
            raise ValueError(f"{unknown.iloc[0]!r} in the column split is none of its parts")
        return _by_name(list(zip(table[name], split.map(NAMES), strict=True)))
    columns = [name for name in table.columns if name.lower() in NAMES]
    if not columns:
        raise ValueError(f"its columns are {', '.join(map(str, table.columns[:6]))}")
    if table[columns].isin(["True", "False"]).all(axis=None):
        names = table.iloc[:, 0]
        pairs = [(n, NAMES[c.lower()]) for c in columns for n in names[table[c] == "True"]]
    else:
        pairs = [(n, NAMES[c.lower()]) for c in columns for n in table[c] if n]
    return _by_name(pairs)


def _by_name(pairs: list[tuple[str, int]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, code in pairs:
        # Tables with blanks turn slides that are numbers into fractions.
        found.setdefault(re.sub(r"^(\d+)\.0$", r"\1", name.strip()), set()).add(int(code))
    return found
