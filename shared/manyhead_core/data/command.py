"""`manyhead data list | show | check`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from manyhead_core.app import App, find
from manyhead_core.cli import console
from manyhead_core.data import cards
from manyhead_core.data.cards import Card, FileRule
from manyhead_core.data.check import check

WIDTH = 100


def list_cards(
    apps: Mapping[str, App], app: str | None = None, /, domain: str | None = None
) -> None:
    """List the data sets that the suite knows, with access and licence.

    Args:
        apps: The apps of the suite.
        app: Only those that this app reads.
        domain: Only those of this domain, as `recommendation` or `pathology`.
    """
    known = cards.load()
    readers = {name for card in known.values() for name in card.apps}
    if app is not None:
        find(app, readers | set(apps), "app")
    if domain is not None:
        find(domain, cards.DOMAINS, "domain")
    chosen = [
        card
        for card in known.values()
        if (app is None or app in card.apps) and (domain is None or domain == card.domain)
    ]
    rows = [
        (
            card.id,
            card.title,
            " ".join(card.apps),
            card.access.kind,
            textwrap.shorten(card.licence, 40, placeholder=" ..."),
        )
        for card in chosen
    ]
    console.table("Data sets", ("id", "title", "apps", "access", "licence"), rows)


def show_card(id: str, /) -> None:
    """Show one data set: terms, access, files expected, split, known traps.

    Args:
        id: Name of the data set.
    """
    console.result("\n".join(_lines(cards.get(id))))


def check_folder(id: str, path: Path, /) -> int:
    """Compare a folder with the card of a data set; reads the beginnings of the files only.

    Args:
        id: Name of the data set.
        path: Folder that holds the files.

    Returns:
        0 when every required file is there and looks right, else 2.
    """
    found = check(cards.get(id), path)
    rows = [(finding.file, finding.state, finding.remark) for finding in found]
    console.table(f"{id} in {path}", ("file", "state", "remark"), rows)
    numbers = Counter(finding.state for finding in found)
    bad = any(finding.bad for finding in found)
    counted = ", ".join(f"{number} {state}" for state, number in numbers.items())
    advice = f"; expected files and source: manyhead data show {id}" if bad else ""
    console.result(f"{id}: {'NOT complete' if bad else 'complete'} ({counted}){advice}")
    return 2 if bad else 0


def _lines(card: Card) -> Iterator[str]:
    yield f"{card.id}: {card.title}"
    yield from _paragraph("domain", f"{card.domain}; read by {', '.join(card.apps)}")
    yield from _paragraph("licence", card.licence)
    yield from _paragraph("access", f"{card.access.kind}: {card.access.how}")
    yield f"  {'':10}{card.access.url}"
    yield from _paragraph("cite", card.citation)
    yield from _paragraph("split", card.splits)
    yield from _paragraph("group", card.group)
    yield "  files"
    for rule in card.files:
        yield from _file(rule)
    if card.notes:
        yield "  notes"
    for note in card.notes:
        yield from textwrap.wrap(
            note, WIDTH, initial_indent="    - ", subsequent_indent="      ", break_on_hyphens=False
        )


def _paragraph(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {name:10}",
        subsequent_indent=" " * 12,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _file(rule: FileRule) -> Iterator[str]:
    traits = [] if rule.required else ["optional"]
    traits += [f"arrangement {rule.layout}"] if rule.layout else []
    yield f"    {rule.path}" + (f"  ({', '.join(traits)})" if traits else "")
    yield from textwrap.wrap(
        rule.what, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False
    )
