"""Parsers whose errors are one line with a remedy."""

from __future__ import annotations

import re
import sys
from argparse import Action
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from manyhead_core.cli import console
from manyhead_core.errors import UserError

# jsonargparse 4.49 has new names and warns at the old ones.
RENAMED = hasattr(ArgumentParser, "instantiate")
KEEP_NONE: dict[str, Any] = {"skip_unset" if RENAMED else "skip_none": False}


class OneLineErrors:
    """Mix-in for jsonargparse parsers: a mistake costs one line on stderr and exit code 2."""

    prog: str

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a mistake of the user.

        Args:
            message: What the parser has to say, often over several lines.
            ex: What it was raised from.

        Raises:
            SystemExit: Always, with code 2.
        """
        parser = getattr(ex, "subcommand_parser", None) or self
        program = program_name(parser.prog)
        # The parser of a nested value is made by jsonargparse, and named after the process.
        program = program if program.startswith("manyhead") else console.program()
        console.error(f"{program}: {shorten(message, _cause(ex), _options(parser))}")
        raise SystemExit(2)


class PlainTypes(DefaultHelpFormatter):
    """jsonargparse's help with `Path` where it says `<class 'Path'>`."""

    def _get_type_str(self, action: Action) -> str | None:
        text = super()._get_type_str(action)
        return None if text is None else re.sub(r"<class '(\w+)'>", r"\1", text)


class CommandParser(OneLineErrors, ArgumentParser):
    """Parser of a command that is a plain function."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, formatter_class=PlainTypes, allow_abbrev=False, **options)

    def built(self, values: Namespace) -> Namespace:
        """`values` with config dataclasses and classes in place of their settings."""
        build = self.instantiate if RENAMED else self.instantiate_classes
        found: Namespace = build(values)
        return found


def program_name(prog: str) -> str:
    """`prog` without the placeholder of sub-command parsers; the command for nested parsers."""
    if prog == Path(sys.argv[0]).name:
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        return " ".join(["manyhead", *words[:2]])
    return prog.replace(" [options]", "")


def shorten(message: str, cause: BaseException | None, options: list[str]) -> str:
    """The one line that a parser message comes down to.

    Args:
        message: Message of jsonargparse.
        cause: First exception of the chain; a mistake named by our own code is the message.
        options: Long options of the parser, for the nearest match.
    """
    key = re.search(
        r"""(?:[Pp]arser key|[Pp]roblem with given|[Kk]ey) ["']([\w.-]+)["']""", message
    )
    if isinstance(cause, UserError):
        return str(cause)
    unknown = re.search(r"[Uu]nrecognized arguments?: (\S+)", message)
    if unknown:
        return _unknown_option(unknown[1].rstrip("."), options)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    lines = [line for line in lines if not re.match(r"(Does not validate|Problem.*:$)", line)]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"""[Pp]arser key ["']([\w.-]+)["']:?\s*""", r"\1: ", text)
    text = re.sub(r"""Validation failed: """, "", text)
    if key and key[1] not in text:
        text = f"{key[1]}: {text}"
    return _plain_types(text)


def _plain_types(text: str) -> str:
    """A type error without the notation of Python's type system."""
    if "NestedArg" in text:  # of --data.split.by, where data.split is one value
        return f"{text.partition(':')[0]}: takes one value and has no parts; see --help"
    found = re.search(
        r"^(.*?)(?:Subtypes: .*?Errors: )?(Expected .*?)\.?"
        r"(?: Given value type: .*?Given| Got) value: (.*)$",
        text,
    )
    if found is None:
        return text
    wanted = re.findall(r"Expected (?:an? )?(.+?)\.?(?= Expected |$)", found[2])
    names = dict.fromkeys(_plain_type(name) for name in wanted)
    if "tuple" in names and not found[3].startswith("["):
        return f"{found[1]}got {found[3]!r}, expected a list; write '[{found[3]}]'"
    return f"{found[1]}got {found[3]!r}, expected {' or '.join(names)}"


def _plain_type(name: str) -> str:
    name = re.sub(r"<class '([\w.]+)'>", r"\1", name).replace("NoneType", "null")
    return re.sub(r"typing\.Literal\[(.*?)\]", r"\1", name)


def _unknown_option(argument: str, options: list[str]) -> str:
    first = argument.split("=")[0]
    near = get_close_matches(first, options, n=1)
    hint = f"did you mean {near[0]}?" if near else "see --help"
    return f"unknown option {first}; {hint}"


def _cause(ex: BaseException | None) -> BaseException | None:
    while ex is not None and not isinstance(ex, UserError):
        ex = ex.__cause__ or ex.__context__
    return ex


def _options(parser: Any) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]
