"""Entry of a fresh process: call one function and print what it returns as JSON."""

from __future__ import annotations

import json
import pkgutil
import sys

from manyhead_core.cli import console


def main(function: str, arguments: str) -> None:
    """Call `package.module:function` with the keyword arguments of a JSON object."""
    console.result(json.dumps(pkgutil.resolve_name(function)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
