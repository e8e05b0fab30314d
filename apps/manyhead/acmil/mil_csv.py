"""Classic multiple-instance tables: one row per instance, with the label and number of its bag."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead_core.errors import DataError


class BagTable(NamedTuple):
    """Bags of a table.

    Args:
        ids: Of the bags.
        labels: As they are written.
        features: Of each bag, float32 `(instances, feature_dim)`.
    """

    ids: list[str]
    labels: list[str]
    features: list[npt.NDArray[np.float32]]


def read_mil_table(path: Path) -> BagTable:
    """Bags of a .csv (label, bag, features) or a C4.5 .data file (bag, instance, features, label).

    Raises:
        DataError: The file is missing or not of this form.
    """
    if not path.is_file():
        raise DataError(f"data.root: no file {path}")
    try:
        table = pd.read_csv(path, header=None)
        if path.suffix == ".data":
            bags, labels, numbers = table[0], table[table.columns[-1]], table.iloc[:, 2:-1]
            labels = labels.astype(str).str.rstrip(".")
        else:
            labels, bags, numbers = table[0], table[1], table.iloc[:, 2:]
        features = numbers.to_numpy(dtype=np.float32)
    except (UnicodeDecodeError, ValueError, KeyError, IndexError, pd.errors.ParserError) as err:
        raise DataError(
            f"data.root: {path.name} is no table of bags (label, bag, features): {err}"
        ) from err
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise DataError(f"data.root: row {row + 1} of {path.name} holds a missing number")
    return _bags(path, bags.astype(str), labels.astype(str), features)


def _bags(
    path: Path, bags: pd.Series, labels: pd.Series, features: npt.NDArray[np.float32]
) -> BagTable:
    codes, names = pd.factorize(bags)
    of_bag = labels.groupby(codes, sort=True)
    mixed = of_bag.nunique() > 1
    if mixed.any():
        raise DataError(
            f"data.root: bag {names[int(mixed.argmax())]} of {path.name} has two labels"
        )
    parts = [features[codes == number] for number in range(len(names))]
    return BagTable([str(name) for name in names], of_bag.first().tolist(), parts)
