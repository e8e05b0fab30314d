from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import DataError


def add(
    app: App,
    first: Path,
    numbers: Sequence[int] = (),
    /,
    *,
    scale: float = 1.0,
    style: Literal["plain", "loud"] = "plain",
    label: str,
) -> int:
    """Add numbers.

    Args:
        app: The app.
        first: Where from.
        numbers: What to add.
        scale: Factor.
        style: How to say it.
        label: What to call it.
    """
    if not first.name:
        raise DataError("first: is empty")
    console.result(f"{app.name} {first} {label} {sum(numbers) * scale:g} {style}")
    return 3 if style == "loud" else 0


def greet(*, name: str = "you") -> None:
    """Say hello.

    Args:
        name: Whom to greet.
    """
    console.result(f"hello {name}")


def stop() -> None:
    """Behave like a user who presses Ctrl-C."""
    raise KeyboardInterrupt


def crash() -> None:
    """A mistake of ours."""
    raise ZeroDivisionError("ours")
