"""A recording that was found and not opened yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Where a recording lies and whose it is.

    Args:
        id: Name that is unique within the data set.
        patient: Whose recording it is.
        path: File, or folder for recordings of several files.
        format: Row of `FORMATS`.
        extra: What the reader of the format wants to know besides.
    """

    id: str
    patient: str
    path: Path
    format: str
    extra: Mapping[str, str] = field(default_factory=dict)
