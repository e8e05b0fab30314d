"""Classic multiple-instance tables: one row per instance, with the label and number of its bag."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.acmil.labels import one_line
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
    official = path.suffix == ".data"
    try:
        table = pd.read_csv(path, header=None)
        bags, labels = (table[0], table[table.columns[-1]]) if official else (table[1], table[0])
        features = (table.iloc[:, 2:-1] if official else table.iloc[:, 2:]).to_numpy(np.float32)
    except (ValueError, KeyError, IndexError) as err:
        # Wrong encodings and what pandas cannot parse are ValueErrors.
        raise DataError(
            f"data.root: {path.name} is no table of bags (label, bag, features): {one_line(err)}"
        ) from err
    if not features.shape[1]:
        raise DataError(f"data.root: {path.name} is no table of bags: it has no features")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise DataError(f"data.root: row {row + 1} of {path.name} holds a missing number")
    return _bags(path, bags.astype(str), labels.map(_label), features)


def _label(value: object) -> str:
    """A label as text; classes that are numbers, as in `1.`, without their point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
