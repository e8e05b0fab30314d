"""What a user says about the files: units, where the seizures are written down, what is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manyhead_core.errors import ConfigError

# Interictal, pre-ictal and post-ictal remarks are not seizures.
SEIZURE_PATTERN = r"(?i)(?<![a-z])(?<!pre[- ])(?<!post[- ])(?<!inter[- ])(sz|seiz|ictal)"
UNITS = ("auto", "V", "mV", "uV", "nV")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read.

    Args:
        units: Unit of the stored numbers. `auto` believes the file, takes µV where it says nothing,
            and refuses amplitudes that no brain makes.
        seizures: Table of seizure times in place of what the files say: CSV or TSV with `onset`
            and `duration` or `offset` in s, and `recording` where it speaks of several (one
            without a row has no seizure); or a folder with such a table per recording, named by
            its id.
        pattern: Regular expression that finds seizures in free text: EDF+ annotations and the
            column `trial_type`.
        keep_bad: Keep channels that `channels.tsv` or the file calls bad.
        zeros: What to do with more than 60 s in which every channel is exactly zero, which is how
            missing parts of a virtual HDF5 file read: `refuse`, or `keep` them as gaps.
    """

    units: Literal["auto", "V", "mV", "uV", "nV"] = "auto"
    seizures: Path | None = None
    pattern: str = SEIZURE_PATTERN
    keep_bad: bool = False
    zeros: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise ConfigError(f"units: {self.units!r} is none of {', '.join(UNITS)}")
        if self.zeros not in ("refuse", "keep"):
            raise ConfigError(f"zeros: {self.zeros!r} is neither refuse nor keep")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"pattern: {self.pattern!r} is no regular expression: {error}"
            ) from error
