"""BIDS-iEEG and BIDS-EEG: recordings, their channel tables and their events."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from manyhead.mvpformer.readers.annotations import Found, from_events, read_table
from manyhead.mvpformer.readers.channels import Channel, kind_of
from manyhead.mvpformer.readers.edf import open_edf
from manyhead.mvpformer.readers.edf_header import read_header
from manyhead.mvpformer.readers.mne_reader import LOADERS, names_and_rate, open_raw
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.recording import Recording
from manyhead_core.errors import DataError

FOLDERS = ("ieeg", "eeg")
# What a data set keeps beside its recordings, not as recordings.
PASSED_OVER = ("derivatives", "sourcedata", "code", "stimuli")
# Types of the standard; what cannot be read is found and fails when it is opened, by name.
SUFFIXES = (*LOADERS, ".nwb", ".mefd")
ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")
SITES = ("site", "center", "centre", "institution", "hospital")


def is_bids(root: Path) -> bool:
    """Whether a folder is a BIDS data set or one subject of it."""
    return (
        (root / "dataset_description.json").is_file()
        or any(path.is_dir() for path in root.glob("sub-*"))
        or (_subject_of(root) is not None and any(_recordings(root)))
    )


def find_bids(root: Path) -> list[Source]:
    """Recordings of a data set, or of a subject or session; derivatives are passed over.

    Args:
        root: Folder of the data set, or a folder or file below one of its subjects.
    """
    single = _subject_of(root)
    home = single.parent if single else root
    subjects = [single] if single else sorted(path for path in root.glob("sub-*") if path.is_dir())
    sites = _sites(home / "participants.tsv")
    found = []
    for subject in subjects:
        for path in _recordings(subject):
            if single and not path.is_relative_to(root):
                continue
            stem = path.name.removesuffix(path.suffix)
            extra = {"root": str(home), "site": sites.get(subject.name, "")}
            id = stem.removesuffix(f"_{path.parent.name}")
            found.append(Source(id, subject.name, path, "bids", extra))
    return found


def _subject_of(path: Path) -> Path | None:
    """Folder of the subject that a path lies in, or None."""
    folders = (path, *path.parents)
    return next(
        (folder for folder in folders if folder.name.startswith("sub-") and folder.is_dir()), None
    )


def _recordings(subject: Path) -> Iterator[Path]:
    for path in sorted(subject.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.parent.name not in FOLDERS:
            continue
        if any(part in PASSED_OVER for part in path.relative_to(subject).parts):
            continue
        # Later pieces of a split FIF file are read through the first.
        if path.stem.endswith(f"_{path.parent.name}") and not re.search(
            r"_split-0*[2-9]", path.name
        ):
            yield path


def _sites(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    table = read_table(path, "participants.tsv")
    column = next((name for name in SITES if name in table), None)
    if column is None or "participant_id" not in table:
        return {}
    sites = (site if site.lower() != "n/a" else "" for site in table[column])
    return dict(zip(table["participant_id"], sites, strict=True))


def open_bids(source: Source, options: ReadOptions) -> Recording:
    """A recording of a BIDS data set.

    Args:
        source: What was found.
        options: How to read it.

    Raises:
        DataError: A file or table is damaged, or of a format that is not read.
    """
    events, channels = sidecar(source, "events"), sidecar(source, "channels")
    is_edf = source.path.suffix.lower() in (".edf", ".bdf")
    if source.path.suffix.lower() not in LOADERS:
        return open_raw(source, options)
    if is_edf:
        header = read_header(source.path, source.id)
        names = [header.labels[signal] for signal in header.signals]
    else:
        names, _ = names_and_rate(source.path)
    table = _table(channels, source.id, names, options) if channels else None

    def lookup(duration: float) -> Found:
        if events is None:
            return Found(None, ("no events.tsv: no seizures known",))
        return from_events(events, source.id, duration, options.pattern)

    if is_edf:
        return open_edf(source, options, table, lookup)
    return open_raw(source, options, table, lookup)


def sidecar(source: Source, kind: str) -> Path | None:
    """Table that belongs to a recording, beside it or inherited from a folder above.

    Args:
        source: Recording.
        kind: `events` or `channels`.
    """
    own = dict(ENTITY.findall(source.path.name))
    root = Path(source.extra["root"])
    for folder in (source.path.parent, *source.path.parent.parents):
        fitting = []
        for path in (*folder.glob(f"*_{kind}.tsv"), *folder.glob(f"{kind}.tsv")):
            entities = dict(ENTITY.findall(path.name))
            # A table of all spaces or of another session is not of this recording.
            if entities.items() <= own.items():
                fitting.append((len(entities), path))
        if fitting:
            return max(fitting)[1]
        if folder == root:
            return None
    return None


def _table(path: Path, id: str, names: Sequence[str], options: ReadOptions) -> list[Channel]:
    """Channels of the file in its order, as the table describes them."""
    table = read_table(path, id)
    if "name" not in table:
        raise DataError(f"{id}: {path.name} has no column name; correct the table")
    rows: dict[str, list[dict[str, str]]] = {}
    for row in table.to_dict("records"):
        cells = {str(column): str(cell) for column, cell in row.items()}
        rows.setdefault(cells["name"].strip().lower(), []).append(cells)
    pick = partial(_described, rows=rows, options=options)
    return [pick(name) for name in names]


def _described(name: str, rows: dict[str, list[dict[str, str]]], options: ReadOptions) -> Channel:
    own = rows.get(name.strip().lower())
    if not own:
        return Channel(name=name, kind=kind_of(name), why="not in channels.tsv")
    # Of rows with one name each describes one channel, in order.
    row = own.pop(0) if len(own) > 1 else own[0]
    why = ""
    if row.get("status", "").lower() == "bad" and not options.keep_bad:
        said = row.get("status_description", "")
        why = "status bad" + (f": {said}" if said.lower() not in ("", "n/a") else "")
    kind = row.get("type", "").upper()
    return Channel(
        name=name, kind="" if kind == "N/A" else kind, unit=row.get("units", ""), why=why
    )
