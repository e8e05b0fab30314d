"""At the end of a run: which invariants of which mechanism hold."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

MECHANISM = re.compile(r"test_mixer_(\w+)\.py::test_([a-z0-9_]+)(?:\[([a-z_0-9]+))?", re.I)
SUITE = "conformance"  # one file for all mechanisms; they stand in brackets
OUTCOMES = ("passed", "failed", "error", "skipped")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List them by mechanism; a test with several sizes is one invariant."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            match = MECHANISM.search(getattr(report, "nodeid", ""))
            if match:
                file, name, first = match.groups()
                mechanism = first if file == SUITE and first else file
                found[mechanism.lower()][outcome].add(name.replace("_", " "))
    if not found:
        return
    terminalreporter.section("invariants by mechanism")
    for mechanism in sorted(found):
        counts = ", ".join(
            f"{len(found[mechanism][o])} {o}" for o in OUTCOMES if found[mechanism][o]
        )
        terminalreporter.write_line(f"{mechanism}: {counts}")
        if terminalreporter.config.get_verbosity() > 0:
            for name in sorted(found[mechanism]["passed"]):
                terminalreporter.write_line(f"    {name}")
