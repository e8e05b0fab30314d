"""Dispatch of the `manyhead` command; imports nothing heavy before a command is known."""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from manyhead_core.app import App, Command, find
from manyhead_core.cli import console
from manyhead_core.cli.extras import missing_package
from manyhead_core.errors import UserError

PROGRAM = "manyhead"
TRAINING = (
    ("fit", "train; resume with --resume RUN_FOLDER"),
    ("validate", "evaluate a checkpoint on the validation split"),
    ("test", "evaluate a checkpoint on the test split; writes predictions.csv and metrics.json"),
)
RESEARCH_ONLY = "research use only, not a medical device"
HELP_FLAGS = ("-h", "--help")
LEVELS = {"-q": logging.ERROR, "--quiet": logging.ERROR, "-v": logging.INFO, "-vv": logging.DEBUG}


def run(
    argv: Sequence[str] | None,
    apps: Mapping[str, App],
    commands: Sequence[Command],
    version: str,
    script: str | None = None,
) -> int:
    """Run one command line.

    Args:
        argv: Arguments after the program name; None takes those of the process.
        apps: All apps by name.
        commands: Commands beside the apps; a name of two words is a sub-command.
        version: What `--version` answers.
        script: File that runs the same command when started with `argv`; ddp starts it again in
            its second process.

    Returns:
        0 done, 1 crash, 2 mistake of the user, 130 interrupted.
    """
    with replayable(argv, script) as given:
        arguments = set_verbosity(given)
        if not arguments or arguments[0] in HELP_FLAGS:
            return _answer(_help(apps, commands))
        if arguments[0] == "--version":
            return _answer(f"{PROGRAM} {version}")
        program, app = PROGRAM, apps.get(arguments[0])
        if app is not None:
            program = f"{PROGRAM} {app.name}"
        return guarded(program, app, lambda: _dispatch(arguments, apps, commands))


@contextmanager
def replayable(argv: Sequence[str] | None, script: str | None) -> Iterator[list[str]]:
    """Let `sys.argv` be the command line that is running, as a second process has to repeat it."""
    if argv is None:
        yield sys.argv[1:]
        return
    before = sys.argv
    sys.argv = [script or before[0], *argv]
    try:
        yield list(argv)
    finally:
        sys.argv = before


def set_verbosity(argv: Sequence[str]) -> list[str]:
    """Set the logging level from -q, -v, -vv and return the other arguments."""
    flags = [argument for argument in argv if argument in LEVELS]
    level = LEVELS[flags[-1]] if flags else logging.WARNING
    logging.basicConfig(format="%(name)s: %(message)s")
    for name in ("manyhead", "manyhead_core", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(level)
    # Of several processes of one run only the first one talks; errors come from all.
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    console.set_quiet(level >= logging.ERROR or any(rank != "0" for rank in ranks))
    return [argument for argument in argv if argument not in LEVELS]


def guarded(program: str, app: App | None, call: Callable[[], int]) -> int:
    """Run `call`; a mistake of the user becomes one line and exit code 2.

    Anything that is not a known mistake keeps its traceback. `MANYHEAD_DEBUG=1` shows it always.
    """
    try:
        return call()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        console.error(f"{program}: interrupted{stop}")
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as err:
        line = missing_package(err, app)
        if line is None:
            raise
        return _mistake(program, line)
    except Exception as err:
        if not _is_mistake(err):
            raise
        return _mistake(program, str(err))


def _is_mistake(err: Exception) -> bool:
    if isinstance(err, UserError):
        return True
    # By name: importing Lightning only to compare would cost every command five seconds.
    return any(kind.__name__ == "MisconfigurationException" for kind in type(err).__mro__)


def _mistake(program: str, line: str) -> int:
    if os.environ.get("MANYHEAD_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    console.error(f"{program}: {line}")
    return 2


def _dispatch(
    arguments: Sequence[str], apps: Mapping[str, App], commands: Sequence[Command]
) -> int:
    name, rest = arguments[0], list(arguments[1:])
    if name in apps:
        return _app(apps[name], rest, apps)
    groups = {command.name.split()[0] for command in commands}
    find(name, {*apps, *groups}, "app or command")
    for command in commands:
        words = command.name.split()
        if list(arguments[: len(words)]) == words:
            return _function(command, PROGRAM, arguments[len(words) :], None, apps)
    return _group(name, rest, [row for row in commands if row.name.startswith(f"{name} ")])


def _group(name: str, rest: Sequence[str], rows: Sequence[Command]) -> int:
    if not rest or rest[0] in HELP_FLAGS:
        lines = [(row.name, row.summary) for row in rows]
        return _answer(f"usage: {PROGRAM} {name} COMMAND ...\n\n{_columns(lines)}")
    find(rest[0], [row.name.split()[1] for row in rows], f"command of {name}")
    raise AssertionError(f"{name} {rest[0]} is a row that was not dispatched")


def _app(app: App, rest: Sequence[str], apps: Mapping[str, App]) -> int:
    if not rest or rest[0] in HELP_FLAGS:
        return _answer(_app_help(app))
    rows = {command.name: command for command in app.commands}
    training = {name for name, _ in TRAINING}
    name = find(rest[0], {*rows, *training}, "command")
    if app.medical and not set(HELP_FLAGS) & set(rest):
        console.say(f"{PROGRAM} {app.name}: {RESEARCH_ONLY}")
    console.set_program(f"{PROGRAM} {app.name} {name}")
    if name in rows:
        return _function(rows[name], f"{PROGRAM} {app.name}", rest[1:], app, apps)
    from manyhead_core.cli.lightning import run_training

    return run_training(app, rest)


def _function(
    command: Command,
    program: str,
    rest: Sequence[str],
    app: App | None,
    apps: Mapping[str, App],
) -> int:
    from manyhead_core.cli.function import run_function

    function = pkgutil.resolve_name(command.run)
    return run_function(function, f"{program} {command.name}", rest, app=app, apps=apps)


def _answer(text: str) -> int:
    console.result(text)
    return 0


def _help(apps: Mapping[str, App], commands: Sequence[Command]) -> str:
    return "\n".join(
        [
            f"usage: {PROGRAM} APP COMMAND [--config NAME_OR_FILE]... [--group.option VALUE]...",
            f"       {PROGRAM} COMMAND ...",
            "",
            "apps:",
            _columns([(app.name, app.summary) for app in apps.values()]),
            "",
            "commands:",
            _columns([(command.name, command.summary) for command in commands]),
            "",
            f"`{PROGRAM} APP` lists the commands of an app, `{PROGRAM} APP COMMAND --help` its "
            "options.",
            "-q shows errors only, -v and -vv show more; --version shows the version.",
        ]
    )


def _app_help(app: App) -> str:
    rows = [*TRAINING, *((command.name, command.summary) for command in app.commands)]
    lines = [f"usage: {PROGRAM} {app.name} COMMAND ...", "", f"{app.title}: {app.summary}"]
    if app.medical:
        lines.append(RESEARCH_ONLY)
    lines += ["", "commands:", _columns(rows), "", "examples:"]
    lines += [
        f"  {PROGRAM} {app.name} configs",
        f"  {PROGRAM} {app.name} fit --config NAME --data.root FOLDER",
        f"  {PROGRAM} {app.name} test --run runs/{app.name}/NAME/0 --data.root FOLDER",
    ]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name.ljust(width)}  {summary}" for name, summary in rows)
