"""A page that is one file: text, tables and figures, without anything from elsewhere."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from manyhead_core.errors import UserError
from manyhead_core.evaluate.files import replace_text
from manyhead_core.evaluate.palette import DARK, NAMES

GENERATOR = "manyhead"
LARGEST_SVG = 600_000
STYLE = Path(__file__).with_name("page.css")


class Page:
    """Collects sections and writes them as one HTML file.

    Args:
        title: Title of the page.
        intro: What the page shows, in a sentence or two.
        subject: What the page is about, such as the run; a page replaces only an earlier page on
            the same subject. Default: the title.
    """

    def __init__(self, title: str, intro: str, subject: str | None = None) -> None:
        self.title = title
        self.intro = intro
        self.subject = subject or title
        self._parts: list[str] = []
        self._sections: list[str] = []
        self._figures = 0

    def section(self, title: str) -> None:
        """Start a section."""
        self._sections.append(title)
        number = len(self._sections)
        self._parts.append(f'<h2 id="section-{number}">{escape(title)}</h2>')

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def note(self, text: str) -> None:
        """Add a paragraph that must not be overlooked."""
        self._parts.append(f'<p class="note" role="note">{escape(text)}</p>')

    def facts(self, facts: Mapping[str, object]) -> None:
        """Add names with their values, as a list."""
        items = (
            f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
            for name, value in facts.items()
        )
        self._parts.append(f"<dl>{''.join(items)}</dl>")

    def table(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; the first cell of a row names the row.

        Args:
            caption: What the table shows.
            header: Column names.
            rows: Cells, as text or numbers.
        """
        cells = [[str(cell) for cell in row] for row in rows]
        numeric = [
            bool(cells) and all(_is_number(row[k]) for row in cells) for k in range(len(header))
        ]
        head = "".join(
            f'<th scope="col"{_number_class(numeric[k])}>{escape(name)}</th>'
            for k, name in enumerate(header)
        )
        body = "".join(f"<tr>{_row(row, numeric)}</tr>" for row in cells)
        self._parts.append(
            f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
            f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, caption: str, figure: Figure) -> None:
        """Add a figure.

        Args:
            caption: What it shows; also the alternative text.
            figure: Drawn with the colours of the palette it follows the reader's colour scheme.
        """
        self._figures += 1
        image = _svg(figure, caption, f"f{self._figures}-")
        if len(image) > LARGEST_SVG:
            image = _png(figure, caption)
        self._parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")

    def code(self, caption: str, text: str) -> None:
        """Add text to be read or copied as it is."""
        self._parts.append(
            f'<figure class="code"><figcaption>{escape(caption)}</figcaption>'
            f'<pre tabindex="0"><code>{escape(text)}</code></pre></figure>'
        )

    def html(self) -> str:
        """The whole page."""
        links = "".join(
            f'<li><a href="#section-{number}">{escape(name)}</a></li>'
            for number, name in enumerate(self._sections, start=1)
        )
        contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta name="generator" content="{GENERATOR}">\n'
            f'<meta name="subject" content="{escape(self.subject)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{_variables()}{_style()}</style></head>\n"
            f"<body><header><h1>{escape(self.title)}</h1>"
            f'<p class="intro">{escape(self.intro)}</p>{contents}</header>\n<main>\n'
            + "\n".join(self._parts)
            + "\n</main></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page in one step.

        Args:
            path: File; an earlier page on the same subject is replaced, nothing else.

        Returns:
            `path`.

        Raises:
            UserError: There is another file of this name, or the folder cannot be written.
        """
        if path.exists() and not self._may_replace(path):
            raise UserError(
                f"--out: {path} exists and is no earlier page on the same subject; "
                "choose another name"
            )
        return replace_text(path, self.html())

    def _may_replace(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(4000)
        names = (("generator", GENERATOR), ("subject", escape(self.subject)))
        return all(f'<meta name="{name}" content="{value}">' in head for name, value in names)


def _row(cells: Sequence[str], numeric: Sequence[bool]) -> str:
    first = f'<th scope="row"{_number_class(numeric[0])}>{escape(cells[0])}</th>' if cells else ""
    rest = (
        f"<td{_number_class(numeric[k])}>{escape(cell)}</td>" for k, cell in enumerate(cells) if k
    )
    return first + "".join(rest)


def _number_class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _is_number(cell: str) -> bool:
    if cell in ("", "-"):
        return True
    return re.fullmatch(r"[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?( ?%)?", cell) is not None


def _svg(figure: Figure, caption: str, prefix: str) -> str:
    """The figure as inline SVG: unique ids, real text, colours as CSS variables."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "manyhead"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    for colour, name in NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    label = f'<svg role="img" aria-label="{escape(caption)}" '
    return text.replace("<svg ", label, 1)


def _png(figure: Figure, caption: str) -> str:
    """The figure as an image on a light ground, for what would be too large as SVG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, facecolor="white")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'


def _variables() -> str:
    light = "".join(f"--{name}:{colour};" for colour, name in NAMES.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for colour, name in NAMES.items())
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


def _style() -> str:
    return STYLE.read_text(encoding="utf-8")
