"""Folders of the SWEC release that hold the same patient."""

from __future__ import annotations

import re

# The folders ID01 to ID18 repeat these folders, in this order.
REPEATED = (20, 21, 22, 24, 25, 27, 28, 29, 30, 31, 32, 34, 35, 36, 37, 38, 39, 40)
SAME = {f"ID{first:02d}": f"ID{again:02d}" for first, again in enumerate(REPEATED, start=1)}
# The 50 patients are the folders from this one on.
FIRST_PATIENT = 19
# The older sets of the same centre count their patients in another way.
FORMATS = ("swec",)
WHY = (
    "the folders ID01 to ID18 of the SWEC release hold recordings of patients that are in the "
    "folders ID20 to ID40 again"
)


def canonical_patient(patient: str, format: str = "swec") -> str:
    """The one name of a patient whose recordings lie in two folders.

    ID01 becomes ID20, whose recordings it repeats; a name outside the SWEC release stays.

    Args:
        patient: Name of the folder.
        format: Of the data set; other data sets may use such names for other people.
    """
    if format not in FORMATS:
        return patient
    found = re.fullmatch(r"ID0*(\d+)", patient, re.IGNORECASE)
    name = f"ID{int(found[1]):02d}" if found else patient
    return SAME.get(name, name)


def official_part(patient: str) -> str:
    """Part of a SWEC folder in the published division: the first 18 train, the others test.

    Args:
        patient: Name of the folder.
    """
    found = re.fullmatch(r"ID0*(\d+)", patient, re.IGNORECASE)
    if found is None:
        return ""
    return "train" if int(found[1]) < FIRST_PATIENT else "test"
