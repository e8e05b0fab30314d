"""Find recordings below a folder, whatever their layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from manyhead.mvpformer.readers.bids import PASSED_OVER, find_bids, is_bids
from manyhead.mvpformer.readers.bonn import find_bonn, is_bonn
from manyhead.mvpformer.readers.segments_mat import TABLE, find_segments
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.swec import PART, TOTAL, find_swec
from manyhead.mvpformer.readers.swec_mat import HOUR, PATIENT, SHORT, find_swec_mat
from manyhead_core.errors import ConfigError, DataError

# Formats of single files by what they are called.
SUFFIXES = {
    ".edf": "edf",
    ".bdf": "edf",
    ".vhdr": "mne",
    ".fif": "mne",
    ".set": "mne",
    ".npz": "arrays",
    ".mat": "arrays",
}
LAYOUTS: dict[str, Callable[[Path], list[Source]]] = {
    "bids": find_bids,
    "swec": find_swec,
    "swec_mat": find_swec_mat,
    "segments_mat": find_segments,
    "bonn": find_bonn,
}
FORMATS = ("auto", *LAYOUTS, "edf", "mne", "arrays")
LOOKED_FOR = (
    "a BIDS data set (sub-*), IDnn/IDnn_total.h5, IDn/IDn_1h.mat, segments.csv, Bonn segments "
    "(Z001.txt), or " + ", ".join(SUFFIXES) + " files"
)


def find_recordings(
    root: Path, format: str = "auto", *, patient: str = "", option: str = "data.root"
) -> list[Source]:
    """Recordings of a data set, a folder of files or a single file, in order of their ids.

    The patient of a single file is the folder it lies in below `root`, or the part of its name
    before the first `_`; BIDS and the other layouts say it themselves.

    Args:
        root: Folder or file.
        format: Layout, or `auto` to find it.
        patient: Regular expression that finds the patient in the path of a file below `root`; its
            first group counts, or all of it.
        option: What the user calls `root`, for messages.

    Raises:
        DataError: Nothing was found.
        ConfigError: There is no such format, or `patient` fits a file not at all.
    """
    # Absolute, since `.` does not say that it is a subject.
    root = Path(root).absolute()
    if format not in FORMATS:
        raise ConfigError(f"format: {format!r} is none of {', '.join(FORMATS)}")
    if not root.exists():
        raise DataError(f"{option}: {root} does not exist; pass a folder or file that does")
    chosen = detect(root) if format == "auto" else format
    if chosen in LAYOUTS:
        found = LAYOUTS[chosen](root)
    else:
        found = _files(root, [chosen] if format != "auto" else list(SUFFIXES.values()))
    if not found:
        looked = LOOKED_FOR if format == "auto" else f"recordings of the format {format}"
        raise DataError(f"{option}: {root} holds no recordings; looked for {looked}")
    named = _with_patients(found, root, patient) if patient else found
    return sorted(_unique(named, root), key=lambda source: source.id)


def detect(root: Path) -> str:
    """Layout of a folder or file: a row of `LAYOUTS`, or `files`."""
    if root.is_file():
        if is_bonn(root):
            return "bonn"
        return "file"
    if is_bids(root):
        return "bids"
    names = [
        (path.name, path.parent.name) for pattern in ("*", "*/*") for path in root.glob(pattern)
    ]
    if any(TOTAL.match(name) or PART.match(name) for name, _ in names):
        return "swec"
    if any(HOUR.match(name) or (SHORT.match(name) and PATIENT.match(at)) for name, at in names):
        return "swec_mat"
    if (root / TABLE).is_file():
        return "segments_mat"
    return "bonn" if is_bonn(root) else "files"


def _files(root: Path, formats: Sequence[str]) -> list[Source]:
    if root.is_file():
        return _single(root)
    found = []
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root).parts[:-1]
        if any(part in PASSED_OVER or part.startswith(".") for part in inner):
            continue
        if path.name == "dataset_description.json":
            raise DataError(
                f"data.root: {root} holds a BIDS data set in {path.parent.name} and perhaps "
                "more; pass that folder, since its tables say what the files mean"
            )
        if path.is_file() and SUFFIXES.get(path.suffix.lower()) in formats:
            own = inner[0] if inner else path.stem.split("_")[0]
            found.append(Source(path.stem, own, path, SUFFIXES[path.suffix.lower()]))
    return found


def _single(path: Path) -> list[Source]:
    """One file; in a BIDS data set or a release it keeps its tables and its number."""
    total = TOTAL.match(path.name) or PART.match(path.name)
    if total:
        return [Source(total[1], total[1], path, "swec")]
    if any(folder.name.startswith("sub-") for folder in path.parents):
        return find_bids(path)
    format = SUFFIXES.get(path.suffix.lower())
    return [Source(path.stem, path.stem.split("_")[0], path, format)] if format else []


def _with_patients(found: Sequence[Source], root: Path, patient: str) -> list[Source]:
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise ConfigError(f"patient: {patient!r} is no regular expression: {error}") from error
    named = []
    for source in found:
        place = _place(source, root)
        hit = pattern.search(place)
        if not hit:
            raise ConfigError(f"patient: {patient!r} finds nothing in {place}; widen it")
        named.append(replace(source, patient=hit[1] if pattern.groups else hit[0]))
    return named


def _unique(found: Sequence[Source], root: Path) -> list[Source]:
    """Sources of one name get the folders they lie in as part of it, and the suffix if need be."""
    for rename in (_with_folders, _with_suffix):
        counts = Counter(source.id for source in found)
        found = [rename(source, root) if counts[source.id] > 1 else source for source in found]
    return list(found)


def _with_folders(source: Source, root: Path) -> Source:
    place = Path(_place(source, root)).with_suffix("")
    return replace(source, id="__".join(place.parts)) if "row" not in source.extra else source


def _with_suffix(source: Source, root: Path) -> Source:  # noqa: ARG001
    return replace(source, id=f"{source.id}{source.path.suffix.replace('.', '_')}")


def _place(source: Source, root: Path) -> str:
    return source.path.relative_to(root).as_posix() if root.is_dir() else source.path.name
