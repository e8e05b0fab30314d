"""Compare a folder with a card: names and counts of all files, the beginnings of some."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from manyhead_core.data.cards import Card, FileRule
from manyhead_core.data.content import is_text, wrong
from manyhead_core.errors import DataError

# Of a group of files so many are opened, evenly spread; all are counted.
OPENED = 12


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
        reason = wrong(rule, root / name)
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
