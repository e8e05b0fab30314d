"""`python -m benchmarks.attention_page`: the tables and the figure of `docs/attention.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases.attention_length import (
    FORWARD,
    FULL,
    TRAINING,
    Curve,
    curve,
    efficiency_length,
)
from benchmarks.harness import Result
from benchmarks.memory import ROOT
from manyhead_core.attention.mixer import PATTERNS
from manyhead_core.attention.registry import MIXERS, mixer_class

PAGE = ROOT / "docs" / "attention.md"
FIGURE = ROOT / "docs" / "figures" / "attention_length.svg"
RESULTS = ROOT / "benchmarks" / "results" / "attention_length-cpu.json"
COMMAND = "python -m benchmarks attention_length && python -m benchmarks.attention_page"
AT = 4096


def capabilities() -> str:
    """The table of mixers, as the registry has it."""
    lines = [
        "| mixer | what | patterns | layouts | mask | maps | heads | state |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in MIXERS:
        kind = mixer_class(name)
        able = kind.capabilities
        # "A: B": the longer part says more.
        line = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
        what = max(line.split(": "), key=len)
        patterns: list[str] = [p for p in PATTERNS if p in able.patterns]
        patterns += [f"({p})" for p in PATTERNS if p in able.leaky]
        mask = "" if able.mask == "none" else able.mask
        flags = ["yes" if flag else "" for flag in (able.maps, able.heads, able.stateful)]
        cells = [f"`{name}`", what, " ".join(patterns), " ".join(sorted(able.layouts)), mask]
        lines.append(f"| {' | '.join([*cells, *flags])} |")
    return "\n".join(lines)


def costs(content: Mapping[str, Any] | None) -> str:
    """Figure and table of costs from the results file of `attention_length`.

    Args:
        content: The file; None where there is none.
    """
    if content is None:
        return f"Not measured on this commit. `{COMMAND}` measures it."
    about = content["metadata"]
    results = [Result.from_dict(plain) for plain in content["results"]]
    rows = [
        _row(results, name, pattern)
        for pattern in PATTERNS
        for name in dict.fromkeys(result.variant for result in results)
        if name != FULL and curve(results, name, pattern, TRAINING).lengths
    ]
    header = [
        f"![Time and memory over the number of tokens](figures/{FIGURE.name})",
        "",
        f"Measured on {about['cpu']}, one thread, "
        f"torch {about['torch']}, {about['date'][:10]}. Times against `{FULL}` in the same "
        "pattern: above 1 the mixer is faster. Memory: that of the mixer as a share of that of "
        f"`{FULL}`.",
        "",
        "| pattern | mixer | efficiency length, forward | training | memory "
        f"| measured faster from | time at {AT:,}, forward | training | memory at {AT:,} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*header, *rows])


def _row(results: Sequence[Result], name: str, pattern: str) -> str:
    forward, training = (curve(results, name, pattern, work) for work in (FORWARD, TRAINING))
    full = curve(results, FULL, pattern, TRAINING)
    lengths = [
        efficiency_length(results, name, pattern, FORWARD),
        efficiency_length(results, name, pattern, TRAINING),
        efficiency_length(results, name, pattern, TRAINING, "peaks"),
    ]
    win = training.first_win
    shown = [_tokens(length, full.lengths[0]) for length in lengths]
    cells = [pattern, f"`{name}`", *shown, "none" if win is None else f"{win:,}"]
    cells += [_ratio(forward), _ratio(training), _memory(training, full)]
    return f"| {' | '.join(cells)} |"


def _tokens(length: float | None, shortest: int) -> str:
    if length is None:
        return "none"
    return f"≤ {shortest:,}" if length <= shortest else f"{round(length, -1):,.0f}"


def _ratio(found: Curve) -> str:
    index = found.at(AT)
    return "too slow" if index is None else f"{found.ratios[index]:.2g}"


def _memory(found: Curve, full: Curve) -> str:
    own, base = found.at(AT), full.at(AT)
    if own is None or base is None:
        return "not measured"
    return f"{found.peaks[own] / full.peaks[base]:.2g}"


def between(text: str, name: str, inside: str) -> str:
    """A page with the part between the markers `name` replaced.

    Args:
        text: The page.
        name: `mixers` or `costs`.
        inside: What stands there now.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(start)
    _, after = rest.split(end)
    return f"{before}{start}{inside}\n{end}{after}"


def read(path: Path = RESULTS) -> dict[str, Any] | None:
    """The results file, or None where there is none."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def page(text: str, content: Mapping[str, Any] | None) -> str:
    """The page with its generated parts as they have to be."""
    return between(between(text, "mixers", capabilities()), "costs", costs(content))


def main() -> int:
    """Write the page, and the figure where there are results."""
    from benchmarks.plots import length_figure, write_svg

    content = read()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")
    if content is not None:
        results = [Result.from_dict(plain) for plain in content["results"]]
        write_svg(length_figure(results), FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
