"""Which items train, validate and test; all items of a group, such as a patient, stay together.

Apps bring a table of their items and their own kinds of split files; what is drawn, how files are
read and what is said about them is the same everywhere. Options are named as those of `data`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from manyhead_core.errors import ConfigError, DataError

PARTS = ("train", "validation", "test")
NONE = -1
# What tools call the parts.
NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
Codes = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.integer[Any]]
Pairs = Iterable[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How items are split.

    Args:
        by: `random`, whole groups; `fold`, folds of groups; or what else the app knows.
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

    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each part, `(3,)`.

        Raises:
            ConfigError: They are no shares of a whole.
        """
        shares = np.asarray(self.fractions, float)
        if shares.shape != (3,) or (shares < 0).any() or not np.isclose(shares.sum(), 1):
            raise ConfigError(
                f"data.fractions: {list(self.fractions)} must be three shares that sum to 1"
            )
        return shares

    def check_folds(self) -> None:
        """Refuse numbers of folds that leave none to train.

        Raises:
            ConfigError: They do.
        """
        count = self.folds
        if count < 2 or not 0 <= self.fold < count:
            raise ConfigError(f"data.fold: {self.fold} is not one of 0 to folds - 1 = {count - 1}")
        if not 0 <= self.validation_folds < count - 1:
            raise ConfigError(
                f"data.validation_folds: {self.validation_folds} of {count} folds leave none to "
                "train"
            )


def shuffled(stratum: pd.Series, order: Iterable[Hashable], seed: int) -> list[list[str]]:
    """Groups of each stratum in random order.

    Args:
        stratum: Of each group, indexed by its name; sorted names make the seed decide alone.
        order: The strata, in the order in which they are drawn.
        seed: Of what is drawn.
    """
    generator = np.random.default_rng(seed)
    names = stratum.index.to_numpy()
    return [generator.permutation(names[(stratum == one).to_numpy()]).tolist() for one in order]


def cut(strata: Sequence[Sequence[str]], shares: npt.NDArray[np.float64]) -> dict[str, int]:
    """Part of each group; every stratum is cut by the shares, which suits strata of many groups.

    Args:
        strata: Groups of each, in the order in which they are taken.
        shares: Of the parts, `(3,)`.
    """
    found: dict[str, int] = {}
    for names in strata:
        edges = np.rint(np.cumsum(shares)[:2] * len(names)).astype(int).tolist()
        for part, (start, stop) in enumerate(zip([0, *edges], [*edges, len(names)], strict=True)):
            found |= dict.fromkeys(names[start:stop], part)
    return found


def dealt(names: Iterable[str], shares: npt.NDArray[np.float64]) -> dict[str, int]:
    """Part of each group, dealt one by one to the part that is owed most, which suits few groups.

    Args:
        names: Groups in the order in which they are dealt; stratum after stratum.
        shares: Of the parts, `(3,)`.
    """
    found: dict[str, int] = {}
    have = np.zeros(3)
    for name in names:
        owed = np.round(shares * (len(found) + 1) - have, 9)
        # Of parts that are owed as much the later one gets the group: few groups would all
        # train otherwise, and nothing be left to test with.
        part = max(range(3), key=lambda k: (owed[k], k))
        found[name] = part
        have[part] += 1
    return found


def stratified_folds(
    label: npt.NDArray[np.generic], group: pd.Series, count: int, seed: int, things: str = "items"
) -> Numbers:
    """Fold of each item, as many of each class in every fold as groups allow, `(items,)`.

    Args:
        label: Class of each item, `(items,)`; fractions are one stratum.
        group: Of each item, `(items,)`.
        count: Number of folds.
        seed: Of what is drawn.
        things: What the items are called.

    Raises:
        DataError: There are too few.
    """
    strata = np.zeros(len(label), int) if label.dtype.kind == "f" else label
    rows = np.zeros(len(label))
    if group.is_unique:
        split = StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, strata)
    else:
        grouped = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        split = grouped.split(rows, strata, group.to_numpy())
    found = np.zeros(len(label), np.int64)
    try:
        with warnings.catch_warnings():
            # A class with fewer groups than folds is absent from some; who reads the split
            # report sees it.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for number, (_, held) in enumerate(split):
                found[held] = number
    except ValueError as err:
        raise DataError(
            f"data.folds: {count} folds cannot be made of {len(label)} {things}: {one_line(err)}"
        ) from err
    return found


def fold_codes(fold_of: Numbers, options: SplitOptions) -> Codes:
    """Part of what is in a fold: one fold tests, the next ones validate.

    Args:
        fold_of: Number of the fold, `(items,)`.
        options: Which folds.
    """
    after = (fold_of - options.fold) % options.folds
    codes = np.zeros(len(fold_of), np.int8)
    codes[(after > 0) & (after <= options.validation_folds)] = 1
    codes[after == 0] = 2
    return codes


def parts_of_groups(group: pd.Series, codes: Codes) -> pd.DataFrame:
    """First part (`first`) and number of parts (`parts`) of each group that is in one.

    Args:
        group: Of each item, `(items,)`.
        codes: Part of each item, `(items,)`.
    """
    used = pd.DataFrame({"group": group.to_numpy(), "part": codes})[codes >= 0]
    found = used.groupby("group")["part"].agg(["min", "nunique"])
    return found.rename(columns={"min": "first", "nunique": "parts"})


def without_later(group: pd.Series, codes: Codes) -> Codes:
    """Parts without the items of a group that are not in its first part.

    Args:
        group: Of each item, `(items,)`.
        codes: Part of each item, `(items,)`.
    """
    first = group.map(parts_of_groups(group, codes)["first"]).to_numpy()
    return np.where(codes == first, codes, NONE).astype(np.int8)


def read_parts(path: Path, read: Callable[[Path], Pairs], known: str) -> dict[str, int]:
    """Part of each name in a split file.

    Args:
        path: The file.
        read: Gives names and parts; a ValueError says what is wrong with the file.
        known: What `data.split` takes besides files, for the message.

    Raises:
        ConfigError: There is no such file.
        DataError: It is no split file, or puts a name into two parts.
    """
    if not path.is_file():
        raise ConfigError(f"data.split: {str(path)!r} is no file and none of {known}")
    try:
        pairs = list(read(path))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as err:
        # Wrong encodings and broken JSON are ValueErrors.
        text = f"{err} is missing" if isinstance(err, KeyError) else one_line(err)
        raise DataError(f"data.split: {path.name} is no split file ({text})") from err
    found: dict[str, int] = {}
    for name, code in pairs:
        if found.setdefault(name, code) != code:
            raise DataError(
                f"data.split: {name} is in two parts of {path.name}, {PARTS[found[name]]} and "
                f"{PARTS[code]}"
            )
    return found


def json_pairs(path: Path, names: Mapping[str, int] = NAMES) -> Pairs:
    """Names and parts of a .json file that lists the names of each part.

    Args:
        path: The file.
        names: Parts by what the file may call them.

    Raises:
        ValueError: It holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if unknown := [key for key in content if key not in names]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(names)}")
    return [(str(name), names[key]) for key, listed in content.items() for name in listed]


def table_pairs(
    name: pd.Series, part: pd.Series, names: Mapping[str, int] = NAMES, empty: Sequence[str] = ()
) -> Pairs:
    """Names and parts of two columns of text.

    Args:
        name: Of items or groups.
        part: Of each.
        names: Parts by what the column may call them; capitals do not count.
        empty: What the column holds for names that are in no part.

    Raises:
        ValueError: The column holds something else.
    """
    text = part.str.strip().str.lower()
    used = ~text.isin(list(empty))
    if len(odd := text[used & ~text.isin(list(names))]):
        raise ValueError(f"{odd.iloc[0]!r} in the column {part.name} is none of {', '.join(names)}")
    return list(zip(name[used].str.strip(), text[used].map(names), strict=True))


def codes_of(
    columns: Sequence[pd.Series], found: Mapping[str, int], path: Path, things: str = "items"
) -> Codes:
    """Part of each item by the first of its names that a split file knows, `(items,)`.

    Args:
        columns: Names of the items, and then those of what they belong to, each `(items,)`.
        found: Part by name.
        path: The split file, for the message.
        things: What the items are called.

    Raises:
        DataError: The file names none of them.
    """
    codes = columns[0].map(found)
    for column in columns[1:]:
        codes = codes.fillna(column.map(found))
    if codes.isna().all():
        raise DataError(
            f"data.split: {path.name} names none of the {len(codes)} {things}; it names "
            f"{', '.join(list(found)[:2]) or 'nothing'}, they are {', '.join(columns[0][:2])}"
        )
    return np.asarray(codes.fillna(NONE), np.int8)


def one_line(err: Exception) -> str:
    """The message of an error without line ends."""
    return " ".join(str(err).split())
