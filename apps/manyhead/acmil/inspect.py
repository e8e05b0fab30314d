"""The command that reports on labels and features before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyhead.acmil.bag_output import Target
from manyhead.acmil.labels import CASE, SLIDE, LabelOptions, Labels, read_labels
from manyhead.acmil.layouts import FeatureFile, slides_in
from manyhead.acmil.mil_csv import read_mil_table
from manyhead.acmil.sources import open_all
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import replace, replace_json

# Rows that tell two slides apart.
SAMPLE = 64
# Attributes that say how features were made.
ABOUT = ("encoder", "extractor", "mpp", "target_mpp", "target_magnification", "patch_size")
QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
SHOWN = 8


@dataclass
class Findings:
    """What is known of the data.

    Args:
        numbers: Facts by name, in words.
        labels: Slides by site (rows) and label (columns), or None.
        slides: One row a slide: slide_id, patches, width, layout, problem.
        encoders: Number of slides by layout and attributes.
        duplicates: Slides with the same features.
    """

    numbers: dict[str, str] = field(default_factory=dict)
    labels: pd.DataFrame | None = None
    slides: pd.DataFrame = field(default_factory=pd.DataFrame)
    encoders: Counter[str] = field(default_factory=Counter)
    duplicates: list[list[str]] = field(default_factory=list)

    @property
    def problems(self) -> pd.DataFrame:
        """The slides that cannot be used."""
        return self.slides[self.slides["problem"] != ""] if len(self.slides) else self.slides


def inspect(
    app: App,  # noqa: ARG001  the command line gives it to every command
    root: Path,
    labels: Path | None = None,
    target: Target = "classes",
    label: str = "label",
    event: str = "event",
    slide: str = SLIDE,
    case: str = CASE,
    site: str = "",
    classes: str = "",
    scan: bool = False,
    out: Path | None = None,
) -> None:
    """Report on slides: patients, labels by site, patches, encoder, what is missing or damaged.

    Args:
        app: Row of the app.
        root: Folder or file with features, or a classic table of bags.
        labels: CSV with a row for each slide; without one only the features are looked at.
        target: What a slide is labelled with.
        label: Column of the class, the number or the time.
        event: Column that is 1 where the event of a survival time was seen.
        slide: Column of the slide.
        case: Column of the patient.
        site: Column of the hospital or scanner.
        classes: Classes with their values, as for training.
        scan: Read all features, to find those that are not finite.
        out: Folder for slides.csv, a row a slide, and summary.json.
    """
    if root.is_file() and root.suffix in (".csv", ".data"):
        found = _of_table(root)
    else:
        options = LabelOptions(
            target=target,
            label=label,
            event=event,
            slide=slide,
            case=case,
            site=site,
            classes=classes,
        )
        found = _of_files(root, read_labels(labels, options) if labels else None, scan)
    _show(found)
    if out is not None:
        _write(found, out)


def _of_table(path: Path) -> Findings:
    table = read_mil_table(path)
    sizes = [len(bag) for bag in table.features]
    found = Findings(
        numbers={"bags": str(len(table.ids)), "width": str(table.features[0].shape[1])}
    )
    found.numbers |= _quantiles(sizes)
    found.labels = pd.crosstab(pd.Series([""] * len(sizes)), pd.Series(table.labels))
    found.slides = pd.DataFrame({"slide_id": table.ids, "patches": sizes, "problem": ""})
    found.duplicates = _alike(dict(zip(table.ids, map(_digest, table.features), strict=True)))
    return found


def _of_files(root: Path, labels: Labels | None, scan: bool) -> Findings:
    where = slides_in(root)
    problems: dict[str, str] = {}
    found = Findings()
    if labels is not None:
        frame = labels.frame
        problems |= labels.left_out
        problems |= dict.fromkeys(sorted(set(frame["slide"]) - where.keys()), "no features")
        unlabelled = sorted(where.keys() - set(frame["slide"]) - labels.left_out.keys())
        problems |= dict.fromkeys(unlabelled, "no label")
        found.numbers["slides with a label"] = str(len(frame))
        found.numbers["patients"] = str(frame["case"].nunique())
        found.labels = _label_table(labels)
    files, unusable = open_all(where)
    problems |= unusable
    usual = Counter(file.feature_dim for file in files.values()).most_common(1)
    digests = {}
    for name, file in console.progress(list(files.items()), "reading slides"):
        if file.feature_dim != usual[0][0]:
            problems[name] = f"features are {file.feature_dim} wide, those of others {usual[0][0]}"
            continue
        try:
            digests[name] = _digest(file.features(None if scan else slice(0, SAMPLE)))
        except DataError as err:
            problems[name] = str(err).removeprefix(f"{name}: ")
    found.numbers |= {"slides with features": str(len(files))}
    found.numbers |= {"width": ", ".join(str(width) for width, _ in usual)}
    found.numbers |= _quantiles([file.num_patches for file in files.values()])
    found.encoders = Counter(_about(file) for file in files.values())
    found.duplicates = _alike(digests)
    found.slides = _slide_table(files, problems)
    return found


def _label_table(labels: Labels) -> pd.DataFrame | None:
    frame = labels.frame
    if not labels.class_names:
        return None
    names = frame["label"].map(dict(enumerate(labels.class_names)))
    table = pd.crosstab(frame["site"], names)
    return table.reindex(columns=list(labels.class_names), fill_value=0)


def _slide_table(files: Mapping[str, FeatureFile], problems: Mapping[str, str]) -> pd.DataFrame:
    rows = []
    for name in sorted(files.keys() | problems.keys()):
        file = files.get(name)
        about = ("", "", "") if file is None else (file.num_patches, file.feature_dim, file.layout)
        rows.append((name, *about, problems.get(name, "")))
    return pd.DataFrame(rows, columns=["slide_id", "patches", "width", "layout", "problem"])


def _quantiles(sizes: list[int]) -> dict[str, str]:
    if not sizes:
        return {}
    values = np.quantile(sizes, list(QUANTILES.values()))
    text = ", ".join(f"{name} {value:,.0f}" for name, value in zip(QUANTILES, values, strict=True))
    return {"patches of a bag": text, "patches in all": f"{sum(sizes):,}"}


def _about(file: FeatureFile) -> str:
    known = {name: file.metadata[name] for name in ABOUT if name in file.metadata}
    size = {} if file.patch_size_level0 is None else {"patch_size_level0": file.patch_size_level0}
    words = [f"{name} {value}" for name, value in (known | size).items()]
    return ", ".join([file.layout, *words])


def _digest(features: np.ndarray) -> str:
    head = np.ascontiguousarray(features[:SAMPLE])
    return hashlib.sha256(repr(features.shape[1:]).encode() + head.tobytes()).hexdigest()


def _alike(digests: Mapping[str, str]) -> list[list[str]]:
    names: dict[str, list[str]] = {}
    for name, digest in digests.items():
        names.setdefault(digest, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _show(found: Findings) -> None:
    console.table("Data", ("what", "value"), list(found.numbers.items()))
    if found.labels is not None:
        header = ["site", *map(str, found.labels.columns)]
        rows = [(site or "all", *counts) for site, counts in _rows(found.labels)]
        console.table("Slides by label", header, rows)
        _warn_of_confounding(found.labels)
    if found.encoders:
        console.table("Features", ("made by", "slides"), found.encoders.most_common())
    problems = found.problems
    if len(problems):
        counts = Counter(problems["problem"])
        rows = [(what, n, _names(problems, what)) for what, n in counts.most_common()]
        console.table("Slides that cannot be used", ("problem", "slides", "as"), rows)
    if found.duplicates:
        alike = [(", ".join(group[:SHOWN]),) for group in found.duplicates[:SHOWN]]
        console.table("The same features under several names", ("slides",), alike)


def _rows(table: pd.DataFrame) -> list[tuple[str, list[int]]]:
    return [
        (str(site), [int(n) for n in row])
        for site, row in zip(table.index, table.to_numpy(), strict=True)
    ]


def _names(problems: pd.DataFrame, what: str) -> str:
    return ", ".join(problems["slide_id"][problems["problem"] == what].iloc[:3])


def _warn_of_confounding(table: pd.DataFrame) -> None:
    alone = [str(site) for site, counts in _rows(table) if sum(n > 0 for n in counts) == 1]
    if len(table) > 1 and alone:
        console.say(
            f"note: all slides of the site {alone[0]} have one label; a network may learn the site "
            "instead of the disease"
        )


def _write(found: Findings, out: Path) -> None:
    replace(out / "slides.csv", lambda path: found.slides.to_csv(path, index=False))
    labels: Any = None if found.labels is None else found.labels.to_dict("index")
    content = {
        "format": 1,
        "numbers": found.numbers,
        "labels_by_site": labels,
        "features": dict(found.encoders),
        "duplicates": found.duplicates,
        "unusable": len(found.problems),
    }
    replace_json(out / "summary.json", content)
    console.result(f"written: {out / 'slides.csv'} and summary.json")
