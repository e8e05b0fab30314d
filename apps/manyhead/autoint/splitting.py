"""Which rows train, validate and test."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from manyhead.autoint.sources import Source
from manyhead.autoint.vocabulary import Counter, factorise
from manyhead_core.app import find
from manyhead_core.errors import ConfigError, DataError

Strategy = Literal["reference", "row", "group", "time", "fold", "file"]
PARTS = {"train": 0, "validation": 1, "test": 2, "unused": -1}
REFERENCE_SEED = {"shuffle": 2019, "stratified": 2018}


@dataclass(frozen=True)
class SplitOptions:
    """How rows are assigned.

    Args:
        by: `row`: at random; `group`: at random, all rows of a group together; `time`: the latest
            rows test, those before validate; `fold`: stratified folds; `file`: as `file` says;
            `reference`: as in the published results of the data set.
        fractions: Share of train, validation and test; what is left is unused.
        seed: Of the random assignments.
        folds: Number of folds for `by: fold`.
        fold: Fold that tests, from 0; the next one validates.
        file: CSV with the columns row and split (train, validation, test or unused).
    """

    by: Strategy = "row"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    folds: int = 10
    fold: int = 0
    file: Path | None = None

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or min(self.fractions) < 0 or self.fractions[0] <= 0:
            raise ConfigError(
                f"split.fractions: is {list(self.fractions)}; give train, validation and test, "
                "none negative, train above 0"
            )
        if sum(self.fractions) > 1 + 1e-9:
            raise ConfigError(f"split.fractions: sum to {sum(self.fractions):g}, more than 1")
        if self.by == "fold" and not (self.folds >= 3 and 0 <= self.fold < self.folds):
            raise ConfigError(f"split.fold: is {self.fold} of {self.folds}; needs 3 folds or more")
        if self.by == "file" and self.file is None:
            raise ConfigError("split.file: by file needs one; `manyhead autoint split` writes it")


@dataclass(frozen=True)
class Keys:
    """What a split needs to know of every row.

    Args:
        label: 0.0 or 1.0 `(rows,)`.
        group: Number of the group `(rows,)`, -1 for none; None without a group column.
        time: Times as float64 `(rows,)`; None without a time column.
    """

    label: np.ndarray
    group: np.ndarray | None
    time: np.ndarray | None

    @classmethod
    def read(cls, source: Source) -> Keys:
        """Gather the keys in one pass over the columns they need.

        Raises:
            DataError: There is no row, or all labels are the same.
        """
        schema = source.schema
        wanted = [name for name in (schema.label, schema.group, schema.time) if name]
        labels, groups, times, counter = [], [], [], Counter()
        for frame in source.chunks(list(dict.fromkeys(wanted))):
            labels.append(frame[schema.label].to_numpy(np.float64))
            if schema.group:
                codes, texts = factorise(frame[schema.group])
                groups.append(np.append(counter.add(codes, texts), -1)[codes])
            if schema.time:
                times.append(as_times(frame[schema.time], schema.time))
        if not labels or not sum(map(len, labels)):
            raise DataError("data.root: the table is empty; there is no row to split")
        label = np.concatenate(labels)
        _check_labels(label, schema.label)
        return cls(
            label,
            np.concatenate(groups) if groups else None,
            np.concatenate(times) if times else None,
        )


def assign(source: Source, options: SplitOptions | None = None) -> np.ndarray:
    """Part of every row: 0 train, 1 validation, 2 test, -1 unused.

    Args:
        source: Raw rows.
        options: How; the default is at random by row, 8:1:1.

    Returns:
        int8 `(rows,)`, in the order of the source.

    Raises:
        ConfigError: The source has no group, time or published split to go by.
        DataError: The table is empty, has one class only, or the split file does not fit.
    """
    options = options or SplitOptions()
    keys = Keys.read(source)
    count = len(keys.label)
    if options.by == "reference":
        return _reference(source, keys)
    if options.by == "file":
        assert options.file is not None  # noqa: S101  checked by the options
        return read_split(options.file, count)
    if options.by == "row":
        return by_row(count, options.fractions, options.seed)
    if options.by == "fold":
        return by_fold(keys.label, options.folds, options.fold, options.seed)
    if options.by == "group":
        return by_group(_needed(keys.group, "group"), options.fractions, options.seed)
    return by_time(_needed(keys.time, "time"), options.fractions)


def by_row(count: int, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Random rows; the parts have their share to within one row."""
    order = np.random.default_rng(seed).permutation(count)
    return _cut(order, fractions)


def by_group(group: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Random groups, until each part has its share of the rows; rows without a group alone."""
    own = group.copy()
    alone = np.flatnonzero(own < 0)
    own[alone] = own.max(initial=-1) + 1 + np.arange(len(alone))
    sizes = np.bincount(own)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # A group goes where its middle row falls; a part is off by half a group at most.
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / len(group)
    part = np.empty(len(sizes), dtype=np.int8)
    part[order] = _part_of(middle, fractions)
    return np.asarray(part[own])


def by_time(time: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Train on the past; rows of the same time stay together."""
    order = np.argsort(time, kind="stable")
    ordered = time[order]
    # All rows of one time go where the middle one falls, so that no part knows another's moment.
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right")
    part = np.empty(len(time), dtype=np.int8)
    part[order] = _part_of((first + last) / 2 / len(time), fractions)
    return part


def by_fold(label: np.ndarray, folds: int, fold: int, seed: int) -> np.ndarray:
    """Stratified folds: `fold` tests, the next one validates, the others train."""
    number = fold_numbers(label, folds, seed)
    part = np.zeros(len(label), dtype=np.int8)
    part[number == fold] = PARTS["test"]
    part[number == (fold + 1) % folds] = PARTS["validation"]
    return part


def fold_numbers(label: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of every row, from 0, of scikit-learn's shuffled StratifiedKFold."""
    from sklearn.model_selection import StratifiedKFold

    number = np.empty(len(label), dtype=np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for place, (_, test) in enumerate(splitter.split(np.zeros(len(label)), label)):
            number[test] = place
    return number


def by_shuffle(count: int, fractions: Sequence[float], seed: int) -> np.ndarray:
    """The shuffle of Python's `random`, cut at whole rows, as the published MovieLens split."""
    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311
    return _cut(np.array(order), fractions)


def read_split(path: Path, count: int) -> np.ndarray:
    """Read a split file.

    Raises:
        DataError: The file is missing, malformed, or made for another number of rows.
    """
    if not path.is_file():
        raise DataError(f"split.file: {path} does not exist; `manyhead autoint split` writes one")
    try:
        table = pd.read_csv(path, usecols=["row", "split"], dtype={"row": np.int64, "split": str})
    except ValueError as err:
        raise DataError(f"split.file: {path} needs the columns row and split ({err})") from err
    for name in table["split"].unique():
        find(str(name), PARTS, f"part in {path.name}:")
    rows = table["row"].to_numpy()
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise DataError(
            f"split.file: {path} names row {rows.max()}, the data has {count}; make it anew"
        )
    if len(np.unique(rows)) != len(rows):
        raise DataError(f"split.file: {path} names a row twice")
    part = np.full(count, PARTS["unused"], dtype=np.int8)
    part[rows] = table["split"].map(PARTS).to_numpy(np.int8)
    if not (part == 0).any():
        raise DataError(f"split.file: {path} gives no row to train")
    return part


def as_times(column: pd.Series[Any], name: str) -> np.ndarray:
    """Times as float64: numbers as they are, dates as seconds.

    Args:
        column: Numbers, dates, or texts of either; the index holds the row numbers.
        name: Of the column, for the message.

    Raises:
        DataError: A value is neither a number nor a date, or missing.
    """
    if column.dtype.kind in "iuf" and column.notna().all():
        return column.to_numpy(np.float64)
    values = column.astype(object)
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().all() and column.dtype.kind != "M":
        return numbers.to_numpy(np.float64)
    dates = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        place = int(dates.isna().to_numpy().argmax())
        raise DataError(
            f"time column {name}, row {column.index[place]}: {values.iloc[place]!r} is neither a "
            "number nor a date such as 2024-05-31 13:00:00"
        )
    return (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(np.float64)


def _reference(source: Source, keys: Keys) -> np.ndarray:
    kind = source.reference_split
    if kind == "shuffle":
        return by_shuffle(len(keys.label), (0.8, 0.1, 0.1), REFERENCE_SEED[kind])
    if kind == "stratified":
        return by_fold(keys.label, 10, 0, REFERENCE_SEED[kind])
    raise ConfigError(
        f"split.by: the format {source.format} has no published split; use row, group or time"
    )


def _cut(order: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """The first rows of `order` train, the next validate, the next test."""
    count = len(order)
    # Rounded first: 0.8 + 0.1 is below 0.9 in binary.
    ends = [int(round(total, 9) * count) for total in np.cumsum(fractions)]
    part = np.full(count, PARTS["unused"], dtype=np.int8)
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        part[order[start:end]] = number
    return part


def _part_of(place: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Part by the place in 0..1 of an ordering."""
    ends = np.round(np.cumsum(fractions), 9)
    part = np.searchsorted(ends, place, side="right")
    return np.where(part > 2, PARTS["unused"], part).astype(np.int8)


def _check_labels(label: np.ndarray, column: str) -> None:
    if label.min() == label.max():
        raise DataError(
            f"label {column}: is {label[0]:g} in all {len(label)} rows; a model needs both classes"
        )


def _needed(keys: np.ndarray | None, what: str) -> np.ndarray:
    if keys is None:
        raise ConfigError(
            f"split.by: {what} needs a {what} column; name it as {what} in the schema"
        )
    return keys
