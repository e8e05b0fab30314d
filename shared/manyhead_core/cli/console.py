"""The only place that writes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

Item = TypeVar("Item")

_quiet = False
_program = "manyhead"


def set_quiet(quiet: bool) -> None:
    """Drop notices and progress when True; results and errors are always written."""
    global _quiet
    _quiet = quiet


def set_program(name: str) -> None:
    """Set the command that is running, as messages name it."""
    global _program
    _program = name


def program() -> str:
    """The command that is running, as in `manyhead autoint fit`."""
    return _program


def say(text: str) -> None:
    """Write one line of notice or progress to stderr."""
    if not _quiet:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def error(text: str) -> None:
    """Write one line to stderr, whatever the verbosity."""
    sys.stderr.write(" ".join(text.split()) + "\n")
    sys.stderr.flush()


def result(text: str) -> None:
    """Write one line of result to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to stdout: drawn on a terminal, aligned plain text in a pipe."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(title, columns, cells)
    else:
        result("\n".join(_plain(title, columns, cells)))


def progress(
    iterable: Iterable[Item], description: str, total: int | None = None
) -> Iterator[Item]:
    """Yield the items and show how far it is: a bar on a terminal, one line every 10 % elsewhere.

    Args:
        iterable: What is worked through.
        description: What is being done, as in `encoding rows`.
        total: Number of items when the iterable does not know its length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if _quiet:
        yield from iterable
    elif sys.stderr.isatty():
        yield from _bar(iterable, description, total)
    else:
        yield from _tenths(iterable, description, total)


def _bar(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track

    yield from track(
        iterable, description, total=total, console=Console(stderr=True), transient=True
    )


def _tenths(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    shown = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        tenth = 10 * done // total if total else 0
        if tenth > shown:
            shown = tenth
            say(f"{description}: {done} of {total} ({10 * tenth} %)")


def _draw(title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(_is_number(row[index]) for row in rows)
        drawn.add_column(Text(column), justify="right" if numbers else "left")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout).print(drawn)


def _plain(title: str, columns: Sequence[str], rows: list[list[str]]) -> list[str]:
    lines = [list(columns), *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    aligned = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return [title, *aligned]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell in ("", "-")
    return True
