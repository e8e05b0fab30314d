"""Bags by number: what they are called and labelled, and their features when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.acmil.labels import LabelOptions, Labels, classes_of, read_labels
from manyhead.acmil.layouts import FeatureFile, open_features, slides_in
from manyhead.acmil.mil_csv import read_mil_table
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.training.results import hashed

Features = npt.NDArray[np.float32] | npt.NDArray[np.float16]


class BagSource(ABC):
    """Bags with their labels.

    Args:
        frame: One row a bag: id, case, site, label, event, and split where it is known.
        class_names: Of the classes, in order.
        sizes: Patches of each bag.
        feature_dim: Width of a feature.
        left_out: Slides of the label table or the folder that are in no bag, and why.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        class_names: Sequence[str],
        sizes: Sequence[int],
        feature_dim: int,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.left_out = dict(left_out or {})
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
        names, codes, kept = classes_of(pd.Series(table.labels, dtype=str), options.classes)
        if not kept.all():
            raise ConfigError(
                f"data.classes: label {table.labels[int(kept.argmin())]!r} belongs to no class"
            )
        frame = pd.DataFrame({"id": table.ids, "case": table.ids, "site": "", "event": True})
        frame["label"] = codes
        self._features = table.features
        sizes = [len(bag) for bag in table.features]
        super().__init__(frame, names, sizes, table.features[0].shape[1])

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
        left_out: As for `BagSource`.
    """

    def __init__(
        self,
        files: Sequence[list[FeatureFile]],
        frame: pd.DataFrame,
        class_names: Sequence[str],
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.files = list(files)
        sizes = [sum(file.num_patches for file in bag) for bag in self.files]
        width = self.files[0][0].feature_dim
        super().__init__(frame, class_names, sizes, width, left_out)

    def read(self, number: int, rows: npt.NDArray[np.int64] | None = None) -> Features:
        """As `BagSource.read`."""
        return read_bag(self.files[number], rows)


def read_bag(files: Sequence[FeatureFile], rows: npt.NDArray[np.int64] | None = None) -> Features:
    """Features of the slides of a bag, one below the other, `(patches, feature_dim)`.

    Args:
        files: Of the slides.
        rows: Some of the patches, counted over the bag, in rising order; None is all.

    Raises:
        DataError: A file is damaged or holds values that are not finite.
    """
    parts, start = [], 0
    for file in files:
        end = start + file.num_patches
        own = None if rows is None else rows[(rows >= start) & (rows < end)] - start
        if own is None or len(own):
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
    named = set(frame["slide"])
    if not named & where.keys():
        raise DataError(
            f"data.root: none of the {len(frame)} slides of the label table is in {root}; it holds "
            f"{', '.join(sorted(where)[:2])}, the table names {', '.join(frame['slide'][:2])}"
        )
    without = dict(labels.left_out)
    without |= dict.fromkeys(sorted(named - where.keys()), "no features")
    without |= dict.fromkeys(sorted(where.keys() - named - without.keys()), "no label")
    files, unusable = open_all({name: where[name] for name in frame["slide"] if name in where})
    without |= unusable
    _say_left_out(without)
    if not files:
        first = next(iter(unusable.items()))
        raise DataError(f"data.root: no slide with a label can be used; {first[0]}: {first[1]}")
    _check_widths(list(files.values()))
    frame = frame[frame["slide"].isin(files.keys())]
    frame = frame.assign(id=frame["slide"])
    if bag == "patient":
        _check_patients(frame)
        # Who a patient is must not be read off the results.
        frame["id"] = frame["case"].map(hashed)
    grouped = frame.groupby("id", sort=False)
    bags = [[files[name] for name in names] for _, names in grouped["slide"]]
    return FileBags(bags, grouped.first().reset_index(), labels.class_names, without)


def open_all(where: Mapping[str, Path]) -> tuple[dict[str, FeatureFile], dict[str, str]]:
    """Open the features of many slides.

    Args:
        where: File of each slide.

    Returns:
        Slides that can be used, and why the others cannot.
    """
    files, unusable = {}, {}
    for name, path in where.items():
        try:
            file = open_features(path, name)
        except DataError as err:
            unusable[name] = str(err).removeprefix(f"{name}: ")
            continue
        if file.num_patches:
            files[name] = file
        else:
            unusable[name] = "no patches"
    return files, unusable


def _say_left_out(without: Mapping[str, str]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, reason in without.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        slides = f"slide {names[0]} is" if len(names) == 1 else f"{len(names)} slides are"
        first = "" if len(names) == 1 else f", first {names[0]}"
        console.say(f"{slides} left out: {reason}{first}")


def _check_widths(files: Sequence[FeatureFile]) -> None:
    widths = Counter(file.feature_dim for file in files)
    usual = widths.most_common(1)[0][0]
    other = [file for file in files if file.feature_dim != usual]
    if other:
        raise DataError(
            f"data.root: features of {other[0].slide_id} are {other[0].feature_dim} wide, those of "
            f"{widths[usual]} of {len(files)} slides {usual}; use the files of one encoder"
        )


def _check_patients(frame: pd.DataFrame) -> None:
    names = [name for name in ("label", "split") if name in frame]
    for name in names:
        mixed = int((frame.groupby("case")[name].nunique() > 1).sum())
        if mixed:
            raise DataError(
                f"data.labels: the slides of {mixed} patients differ in the column {name}; "
                "use --data.bag slide"
            )
