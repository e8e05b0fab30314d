"""Many slides one by one: a report of all, a failure costs its slide only, a second start goes on.

A slide may kill the process that reads it, by a damaged file or for lack of memory. With several
processes, those that were at work then are tried again alone, so that one slide is to blame.
"""

from __future__ import annotations

import csv
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Generic, Literal, TypeVar

from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, UserError

Item = TypeVar("Item")
Status = Literal["ok", "done before", "no tissue", "failed"]

REPORT = "report.csv"
COLUMNS = ("id", "status", "patches", "tissue_share", "seconds", "error")
DIED = "the process that read it died, by a damaged file or for lack of memory"


@dataclass(frozen=True)
class Outcome:
    """What has become of a slide.

    Args:
        status: `ok`, `done before`, `no tissue` or `failed`.
        patches: Number of patches, or None.
        tissue_share: Share of the slide that is tissue, 0 to 1, or None.
        seconds: Time that it took.
        error: What went wrong, in one line.
    """

    status: Status = "ok"
    patches: int | None = None
    tissue_share: float | None = None
    seconds: float = 0.0
    error: str = ""

    def row(self, name: str) -> tuple[str, ...]:
        """The line of the report, as text."""
        share = "" if self.tissue_share is None else f"{self.tissue_share:.4f}"
        patches = "" if self.patches is None else str(self.patches)
        return name, self.status, patches, share, f"{self.seconds:.1f}", self.error


def _never(name: str) -> bool:  # noqa: ARG001
    return False


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """Work on many slides.

    Args:
        work: What is done with a slide. It raises a `UserError` for a slide that cannot be used,
            and writes its files under temporary names first. With several `jobs` it goes to other
            processes, so it has to be a function of a module, or a dataclass with `__call__`.
        out: Folder of the results, for `report.csv`.
        doing: What progress calls it, as in `tiling slides`.
        done: Whether an earlier start has finished a slide, by its id.
        jobs: Processes at the same time.
    """

    work: Callable[[Item], Outcome]
    out: Path
    doing: str
    done: Callable[[str], bool] = field(default=_never)
    jobs: int = 1

    def __post_init__(self) -> None:
        """Check the number of processes."""
        if self.jobs < 1:
            raise ConfigError(f"jobs: must be at least 1, got {self.jobs}")

    def run(self, items: Mapping[str, Item], *, strict: bool = False) -> int:
        """Work through the slides and write the report.

        Args:
            items: What `work` gets, by slide id.
            strict: Whether one failure is enough for exit code 2.

        Returns:
            Exit code: 2 when no slide has succeeded.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        before = read_report(self.out / REPORT)
        found = {
            name: replace(before.get(name, Outcome()), status="done before", error="")
            for name in items
            if self.done(name)
        }
        waiting = {name: item for name, item in items.items() if name not in found}
        if found:
            console.say(f"{len(found)} of {len(items)} slides are done already")
        # Slides of earlier starts stay in the report, whatever the list is now.
        known = before | found
        try:
            results = self._alone(waiting) if self.jobs == 1 else self._together(waiting)
            for name, outcome in console.progress(results, self.doing, len(waiting)):
                known[name] = outcome
                _append(self.out / REPORT, name, outcome)
                if outcome.error:
                    console.error(f"{name}: {outcome.error.removeprefix(f'{name}: ')}")
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("; the same command goes on where this one stopped") from stop
        finally:
            # A start that was stopped leaves the earlier state of the slides it did not reach.
            order = dict.fromkeys([*(name for name in before if name not in items), *items])
            write_report(self.out / REPORT, {n: known[n] for n in order if n in known})
        return self._close([known[name] for name in items], strict)

    def _close(self, outcomes: Sequence[Outcome], strict: bool) -> int:
        good = sum(outcome.status in ("ok", "done before") for outcome in outcomes)
        failed = sum(outcome.status == "failed" for outcome in outcomes)
        console.result(f"written: {self.out} ({good} of {len(outcomes)} slides; see {REPORT})")
        return 2 if good == 0 or (strict and failed) else 0

    def _alone(self, items: Mapping[str, Item]) -> Iterator[tuple[str, Outcome]]:
        for name, item in items.items():
            yield name, timed(self.work, item)

    def _together(self, items: Mapping[str, Item]) -> Iterator[tuple[str, Outcome]]:
        waiting = dict(items)
        while waiting:
            suspects: list[str] = []
            for name, outcome in self._pooled(waiting, self.jobs):
                if outcome is None:
                    suspects.append(name)
                    continue
                del waiting[name]
                yield name, outcome
            for name in suspects:
                ((_, again),) = self._pooled({name: waiting.pop(name)}, 1)
                yield name, again or Outcome("failed", error=DIED)

    def _pooled(self, items: Mapping[str, Item], jobs: int) -> Iterator[tuple[str, Outcome | None]]:
        """Outcomes as they come; None for all that were at work when a process died."""
        names = iter(tuple(items))
        others = set(active_children())
        # No fork: libraries that read slides hold threads and locks.
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _die_quietly)
        running: dict[Future[Outcome], str] = {}
        try:
            while True:
                while len(running) < jobs and (name := next(names, None)) is not None:
                    running[pool.submit(timed, self.work, items[name])] = name
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    yield running.pop(future), outcome
        except BrokenProcessPool:
            for future, name in running.items():
                survived = future.done() and future.exception() is None
                yield name, future.result() if survived else None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if running:  # stopped by Ctrl-C or an error: nobody waits for these any more
                for child in set(active_children()) - others:
                    child.terminate()


def timed(work: Callable[[Item], Outcome], item: Item) -> Outcome:
    """The outcome of a slide with the time it took; an error becomes the status `failed`.

    Raises:
        UserError: The disk is full, which the next slide would not survive either.
    """
    started = time.perf_counter()
    try:
        outcome = work(item)
    except Exception as err:
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            raise UserError("out: no space is left on the disk; free some and start again") from err
        if os.environ.get("MANYHEAD_DEBUG", "") not in ("", "0"):
            raise
        known = isinstance(err, UserError)
        text = " ".join((str(err) if known else f"{type(err).__name__}: {err}").split())
        outcome = Outcome("failed", error=text)
    return replace(outcome, seconds=time.perf_counter() - started)


def read_report(path: Path) -> dict[str, Outcome]:
    """Outcomes of a report by slide id, empty when there is none; the last line of a slide counts.

    Raises:
        UserError: The file is no such report.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"out: {path} is not of this command; choose another folder")
        return {row["id"]: _outcome(row) for row in reader if None not in row.values()}


def write_report(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the report under a temporary name first."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *(o.row(name) for name, o in outcomes.items())])
    partial.replace(path)


def _append(path: Path, name: str, outcome: Outcome) -> None:
    """A killed process leaves the slides it had finished in the report."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, outcome.row(name)] if new else [outcome.row(name)])


def _outcome(row: Mapping[str, str]) -> Outcome:
    status: Status = next(
        (known for known in ("ok", "done before", "no tissue") if known == row["status"]), "failed"
    )
    return Outcome(
        status,
        int(row["patches"]) if row["patches"] else None,
        float(row["tissue_share"]) if row["tissue_share"] else None,
        float(row["seconds"] or 0),
        row["error"],
    )


def _die_quietly() -> None:
    """Ctrl-C ends a worker without a traceback; the parent writes the report."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
