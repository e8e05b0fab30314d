"""Criteo Display Advertising (Kaggle 2014): 13 integers and 26 hashed categories per row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources.files import find_file
from manyhead.autoint.sources.text import TextSource

NUMBERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
HEADER = ("label", *NUMBERS, *CATEGORIES)


def schema(scaling: str = "standard") -> Schema:
    """The 39 fields; the published preprocessing does not scale the transformed integers."""
    numbers = [
        Field(name, "number", transform="log_square", scaling=scaling)  # type: ignore[arg-type]
        for name in NUMBERS
    ]
    categories = [Field(name, "category") for name in CATEGORIES]
    return Schema("label", (*numbers, *categories), header=HEADER)


def open_criteo(root: Path, given: Schema | None, mode: str) -> TextSource:
    """Open train.txt, a sample of it, or the folder that holds one of them."""
    path = find_file(root, "train*.txt", "Criteo training")
    if given is not None:
        return TextSource("criteo", path, replace(given, header=HEADER), "\t")
    return TextSource("criteo", path, schema("none" if mode == "reference" else "standard"), "\t")
