"""The `manyhead` command; `python -m manyhead` is the same door."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from manyhead import __version__, registry
from manyhead_core.cli.main import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: Arguments after the program name; None takes those of the process.
    """
    return run(argv, registry.apps(), registry.TOP_COMMANDS, __version__, script=__file__)


if __name__ == "__main__":
    sys.exit(main())
