"""A typed function as a command: its signature is the single source of the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser

from manyhead_core.app import App
from manyhead_core.cli.parser import CommandParser

INJECTED = ("app", "apps")


def run_function(
    function: Callable[..., Any],
    prog: str,
    arguments: Sequence[str],
    *,
    app: App | None = None,
    apps: Mapping[str, App] | None = None,
) -> int:
    """Parse `arguments` by the signature of `function` and call it.

    Positional-only parameters are positional on the command line: one value without a default, an
    optional value with one, any number for a sequence. All others are `--options`. A first
    parameter called `app` gets the row of the app, one called `apps` the mapping of all rows.

    Args:
        function: What to run.
        prog: Program name for help and errors.
        arguments: Command line after the name of the command.
        app: Row of the app the command belongs to.
        apps: All rows.

    Returns:
        Exit code.
    """
    parameters = list(inspect.signature(function).parameters.values())
    injected = [{"app": app, "apps": apps}[p.name] for p in parameters[:1] if p.name in INJECTED]
    own = parameters[len(injected) :]
    parser = _parser(function, prog, own)
    values = parser.built(parser.parse_args(list(arguments)))
    positional = [values[p.name] for p in own if p.kind is p.POSITIONAL_ONLY]
    options = {p.name: values[p.name] for p in own if p.kind is not p.POSITIONAL_ONLY}
    code = function(*injected, *positional, **options)
    return code if isinstance(code, int) else 0


def _parser(
    function: Callable[..., Any], prog: str, own: Sequence[inspect.Parameter]
) -> CommandParser:
    described = docstring_parser.parse(function.__doc__ or "")
    parser = CommandParser(prog=prog, description=described.short_description)
    helps = {entry.arg_name: entry.description for entry in described.params}
    positional = [p for p in own if p.kind is p.POSITIONAL_ONLY]
    hints = get_type_hints(function)
    for parameter in positional:
        _add_positional(parser, parameter, hints[parameter.name], helps.get(parameter.name))
    skipped: set[str | int] = {*INJECTED, *(p.name for p in positional)}
    parser.add_function_arguments(function, as_group=False, skip=skipped)
    return parser


def _add_positional(
    parser: CommandParser, parameter: inspect.Parameter, hint: Any, text: str | None
) -> None:
    required = parameter.default is parameter.empty
    options: dict[str, Any] = {"type": hint, "help": text}
    if inspect.isclass(get_origin(hint)) and issubclass(get_origin(hint), Sequence):
        options |= {"type": get_args(hint)[0], "nargs": "+" if required else "*"}
    elif not required:
        options["nargs"] = "?"
    if not required:
        options["default"] = parameter.default
    parser.add_argument(parameter.name, **options)
