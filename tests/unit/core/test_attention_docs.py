"""The table of mixers in docs/attention.md is what the registry says."""

from pathlib import Path

from manyhead_core.attention.registry import MIXERS, mixer_class

PAGE = Path(__file__).parents[3] / "docs" / "attention.md"


def table() -> str:
    lines = [
        "| mixer | what | patterns | layouts | mask | maps | state |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MIXERS:
        kind = mixer_class(name)
        able = kind.capabilities
        what = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
        what = what.split(": ", 1)[-1] if ": " in what else what
        patterns = " ".join(p for p in ("NS", "CS", "NC", "CC") if p in able.patterns)
        layouts = " ".join(sorted(able.layouts))
        flags = ["yes" if flag else "" for flag in (able.maps, able.stateful)]
        mask = "" if able.mask == "none" else able.mask
        lines.append(
            f"| `{name}` | {what} | {patterns} | {layouts} | {mask} | {' | '.join(flags)} |"
        )
    return "\n".join(lines)


def test_the_page_shows_the_registry() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"write into {PAGE.name}:\n{table()}"
