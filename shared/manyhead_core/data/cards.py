"""Data cards: what a data set is, who gives it, on which terms, and which files it consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from manyhead_core.app import find
from manyhead_core.data.magic import KINDS
from manyhead_core.errors import DataError

DOMAINS = (
    "faces",
    "ieeg",
    "medical imaging",
    "pathology",
    "pose",
    "recommendation",
    "time series",
)
ACCESS = ("open", "registration", "application")
# A card may ask for so many lines at most: a check has to answer at once on a file of 40 GB.
MOST_ROWS = 10_000

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How one gets the data.

    Args:
        kind: `open`, `registration` (an account or a click) or `application` (somebody decides).
        url: Page of those who give the data.
        how: The steps, in one line.
    """

    kind: str
    url: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What the content of a file has to show; nothing here needs a package of an extra.

    Args:
        separator: Text between the columns of a text file.
        columns: Number of columns of a text file.
        header: Names that the first line has to hold.
        line: Regular expression that each of the first lines has to match, header left out.
        min_rows: Lines that the file has at least.
        magic: Kind of a binary file, one of those in `manyhead_core.data.magic`.
        arrays: Arrays that an npz file holds.
        count: Fewest and, as a second number, most files that match the pattern.
        sha256: Hash of the file, in hexadecimal.
    """

    separator: str | None = None
    columns: int | None = None
    header: tuple[str, ...] = ()
    line: str | None = None
    min_rows: int = 0
    magic: str | None = None
    arrays: tuple[str, ...] = ()
    count: tuple[int, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileRule:
    """One file, or one group of files, of a data set.

    Args:
        path: Pattern relative to the folder; `*` stops at a slash, `**/` does not, case is ignored.
        what: What it holds.
        required: False for a file that the apps can do without.
        layout: Name of the arrangement the file belongs to, where a set exists in several; one
            complete arrangement is enough. Empty: belongs to all.
        checks: What the content has to show.
    """

    path: str
    what: str
    required: bool = True
    layout: str = ""
    checks: Checks = field(default_factory=Checks)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One data set.

    Args:
        id: Name on the command line and of the file.
        title: Full name.
        domain: One of `DOMAINS`.
        apps: Apps that read it.
        licence: Terms as stated at the source; "see source" where they are not known.
        access: How to get it.
        citation: What to cite.
        files: Files in the folder.
        splits: The official split and where it comes from.
        group: Unit that must not be in two splits.
        notes: Known traps.
    """

    id: str
    title: str
    domain: str
    apps: tuple[str, ...]
    licence: str
    access: Access
    citation: str
    files: tuple[FileRule, ...]
    splits: str
    group: str
    notes: tuple[str, ...] = ()


def folder() -> Path:
    """Folder of the cards: the checkout's `data/cards`, else the one inside the installed wheel."""
    root = Path(__file__).resolve().parents[3]
    if (root / "pyproject.toml").is_file() and (root / "data" / "cards").is_dir():
        return root / "data" / "cards"
    return Path(str(resources.files("manyhead_core.data"))) / "cards"


def load(root: Path | None = None) -> dict[str, Card]:
    """All cards by id, in alphabetical order.

    Args:
        root: Folder of the YAML files; None takes those of the suite.

    Raises:
        DataError: A card is unreadable or breaks the schema.
    """
    return {path.stem: read(path) for path in sorted((root or folder()).glob("*.yaml"))}


def get(name: str) -> Card:
    """The card of one data set.

    Raises:
        UserError: There is no such card.
    """
    cards = load()
    return cards[find(name, cards, "data set")]


def read(path: Path) -> Card:
    """Read one card.

    Args:
        path: File named after the card's id.

    Raises:
        DataError: The file is no YAML or breaks the schema; names file, field and remedy.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise DataError(f"{path.name}: not readable as YAML: {' '.join(str(err).split())}") from err
    card = _card(content, path.name)
    if card.id != path.stem:
        raise DataError(f"{path.name}: id is {card.id!r}; name the file {card.id}.yaml")
    return card


def _card(content: Any, place: str) -> Card:
    values = _values(Card, content, place)
    _known(values["domain"], DOMAINS, f"{place}: domain")
    values["access"] = Access(**_values(Access, values["access"], f"{place}: access"))
    _known(values["access"].kind, ACCESS, f"{place}: access.kind")
    rules = values["files"]
    if not rules:
        raise DataError(f"{place}: files: is empty; name at least one file")
    values["files"] = tuple(_rule(rule, f"{place}: files[{i}]") for i, rule in enumerate(rules))
    return Card(**values)


def _rule(content: Any, place: str) -> FileRule:
    values = _values(FileRule, content, place)
    checks = Checks(**_values(Checks, values.get("checks", {}), f"{place}.checks"))
    place = f"{place}.checks"
    if checks.magic is not None:
        _known(checks.magic, KINDS, f"{place}.magic")
    if checks.columns is not None and checks.separator is None:
        raise DataError(f"{place}.columns: needs a separator beside it")
    if checks.min_rows > MOST_ROWS:
        raise DataError(f"{place}.min_rows: {checks.min_rows} is over {MOST_ROWS}; ask for less")
    if len(checks.count) > 2:
        raise DataError(f"{place}.count: give the fewest and, if known, the most files")
    return FileRule(**{**values, "checks": checks})


def _values(kind: type[Part], content: Any, place: str) -> dict[str, Any]:
    """The values of one part of a card, checked for names and types; lists become tuples."""
    if not isinstance(content, Mapping):
        raise DataError(f"{place}: is {_kind(content)}; write a mapping of names to values")
    known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for name in content:
        if name not in known:
            raise DataError(f"{place}: {name}: unknown; known: {', '.join(known)}")
    for name, entry in known.items():
        optional = entry.default is not MISSING or entry.default_factory is not MISSING
        if name not in content and not optional:
            raise DataError(f"{place}: {name}: is missing; every {kind.__name__} has one")
    return {name: _typed(known[name], value, f"{place}: {name}") for name, value in content.items()}


def _typed(entry: Field[Any], value: Any, place: str) -> Any:
    declared = str(entry.type)
    if declared.startswith("tuple"):
        if not isinstance(value, list):
            raise DataError(f"{place}: is {_kind(value)}; write a list")
        inner = {"tuple[str": str, "tuple[int": int}.get(declared.partition(",")[0])
        if inner is not None and not all(type(item) is inner for item in value):
            raise DataError(f"{place}: holds something else than {_kind(inner())}; quote texts")
        return tuple(value)
    wanted = {"str": str, "int": int, "bool": bool}.get(declared.partition(" ")[0])
    if wanted is not None and type(value) is not wanted:
        raise DataError(f"{place}: is {_kind(value)}; write {_kind(wanted())}")
    if wanted is str and not value.strip() and value != "\t":
        raise DataError(f"{place}: is empty; write a text, or leave the line out if optional")
    return value


def _kind(value: Any) -> str:
    names = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}
    return names.get(type(value), "empty" if value is None else "a mapping")


def _known(value: str, known: Iterable[str], place: str) -> None:
    if value not in known:
        raise DataError(f"{place}: {value!r} is unknown; known: {', '.join(known)}")
