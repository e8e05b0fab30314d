"""`manyhead demo`: every app trains on simulated data of its domain and says what it found."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from manyhead_core.app import App, Command, find
from manyhead_core.cli import console
from manyhead_core.cli.main import run
from manyhead_core.errors import UserError
from manyhead_core.evaluate.html import Page

MARK = ".manyhead-demo"


@dataclass(frozen=True)
class Check:
    """One claim of a demo, with the number that bears it out or refutes it."""

    claim: str
    found: str
    holds: bool


@dataclass
class Story:
    """What the demo of one app has to tell.

    Args:
        title: Name of the app and of the task.
        intro: Two or three sentences: the data, what was planted, what was done.
        checks: Claims, each with its number.
        tables: Caption, header and rows.
        figures: Caption (also the alternative text) and picture.
        commands: The same steps as shell commands.
    """

    title: str
    intro: str
    checks: list[Check] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    figures: list[tuple[str, Figure]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@dataclass
class Commands:
    """Runs command lines of one app and remembers them for the report.

    Args:
        app: Name of the app.
        apps: The apps of the suite.
        top: Commands beside the apps.
        lines: What was run.
    """

    app: str
    apps: Mapping[str, App]
    top: Sequence[Command]
    lines: list[str] = field(default_factory=list)

    def __call__(self, *words: object) -> None:
        """Run `manyhead APP WORDS`.

        Raises:
            UserError: The command failed; it has said why.
        """
        argv = [self.app, *map(str, words)]
        self.lines.append(shlex.join(["manyhead", *argv]))
        if run(argv, self.apps, self.top, "", script=sys.argv[0]):
            raise UserError(f"demo: the step failed: {self.lines[-1]}")

    def afresh(self, *words: object) -> None:
        """Run `manyhead APP WORDS` as another program would: in a process that knows files only.

        Raises:
            UserError: The command failed.
        """
        argv = [self.app, *map(str, words)]
        self.lines.append(shlex.join(["manyhead", *argv]))
        program = [sys.executable, "-m", "manyhead", *argv]
        done = subprocess.run(program, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            reason = done.stderr.strip()[-500:]
            raise UserError(f"demo: {words[0]} failed in a fresh process: {reason}")


def demo(
    apps: Mapping[str, App],
    names: Sequence[str] = (),
    /,
    out: Path = Path("runs/demo"),
    seed: int = 0,
) -> int:
    """Simulate, train, evaluate, explain, save and reload each app; write one HTML report.

    Args:
        apps: The apps of the suite.
        names: Apps to show; all when none is named.
        out: Folder of the demo; a second start replaces the results of the first.
        seed: Seed of the simulation and of the training.
    """
    chosen = [apps[find(name, apps, "app")] for name in names] or list(apps.values())
    stories = []
    for app in chosen:
        started = time.perf_counter()
        console.say(f"{app.title}: {app.summary}")
        story: Callable[[Path, int], Story] = app.load("demo")
        stories.append(story(_emptied(out / app.name), seed))
        console.say(f"{app.title}: done in {time.perf_counter() - started:.0f} s")
    path = _page(stories).write(out / "report.html")
    checks = [check for story in stories for check in story.checks]
    console.table(
        "What the demo found",
        ["claim", "found", "holds"],
        [[check.claim, check.found, "yes" if check.holds else "NO"] for check in checks],
    )
    console.result(f"report: {path}")
    return 0 if all(check.holds for check in checks) else 1


def _emptied(folder: Path) -> Path:
    """The folder, without the results of an earlier demo; any other content is left alone."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise UserError(
                f"--out: {folder} holds something else than a demo; choose another folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("Written by `manyhead demo`, which may replace this folder.\n")
    return folder


def _page(stories: Sequence[Story]) -> Page:
    page = Page("manyhead demo", "Simulated data: the numbers show that the tools work, no more.")
    for story in stories:
        page.section(story.title)
        page.paragraph(story.intro)
        rows = [[c.claim, c.found, "yes" if c.holds else "no"] for c in story.checks]
        page.table("Claims and numbers", ["claim", "found", "holds"], rows)
        for caption, header, body in story.tables:
            page.table(caption, header, body)
        for caption, figure in story.figures:
            page.figure(caption, figure)
        page.code("The same steps by hand", "\n".join(story.commands))
    return page
