"""Single-channel segments of the Mayo and St Anne's set: MATLAB files and `segments.csv`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from manyhead.mvpformer.readers import matlab
from manyhead.mvpformer.readers.annotations import read_table
from manyhead.mvpformer.readers.files import ArrayRecording
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import microvolts
from manyhead.mvpformer.recording import Interval, Recording, RecordingInfo
from manyhead_core.errors import DataError

TABLE, RATE = "segments.csv", 5000.0
# The files are read by header: columns by what they are, under the names they go by.
COLUMNS = {
    "id": ("segment_id", "id", "segment"),
    "category": ("category_name", "category"),
    "patient": ("patient_id", "patient", "subject"),
    "site": ("institution", "dataset", "site"),
    "channel": ("channel", "channel_name"),
    "electrode": ("electrode_type", "electrode"),
}
NEEDED = ("id", "category", "patient")
CATEGORIES = {"pathological": "1", "physiological": "0"}


def find_segments(root: Path) -> list[Source]:
    """Pathological and physiological segments; artefacts and power line belong to neither class.

    Args:
        root: Folder of `segments.csv` and the MATLAB files.

    Raises:
        DataError: The table is missing, or a column of it.
    """
    table = read_table(root / TABLE, "data.root")
    lower = {str(name).strip().lower(): name for name in table.columns}
    columns = {
        role: next((lower[name] for name in names if name in lower), None)
        for role, names in COLUMNS.items()
    }
    for role in NEEDED:
        if columns[role] is None:
            raise DataError(
                f"data.root: {TABLE} has the columns {', '.join(lower)}; missing is "
                f"{' or '.join(COLUMNS[role])}"
            )
    named = table.rename(columns={name: role for role, name in columns.items() if name})
    return [source for source in _sources(root, named) if source is not None]


def _sources(root: Path, table: pd.DataFrame) -> list[Source | None]:
    found: list[Source | None] = []
    for row in table.to_dict("records"):
        cells = {str(role): str(cell) for role, cell in row.items()}
        label = next(
            (
                label
                for name, label in CATEGORIES.items()
                if cells["category"].lower().startswith(name)
            ),
            None,
        )
        if label is None:
            continue
        site = cells.get("site", "")
        extra = {name: cells.get(name, "") for name in ("channel", "electrode")}
        patient = f"{site}-{cells['patient']}" if site else cells["patient"]
        path = root / f"{cells['id'].removesuffix('.mat')}.mat"
        extra |= {"label": label, "site": site}
        found.append(Source(path.stem, patient, path, "segments_mat", extra))
    return found


def open_segment(source: Source, options: ReadOptions) -> Recording:
    """A segment: pathological from begin to end, or not at all.

    Args:
        source: What was found.
        options: How to read it.

    Raises:
        DataError: The file is missing or holds no signal.
    """
    held = matlab.load(source.path, source.id)
    name = next((name for name in ("data", "signal", "x") if name in held), None)
    if name is None:
        raise DataError(
            f"{source.id}: {source.path.name} holds {', '.join(list(held)[:5]) or 'nothing'}, "
            "no variable data"
        )
    signal = np.asarray(held[name], np.float32).reshape(1, -1)
    fs = next((float(np.ravel(held[key])[0]) for key in ("fs", "sfreq") if key in held), RATE)
    kind = source.extra["electrode"].lower()
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=(source.extra["channel"] or "1",),
        kinds=("SEEG" if kind.startswith(("d", "s")) and "strip" not in kind else "ECOG",)
        if kind
        else (),
        rate=fs,
        samples=signal.shape[1],
        seizures=(Interval(0.0, signal.shape[1] / fs),) if source.extra["label"] == "1" else (),
        named=bool(source.extra["channel"]),
        site=source.extra["site"],
    )
    factor = (microvolts(options.units) or 1.0) if options.units != "auto" else 1.0
    return ArrayRecording(info, signal * np.float32(factor))
