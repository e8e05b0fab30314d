"""Judge the beginning of one file.

A file is never read to its end (hashes of small files apart), and no package of an extra is needed.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from manyhead_core.data.cards import Checks, FileRule
from manyhead_core.data.magic import is_kind, kind_of

TEXT = (".csv", ".dat", ".data", ".inter", ".json", ".tsv", ".txt")
LOOKED_AT = 20
HASHED_BYTES = 500_000_000
LONGEST_LINE = 1_000_000
POINTER = b"version https://git-lfs"


def is_text(rule: FileRule) -> bool:
    """Whether the files of a rule are read as text."""
    return rule.checks.magic is None and PurePosixPath(rule.path).suffix.rstrip("}").lower() in TEXT


def wrong(rule: FileRule, path: Path) -> str | None:
    """Why the content of a file is not what the card says, or None when it is.

    Args:
        rule: Rule of the card that the file's name matches.
        path: The file.
    """
    checks = rule.checks
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
        if _is_pointer(path):
            return "is a Git LFS pointer; fetch the content with git lfs pull"
        reason = _wrong_bytes(checks, path)
        if reason is None and is_text(rule):
            reason = _wrong_text(checks, path)
    except FileNotFoundError:
        return "is a link to nothing; fetch the content (git annex get, datalad get)"
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error):
        return "is damaged or cut off"
    except OSError as err:
        return f"cannot be read: {err.strerror or err}"
    return reason


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _wrong_bytes(checks: Checks, path: Path) -> str | None:
    if checks.magic is not None and not is_kind(path, checks.magic):
        kind = kind_of(path)
        return f"is no {checks.magic} file" + (f" but {kind}" if kind else "")
    if checks.arrays:
        with zipfile.ZipFile(path) as archive:
            held = {PurePosixPath(name).stem for name in archive.namelist()}
        lacking = [name for name in checks.arrays if name not in held]
        if lacking:
            return f"lacks the arrays {', '.join(lacking)}; holds {', '.join(sorted(held)[:8])}"
    if checks.sha256 is not None and path.stat().st_size <= HASHED_BYTES:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checks.sha256.lower():
                return "differs from the published file (sha256)"
    return None


def _wrong_text(checks: Checks, path: Path) -> str | None:
    with _open(path) as file:
        lines = [_line(file) for _ in range(LOOKED_AT + bool(checks.header))]
        rows = [line for line in lines if line]
        if not rows:
            return "holds no line of text"
        if "\x00" in rows[0]:
            return "is no text file"
        body = rows[1:] if checks.header else rows
        reason = _wrong_header(checks, rows[0]) or _wrong_lines(checks, body)
        if reason is None and len(body) < checks.min_rows:
            rest = (line for line in iter(lambda: _line(file), None) if line)
            number = len(body) + sum(1 for _ in islice(rest, checks.min_rows - len(body)))
            if number < checks.min_rows:
                reason = f"{number} rows; {checks.min_rows} or more belong here"
    return reason


def _wrong_header(checks: Checks, line: str) -> str | None:
    found = [name.strip().strip('"') for name in line.split(checks.separator or ",")]
    lacking = [name for name in checks.header if name not in found]
    if not lacking:
        return None
    return f"the first line lacks {', '.join(lacking[:5])}; it starts with {_shown(line)}"


def _wrong_lines(checks: Checks, lines: Sequence[str]) -> str | None:
    for line in lines:
        if checks.columns is not None and checks.separator is not None:
            number = line.count(checks.separator) + 1
            # A quoted field may hold the separator; only then is a greater number no fault.
            if number < checks.columns or (number > checks.columns and '"' not in line):
                name = {"\t": "tab"}.get(checks.separator, f"{checks.separator!r}")
                return f"{number} columns between {name}, not {checks.columns}: {_shown(line)}"
        if checks.line is not None and not re.match(checks.line, line):
            return f"a line looks different: {_shown(line)}"
    return None


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _line(file: IO[bytes]) -> str | None:
    """The next line without its end, or None at the end of the file."""
    raw = file.readline(LONGEST_LINE)
    return raw.decode("utf-8-sig", errors="replace").rstrip("\r\n") if raw else None


def _shown(line: str) -> str:
    short = line.replace("\t", " ").strip()
    return short if len(short) <= 40 else f"{short[:40]}..."
