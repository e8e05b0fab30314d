"""Label tables: which slide belongs to which patient, and what it is labelled with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.acmil.bag_output import Target
from manyhead_core.errors import ConfigError, DataError

SLIDE, CASE = "slide_id", "case_id"
SPLIT_COLUMNS = ("split", "split_info")


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
        left_out: Slides without a label that can be used, and why.
    """

    frame: pd.DataFrame
    class_names: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def read_labels(path: Path, options: LabelOptions) -> Labels:
    """Read a CSV of labels.

    Raises:
        DataError: The file or a column is missing, or a value cannot be used.
    """
    table = _table(Path(path), options)
    unlabelled = table[options.label] == ""
    without = dict.fromkeys(table[options.slide][unlabelled], "the label is empty")
    table = table[~unlabelled]
    frame = pd.DataFrame({"slide": table[options.slide]})
    frame["case"] = table[options.case] if options.case in table else frame["slide"]
    # A patient that is not known is not the same as another one.
    frame["case"] = frame["case"].where(frame["case"] != "", frame["slide"])
    frame["site"] = table[options.site] if options.site else ""
    frame["event"] = _events(table, options)
    split = next((name for name in SPLIT_COLUMNS if name in table), None)
    if split is not None:
        frame["split"] = table[split].str.lower()
    values = table[options.label]
    if options.target in ("regression", "survival"):
        frame["label"] = _numbers(values, frame["slide"], options.target)
        return Labels(frame.reset_index(drop=True), (), without)
    names, codes, kept = classes_of(values, options.classes)
    frame["label"] = codes
    for slide, value in zip(frame["slide"][~kept], values[~kept], strict=True):
        without[slide] = f"the label {value!r} belongs to no class"
    return Labels(frame[kept].reset_index(drop=True), names, without)


def _table(path: Path, options: LabelOptions) -> pd.DataFrame:
    """The file as text, with the columns that are needed and one row a slide."""
    if not path.is_file():
        raise DataError(f"data.labels: no file {path}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as err:  # pandas' own and those of the encoding
        raise DataError(f"data.labels: {path} is no CSV file ({one_line(err)})") from err
    wanted = [options.slide, options.label]
    wanted += [options.event] if options.target == "survival" else []
    wanted += [options.site] if options.site else []
    # Without the usual column every slide is a patient; a column that was asked for must be there.
    wanted += [options.case] if options.case != CASE else []
    for name in wanted:
        if name not in table:
            raise DataError(
                f"data.labels: {path.name} has no column {name}; it has "
                f"{', '.join(map(str, table.columns[:8]))}"
            )
    for column in table:
        table[column] = table[column].str.strip()
    slides = table[options.slide]
    nameless = slides == ""
    if nameless.any():
        line = int(np.flatnonzero(nameless)[0]) + 2
        raise DataError(f"data.labels: line {line} of {path.name} names no slide")
    twice = slides.duplicated()
    if twice.any():
        raise DataError(
            f"data.labels: slide {slides[twice].iloc[0]} has two rows in {path.name}; keep one"
        )
    return table


def one_line(err: Exception) -> str:
    """The message of an error of a library in one line."""
    return " ".join(str(err).split())


def _events(table: pd.DataFrame, options: LabelOptions) -> npt.NDArray[np.bool_]:
    if options.target != "survival":
        return np.ones(len(table), bool)
    words = table[options.event].str.lower()
    known = words.isin(["0", "1", "true", "false", "0.0", "1.0"])
    if not known.all():
        slide = table[options.slide][~known].iloc[0]
        raise DataError(
            f"data.labels: {options.event} of slide {slide} is {words[~known].iloc[0]!r}; "
            "use 1 where the event was seen, else 0"
        )
    return words.isin(["1", "true", "1.0"]).to_numpy()


def _numbers(values: pd.Series, slides: pd.Series, target: Target) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    wrong = ~np.isfinite(numbers.to_numpy())
    wrong |= (target == "survival") & (numbers.to_numpy() < 0)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        what = "time of 0 or more" if target == "survival" else "number"
        raise DataError(
            f"data.labels: {values.iloc[first]!r} of slide {slides.iloc[first]} is no {what}"
        )
    return numbers


def classes_of(
    values: pd.Series, classes: str = ""
) -> tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Names of the classes, class number of each value, and which values belong to a class.

    Args:
        values: Labels as they are written.
        classes: As `LabelOptions.classes`.

    Raises:
        ConfigError: `classes` cannot be read.
        DataError: There are no two classes.
    """
    members = parse_classes(classes) or {value: [value] for value in ordered(values.unique())}
    if len(members) < 2:
        only = f"are {next(iter(members))!r}" if members else "are missing"
        raise DataError(
            f"data.labels: all {len(values)} labels {only}; a classifier needs two classes"
        )
    numbers = {value: k for k, group in enumerate(members.values()) for value in group}
    codes = values.map(numbers)
    kept = np.asarray(codes.notna(), np.bool_)
    if not kept.any():
        raise DataError(
            f"data.classes: no label is one of {', '.join(numbers)}; the labels are "
            f"{', '.join(ordered(values.unique())[:8])}"
        )
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
        name = name.strip()
        if name in found:
            raise ConfigError(f"data.classes: {name} is named twice")
        found[name] = [value.strip() for value in values.split(",")]
        if not sign or not name or not all(found[name]):
            raise ConfigError(
                f"data.classes: {part!r} is not NAME=VALUE,VALUE, as benign=0,1;malignant=2"
            )
    if len(found) == 1:
        raise ConfigError(f"data.classes: {text!r} names one class; a classifier needs two")
    every = [value for values in found.values() for value in values]
    twice = {value for value in every if every.count(value) > 1}
    if twice:
        raise ConfigError(f"data.classes: {sorted(twice)[0]!r} is in two classes")
    return found
