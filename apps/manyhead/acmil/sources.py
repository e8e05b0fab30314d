"""Bags by number: what they are called and labelled, and their features when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.acmil.labels import LabelOptions, Labels, parse_classes, read_labels
from manyhead.acmil.labels import ordered as ordered_values
from manyhead.acmil.layouts import FeatureFile, open_features, slides_in
from manyhead.acmil.mil_csv import read_mil_table
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError

Features = npt.NDArray[np.float32] | npt.NDArray[np.float16]


class BagSource(ABC):
    """Bags with their labels.

    Args:
        frame: One row a bag: id, case, site, label, event, and split where it is known.
        class_names: Of the classes, in order.
        sizes: Patches of each bag.
        feature_dim: Width of a feature.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        class_names: Sequence[str],
        sizes: Sequence[int],
        feature_dim: int,
    ) -> None:
        self.frame = frame.reset_index(drop=True)
        self.class_names = tuple(class_names)
        self.sizes = np.asarray(sizes, np.int64)
        self.feature_dim = feature_dim

    def __len__(self) -> int:
        return len(self.frame)

    @abstractmethod
    def read(self, number: int, rows: npt.NDArray[np.int64] | None = None) -> Features:
        """Features of a bag, or some rows of them in rising order, `(patches, feature_dim)`."""


class TableBags(BagSource):
    """Bags of a classic table, all in memory.

    Args:
        path: The table.
        options: Classes.
    """

    def __init__(self, path: Path, options: LabelOptions) -> None:
        table = read_mil_table(path)
        groups = parse_classes(options.classes) or {
            v: [v] for v in ordered_values(set(table.labels))
        }
        numbers = {value: k for k, values in enumerate(groups.values()) for value in values}
        unknown = sorted(set(table.labels) - numbers.keys())
        if unknown:
            raise ConfigError(f"data.classes: label {unknown[0]!r} belongs to no class")
        frame = pd.DataFrame({"id": table.ids, "case": table.ids, "site": "", "event": True})
        frame["label"] = [numbers[label] for label in table.labels]
        self._features = table.features
        sizes = [len(bag) for bag in table.features]
        super().__init__(frame, list(groups), sizes, table.features[0].shape[1])

    def read(self, number: int, rows: npt.NDArray[np.int64] | None = None) -> Features:
        """As `BagSource.read`."""
        bag = self._features[number]
        return bag if rows is None else bag[rows]


class FileBags(BagSource):
    """Bags of slides or patients whose features lie in files.

    Args:
        files: Of each bag, the files of its slides.
        frame: As for `BagSource`.
        class_names: Of the classes.
    """

    def __init__(
        self, files: Sequence[list[FeatureFile]], frame: pd.DataFrame, class_names: Sequence[str]
    ) -> None:
        self.files = list(files)
        sizes = [sum(file.num_patches for file in bag) for bag in self.files]
        super().__init__(frame, class_names, sizes, self.files[0][0].feature_dim)

    def read(self, number: int, rows: npt.NDArray[np.int64] | None = None) -> Features:
        """As `BagSource.read`."""
        parts, start = [], 0
        for file in self.files[number]:
            end = start + file.num_patches
            own = None if rows is None else rows[(rows >= start) & (rows < end)] - start
            parts.append(file.features(own))
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_source(
    root: Path, labels: Path | None, options: LabelOptions, bag: str = "slide"
) -> BagSource:
    """Bags of a folder of feature files, or of a classic table.

    Args:
        root: Folder or file with features, or the table.
        labels: Label table; not needed by a classic table.
        options: Which columns mean what.
        bag: `slide`, or `patient` for all slides of a patient together.

    Raises:
        DataError: Something is missing or contradicts itself.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"data.root: {root} does not exist; pass the features of the slides")
    if root.is_file() and root.suffix in (".csv", ".data"):
        return TableBags(root, options)
    if labels is None:
        raise ConfigError(
            f"data.labels: not given; pass a CSV with the columns {options.slide}, {options.case} "
            f"and {options.label}"
        )
    if bag not in ("slide", "patient"):
        raise ConfigError(f"data.bag: {bag!r} is unknown; use slide or patient")
    return _file_bags(root, read_labels(labels, options), bag)


def _file_bags(root: Path, labels: Labels, bag: str) -> FileBags:
    where = slides_in(root)
    frame = labels.frame
    missing = sorted(set(frame["slide"]) - where.keys())
    surplus = sorted(where.keys() - set(frame["slide"]))
    if len(missing) == len(frame):
        raise DataError(
            f"data.root: none of the {len(frame)} slides of the label table is in {root}; "
            f"it holds {', '.join(sorted(where)[:3])}"
        )
    for names, what in ((missing, "no features"), (surplus, "no label")):
        if names:
            console.say(f"{len(names)} slides have {what} and are left out, first {names[0]}")
    frame = frame[frame["slide"].isin(where.keys())]
    files = {name: open_features(where[name], name) for name in frame["slide"]}
    empty = [name for name, file in files.items() if not file.num_patches]
    if empty:
        console.say(f"{len(empty)} slides have no patches and are left out, first {empty[0]}")
    frame = frame[~frame["slide"].isin(empty)]
    if frame.empty:
        raise DataError(f"data.root: no slide with a label has patches in {root}")
    _check_widths([files[name] for name in frame["slide"]])
    frame = frame.assign(id=frame["slide"] if bag == "slide" else frame["case"])
    grouped = frame.groupby("id", sort=False)
    _check_patients(grouped)
    bags = [[files[name] for name in names] for _, names in grouped["slide"]]
    return FileBags(bags, grouped.first().reset_index(), labels.class_names)


def _check_widths(files: Sequence[FeatureFile]) -> None:
    first = files[0]
    for file in files:
        if file.feature_dim != first.feature_dim:
            raise DataError(
                f"data.root: features of {file.slide_id} are {file.feature_dim} wide, those of "
                f"{first.slide_id} {first.feature_dim}; use the files of one encoder"
            )


def _check_patients(grouped: Any) -> None:
    mixed = grouped["label"].nunique() > 1
    if mixed.any():
        raise DataError(
            f"data.labels: the slides of {int(mixed.sum())} patients have different labels; "
            "use --data.bag slide"
        )
