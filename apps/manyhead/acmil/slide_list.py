"""The slides of a folder, a single file, or a table of slides with what is known of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from manyhead.acmil.slides.opening import SUFFIXES, plausible
from manyhead_core.errors import ConfigError, DataError

COLUMNS = ("slide_id", "path", "mpp", "preset")


@dataclass(frozen=True)
class SlideEntry:
    """A slide to work on.

    Args:
        id: Its name; the file without its last suffix unless a table says otherwise.
        path: Where it lies.
        mpp: µm per level-0 pixel instead of what the file says, or None.
        preset: Name of its segmentation preset, or None.
    """

    id: str
    path: Path
    mpp: float | None = None
    preset: str | None = None


def list_slides(source: Path, root: Path | None = None) -> dict[str, SlideEntry]:
    """Slides by id, in the order of the table or of their names.

    Args:
        source: Folder, which is searched with its sub-folders; one slide; or a CSV file with the
            column slide_id or path, and optionally mpp and preset.
        root: Folder that slides of a table lie in; None is the folder of the table.

    Raises:
        DataError: There is nothing, or two slides have the same id.
    """
    if source.is_dir():
        entries = [SlideEntry(path.stem, path) for path in slide_files(source)]
        if not entries:
            raise DataError(f"slides: {source} holds no slides; known are {' '.join(SUFFIXES)}")
    elif source.suffix.lower() == ".csv":
        entries = _of_table(source, root)
    elif source.exists():
        entries = [SlideEntry(source.stem, source)]
    else:
        raise DataError(f"slides: {source} does not exist; pass a folder, a slide or a CSV file")
    found: dict[str, SlideEntry] = {}
    for entry in entries:
        if entry.id in found:
            raise DataError(
                f"slides: {found[entry.id].path.name} and {entry.path.name} are both called "
                f"{entry.id}; give them names in the column slide_id of a CSV file"
            )
        found[entry.id] = entry
    return found


def slide_files(folder: Path) -> list[Path]:
    """Slides in a folder and its sub-folders, by name; those of a slide's own folder are not.

    An MRXS slide has a folder of its name beside it, and a DICOM slide is a folder of files.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    owned = {path.with_suffix("") for path in files if path.suffix.lower() in (".mrxs", ".vms")}
    found: list[Path] = []
    instances: set[Path] = set()
    for path in files:
        if owned.intersection(path.parents):
            continue
        if path.suffix.lower() == ".dcm":
            # Any file of the folder opens the whole slide.
            if path.parent in instances:
                continue
            instances.add(path.parent)
        found.append(path)
    return found


def _of_table(table: Path, root: Path | None) -> list[SlideEntry]:
    if not table.is_file():
        raise DataError(f"slides: no file {table}")
    try:
        frame = pd.read_csv(table, dtype=str, encoding="utf-8-sig", skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as err:
        raise DataError(f"slides: {table.name} is no CSV file ({err})") from err
    if not {"slide_id", "path"} & set(frame.columns):
        raise DataError(
            f"slides: {table.name} has the columns {', '.join(map(str, frame.columns[:6]))}; "
            "slide_id or path is needed"
        )
    if frame.empty:
        raise DataError(f"slides: {table.name} has no rows")
    folder = root or table.parent
    needs_files = "path" not in frame.columns
    by_name = _by_name(folder) if needs_files else {}
    rows = enumerate(frame.reindex(columns=list(COLUMNS)).itertuples(index=False), start=2)
    return [_entry(table, line, row, folder, by_name) for line, row in rows]


def _by_name(folder: Path) -> dict[str, Path]:
    """Slides by id and by file name; a table may say either."""
    files = slide_files(folder)
    return {path.name: path for path in files} | {path.stem: path for path in files}


def _entry(
    table: Path, line: int, row: object, folder: Path, by_name: dict[str, Path]
) -> SlideEntry:
    slide_id, path, mpp, preset = (_text(getattr(row, name)) for name in COLUMNS)
    where = f"slides: line {line} of {table.name}"
    if path is None:
        if slide_id is None:
            raise DataError(f"{where} has neither slide_id nor path")
        # A slide that is not there is a failure of its own, not of the list.
        found = by_name.get(slide_id, folder / slide_id)
        return SlideEntry(
            found.stem if slide_id == found.name else slide_id, found, _mpp(mpp, where), preset
        )
    file = folder / path
    name = slide_id or file.stem
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise DataError(f"{where}: slide_id {name!r} cannot be the name of a file")
    return SlideEntry(name, file, _mpp(mpp, where), preset)


def _text(value: object) -> str | None:
    text = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
    return text.strip() or None


def _mpp(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    try:
        return plausible(float(text))
    except (ValueError, ConfigError) as err:
        raise DataError(f"{where}: mpp {text!r} is no number of µm per pixel, as 0.25") from err
