"""Which bags train, validate and test; all bags of a patient stay together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from manyhead_core.data.splits import (
    NAMES,
    NONE,
    PARTS,
    Codes,
    Pairs,
    SplitOptions,
    codes_of,
    cut,
    fold_codes,
    parts_of_groups,
    read_parts,
    shuffled,
    stratified_folds,
    table_pairs,
)
from manyhead_core.errors import DataError

__all__ = ["PARTS", "Codes", "SplitOptions", "assign", "read_split", "refuse_shared_patients"]


def assign(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    """Part of each bag: 0 train, 1 validation, 2 test, -1 none, `(bags,)`.

    Args:
        frame: Columns id, case, label and, for `column`, split.
        options: How; `by` is `random`, stratified by class and whole patients; `fold`, stratified
            folds; `column`, the column split of the label table; or a .json or .csv file.

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
    parts = parts_of_groups(frame["case"], codes)["parts"]
    if (parts > 1).any():
        raise DataError(
            f"data.split: {int((parts > 1).sum())} of {len(parts)} patients are in more than one "
            "part; if the column of data.case names no patients, pass --data.case slide_id"
        )


def _random(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    shares = options.shares()
    cases = frame.groupby("case", sort=True)["label"].max()
    if cases.dtype.kind == "f":  # numbers are one stratum
        cases = pd.Series(0, cases.index)
    strata = shuffled(cases, sorted(cases.unique()), options.seed)
    return np.asarray(frame["case"].map(cut(strata, shares)), np.int8)


def _folds(frame: pd.DataFrame, options: SplitOptions) -> Codes:
    options.check_folds()
    label = frame["label"].to_numpy()
    folds = stratified_folds(label, frame["case"], options.folds, options.seed, "bags")
    return fold_codes(folds, options)


def _column(frame: pd.DataFrame) -> Codes:
    if "split" not in frame:
        raise DataError("data.split: the label table has no column split")
    # An empty field is a slide that is in no part.
    codes = frame["split"].map(NAMES | {"": NONE})
    if codes.isna().any():
        odd = frame["split"][codes.isna()].iloc[0]
        raise DataError(f"data.split: {odd!r} in the column split is none of {', '.join(NAMES)}")
    return np.asarray(codes, np.int8)


def read_split(path: Path, frame: pd.DataFrame) -> Codes:
    """Parts from a file: ACMIL's .json, CLAM's splits_K.csv or _bool.csv, or our split.csv.

    Raises:
        ConfigError: There is no such file.
        DataError: It is no split file or names no bag of the data.
    """
    found = read_parts(path, _pairs, "random, fold, column")
    # A file may name slides or patients.
    return codes_of([frame["id"], frame["case"]], found, path, "bags")


def _pairs(path: Path) -> Pairs:
    pairs = _json_pairs(path) if path.suffix == ".json" else _csv_pairs(path)
    # Tables with blanks turn slides that are numbers into fractions.
    return [(re.sub(r"^(\d+)\.0$", r"\1", name.strip()), code) for name, code in pairs]


def _json_pairs(path: Path) -> Pairs:
    content = json.loads(path.read_text(encoding="utf-8"))
    named = (("train_names", 0), ("val_names", 1), ("test_names", 2))
    return [(str(name), code) for key, code in named for name in content[key]]


def _csv_pairs(path: Path) -> Pairs:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    name = next((name for name in ("id", "slide_id", "case_id") if name in table), None)
    if name is not None and "split" in table:
        return table_pairs(table[name], table["split"])
    columns = [name for name in table.columns if name.lower() in NAMES]
    if not columns:
        raise ValueError(f"its columns are {', '.join(map(str, table.columns[:6]))}")
    if table[columns].isin(["True", "False"]).all(axis=None):
        names = table.iloc[:, 0]
        return [(n, NAMES[c.lower()]) for c in columns for n in names[table[c] == "True"]]
    return [(n, NAMES[c.lower()]) for c in columns for n in table[c] if n]
