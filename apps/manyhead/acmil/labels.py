"""Label tables: which slide belongs to which patient, and what it is labelled with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.acmil.bag_output import Target
from manyhead_core.errors import ConfigError, DataError

SLIDE, CASE = "slide_id", "case_id"


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Which columns mean what.

    Args:
        target: What a slide is labelled with.
        label: Column of the class, the number or the time.
        event: Column that is 1 where the event of a survival time was seen.
        slide: Column of the slide.
        case: Column of the patient; without it every slide is a patient of its own.
        site: Column of the hospital or scanner, for reports; empty for none.
        classes: Classes in order with the values that belong to them, as
            `benign=0,1,2;atypical=3,4;malignant=5,6`; empty takes the values as they are.
    """

    target: Target = "classes"
    label: str = "label"
    event: str = "event"
    slide: str = SLIDE
    case: str = CASE
    site: str = ""
    classes: str = ""


@dataclass(frozen=True)
class Labels:
    """A label table that was read and checked.

    Args:
        frame: Columns slide, case, label, event, site and, where the table has it, split; a label
            is a class number or a number.
        class_names: Of the classes, in order; empty for numbers and times.
    """

    frame: pd.DataFrame
    class_names: tuple[str, ...]


def read_labels(path: Path, options: LabelOptions) -> Labels:
    """Read a CSV of labels.

    Raises:
        DataError: The file or a column is missing, or a value cannot be used.
    """
    if not Path(path).is_file():
        raise DataError(f"data.labels: no file {path}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as err:
        raise DataError(f"data.labels: {path} is no CSV file ({err})") from err
    wanted = [options.slide, options.label]
    wanted += [options.event] if options.target == "survival" else []
    wanted += [options.site] if options.site else []
    for name in wanted:
        if name not in table:
            raise DataError(
                f"data.labels: {Path(path).name} has no column {name}; it has "
                f"{', '.join(table.columns)}"
            )
    table = table[table[options.label].str.strip() != ""]
    frame = pd.DataFrame({"slide": table[options.slide].str.strip()})
    frame["case"] = table[options.case] if options.case in table else frame["slide"]
    frame["site"] = table[options.site] if options.site else ""
    frame["event"] = _events(table, options)
    for name in ("split", "split_info"):
        if name in table:
            frame["split"] = table[name].str.strip().str.lower()
    twice = frame["slide"].duplicated()
    if twice.any():
        raise DataError(f"data.labels: slide {frame['slide'][twice].iloc[0]} has two rows")
    values = table[options.label].str.strip()
    if options.target in ("regression", "survival"):
        frame["label"] = _numbers(values, frame["slide"])
        return Labels(frame.reset_index(drop=True), ())
    names, codes, kept = _classes(values, options.classes)
    frame["label"] = codes
    return Labels(frame[kept].reset_index(drop=True), names)


def _events(table: pd.DataFrame, options: LabelOptions) -> npt.NDArray[np.bool_]:
    if options.target != "survival":
        return np.ones(len(table), bool)
    words = table[options.event].str.strip().str.lower()
    known = words.isin(["0", "1", "true", "false", "0.0", "1.0"])
    if not known.all():
        raise DataError(f"data.labels: event is {words[~known].iloc[0]!r}; use 1 or 0")
    return words.isin(["1", "true", "1.0"]).to_numpy()


def _numbers(values: pd.Series, slides: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = ~np.isfinite(numbers.to_numpy(dtype=float))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"data.labels: {values.iloc[first]!r} of slide {slides.iloc[first]} is no number"
        )
    return numbers.astype(float)


def _classes(
    values: pd.Series, classes: str
) -> tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Names, class numbers, and which rows belong to a class."""
    members = parse_classes(classes) or {value: [value] for value in ordered(values.unique())}
    if len(members) < 2:
        raise DataError(
            f"data.labels: all {len(values)} labels are {next(iter(members), 'missing')!r}; "
            "a classifier needs two classes"
        )
    numbers = {value: k for k, group in enumerate(members.values()) for value in group}
    codes = values.map(numbers)
    kept = np.asarray(codes.notna(), np.bool_)
    if not kept.any():
        raise DataError(f"data.classes: no label is one of {', '.join(numbers)}")
    return tuple(members), np.asarray(codes.fillna(-1), np.int64), kept


def ordered(values: Iterable[str]) -> list[str]:
    """Values in the order of their numbers, or of the alphabet if they are words."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)


def parse_classes(text: str) -> dict[str, list[str]]:
    """Class names with their values, of `LabelOptions.classes`.

    Raises:
        ConfigError: A part is not NAME=VALUE,VALUE, or a value is in two classes.
    """
    found: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, sign, values = part.partition("=")
        found[name.strip()] = [value.strip() for value in values.split(",")]
        if not sign or not all(found[name.strip()]):
            raise ConfigError(f"data.classes: {part!r} is not NAME=VALUE,VALUE")
    every = [value for values in found.values() for value in values]
    twice = {value for value in every if every.count(value) > 1}
    if twice:
        raise ConfigError(f"data.classes: {sorted(twice)[0]!r} is in two classes")
    return found
