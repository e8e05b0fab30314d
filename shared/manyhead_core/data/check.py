"""Compare a folder with a card: names and counts of all files, the beginnings of some.

A file is never read to its end (hashes of small files apart), and no package of an extra is needed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from manyhead_core.data.cards import Card, Checks, FileRule
from manyhead_core.data.magic import is_kind, kind_of
from manyhead_core.errors import DataError

TEXT = (".csv", ".dat", ".data", ".inter", ".json", ".tsv", ".txt")
# Of a group of files so many are opened, evenly spread; all are counted.
OPENED = 12
LOOKED_AT = 20
HASHED_BYTES = 500_000_000
LONGEST_LINE = 1_000_000
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Finding:
    """What the check has to say about one pattern of the card, or about files beside it.

    Args:
        file: Pattern, file or folder, relative to the folder checked.
        state: `ok`, `missing`, `wrong`, `absent` (not there, not required) or `surplus`.
        remark: Number of files, or the reason.
    """

    file: str
    state: str
    remark: str

    @property
    def bad(self) -> bool:
        """Whether the data set cannot be used as it is."""
        return self.state in ("missing", "wrong")


def check(card: Card, root: Path) -> list[Finding]:
    """Compare a folder with a card.

    Args:
        card: Card of the data set.
        root: Folder of the user.

    Returns:
        One finding per pattern in the order of the card, then the surplus files by folder.

    Raises:
        DataError: The folder does not exist or cannot be read.
    """
    if root.is_file():
        raise DataError(f"{root}: is a file; pass the folder that holds it")
    if not root.is_dir():
        raise DataError(f"{root}: folder does not exist")
    names = sorted(_walk(root))
    matches = {
        rule: [name for name in names if matcher(rule).fullmatch(name)] for rule in card.files
    }
    rules = [rule for rule in card.files if rule.layout in ("", layout(card, matches))]
    found = [_finding(rule, matches[rule], root, names) for rule in rules]
    # Files of another arrangement are no surplus: they belong to the same data set.
    used = {name for group in matches.values() for name in group}
    return found + _surplus([name for name in names if name not in used])


def layout(card: Card, matches: dict[FileRule, list[str]]) -> str:
    """The arrangement of a data set that most of the folder's files speak for."""
    names = dict.fromkeys(rule.layout for rule in card.files if rule.layout)
    return max(names, key=lambda name: _share(name, matches), default="")


def _share(name: str, matches: dict[FileRule, list[str]]) -> tuple[float, int]:
    own = [rule for rule in matches if rule.layout == name]
    needed = [bool(matches[rule]) for rule in own if rule.required]
    share = sum(needed) / len(needed) if needed else 0.0
    return share, sum(len(matches[rule]) for rule in own)


def matcher(rule: FileRule) -> re.Pattern[str]:
    """The pattern of a rule as a regular expression; text files may be packed with gzip."""
    tokens = {
        "**/": "(?:.*/)?",
        "**": ".*",
        "*": "[^/]*",
        "?": "[^/]",
        "{": "(?:",
        "}": ")",
        ",": "|",
    }
    parts = re.split(r"(\*\*/|\*\*|[*?{},]|\[[^]]+\])", rule.path)
    body = "".join(
        tokens.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts
    )
    packed = r"(?:\.gz)?" if is_text(rule) else ""
    return re.compile(body + packed, re.IGNORECASE)


def is_text(rule: FileRule) -> bool:
    """Whether the files of a rule are read as text."""
    return rule.checks.magic is None and PurePosixPath(rule.path).suffix.rstrip("}").lower() in TEXT


def _walk(root: Path) -> Iterator[str]:
    """Every file below `root` as a relative path; links are followed, circles are not."""
    seen: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(Path(place, name)) not in seen
        ]
        relative = Path(place).relative_to(root)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))


def _finding(
    rule: FileRule, names: Sequence[str], root: Path, everything: Sequence[str]
) -> Finding:
    if not names:
        if not rule.required:
            return Finding(rule.path, "absent", f"optional: {rule.what}")
        return Finding(rule.path, "missing", rule.what + _elsewhere(rule, everything))
    fewest, most = (*rule.checks.count, None, None)[:2]
    if fewest is not None and len(names) < fewest:
        return Finding(rule.path, "wrong", f"{len(names)} files; {fewest} or more belong here")
    if most is not None and len(names) > most:
        return Finding(rule.path, "wrong", f"{len(names)} files; at most {most} belong here")
    for name in _spread(names):
        reason = _wrong(rule, root / name)
        if reason:
            return Finding(name, "wrong", reason)
    return Finding(rule.path, "ok", "" if len(names) == 1 else f"{len(names)} files")


def _elsewhere(rule: FileRule, names: Sequence[str]) -> str:
    """A hint when the file lies deeper: people pass the folder above."""
    inside = re.compile(rf"(?P<folder>.+)/(?:{matcher(rule).pattern})", re.IGNORECASE)
    found = next(filter(None, map(inside.fullmatch, names)), None)
    return f"; found below {found['folder']}: pass that folder" if found else ""


def _spread(names: Sequence[str]) -> list[str]:
    if len(names) <= OPENED:
        return list(names)
    return [names[i * (len(names) - 1) // (OPENED - 1)] for i in range(OPENED)]


def _surplus(names: Sequence[str]) -> list[Finding]:
    tops = Counter(name.split("/")[0] if "/" in name else "" for name in names)
    loose = [Finding(name, "surplus", "not on the card") for name in names if "/" not in name]
    if len(loose) > 10:
        loose = [Finding("*", "surplus", f"{len(loose)} files are not on the card")]
    deep = [
        Finding(f"{top}/", "surplus", f"{number} file{'s' * (number > 1)} not on the card")
        for top, number in sorted(tops.items())
        if top
    ]
    return loose + deep


def _wrong(rule: FileRule, path: Path) -> str | None:
    """Why the content of a file is not what the card says, or None."""
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
    except OSError as err:
        return f"cannot be read: {err.strerror or err}"
    except (EOFError, zlib.error, zipfile.BadZipFile):
        return "is damaged or cut off"
    return reason


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _wrong_bytes(checks: Checks, path: Path) -> str | None:
    if checks.magic is not None and not is_kind(path, checks.magic):
        kind = kind_of(path)
        return f"is no {checks.magic} file" + (f" but {kind}" if kind else "")
    if checks.arrays:
        held = {PurePosixPath(name).stem for name in zipfile.ZipFile(path).namelist()}
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
            more = islice(
                (line for line in iter(lambda: _line(file), None) if line), checks.min_rows
            )
            number = len(body) + sum(1 for _ in more)
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
