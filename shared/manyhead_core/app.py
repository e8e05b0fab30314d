"""One row per app: plain strings, so that reading the list costs nothing and imports nothing."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from manyhead_core.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command of an app that is a plain function with a typed signature.

    Args:
        name: What the user types.
        summary: One line for the help.
        run: Dotted path `package.module:function`; options come from its signature. A function of
            the core that serves every app takes the row as its first parameter `app: App`.
    """

    name: str
    summary: str
    run: str


@dataclass(frozen=True, kw_only=True)
class App:
    """What the command line, the demo and the conformance suite need to know of an app.

    Args:
        name: Name on the command line and of the package `manyhead.<name>`.
        title: Name as written in the paper.
        summary: One line for the help.
        extra: Extra of the distribution that brings the readers of this domain.
        model: Dotted path of the `nn.Module`.
        config: Dotted path of its config dataclass.
        task: Dotted path of the LightningModule.
        data: Dotted path of the LightningDataModule.
        evaluate: Dotted path of the function that turns a predictions table into metrics.
        demo: Dotted path of the demo function.
        monitor: Logged metric that selects the best checkpoint.
        mode: Whether `monitor` is to be minimised or maximised.
        commands: Commands beside fit, validate and test.
        medical: True prints "research use only, not a medical device" with every result.
        kind: Dotted path of the app's own `Kind` of predictions, for an `evaluate` that gives none
            of those that the core knows; empty for the others.
    """

    name: str
    title: str
    summary: str
    extra: str
    model: str
    config: str
    task: str
    data: str
    evaluate: str
    demo: str
    monitor: str
    mode: Literal["min", "max"]
    commands: tuple[Command, ...]
    medical: bool = False
    kind: str = ""

    def load(self, part: str) -> Any:
        """Import what the field `part` points to, for example `app.load("model")`."""
        return pkgutil.resolve_name(getattr(self, part))


def find(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is known, else raise with the nearest match and the list.

    Raises:
        UserError: `name` is not among `known`.
    """
    names = sorted(known)
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown {what} {name!r}; {hint}known: {', '.join(names)}")
