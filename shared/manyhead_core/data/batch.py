"""Many items one by one: a report of all, a failure costs its item only, a second start goes on.

An item may kill the process that reads it, by a damaged file or for lack of memory. With several
processes, those that were at work then are tried again alone, so that one item is to blame.
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
from dataclasses import dataclass, field, fields, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, UserError

Item = TypeVar("Item")

REPORT = "report.csv"
FAILED, BEFORE = "failed", "done before"
DIED = "the process that read it died, by a damaged file or for lack of memory"


@dataclass(frozen=True)
class Outcome:
    """What has become of an item; a subclass adds what its command counts.

    Args:
        status: `ok`, `done before`, `failed`, or another that `statuses` names.
        seconds: Time that it took.
        error: What went wrong, in one line.
    """

    statuses: ClassVar[tuple[str, ...]] = ("ok", BEFORE, FAILED)

    status: str = "ok"
    seconds: float = field(default=0.0, kw_only=True)
    error: str = field(default="", kw_only=True)

    @classmethod
    def counted(cls) -> list[str]:
        """Names of what the command counts."""
        return [one.name for one in fields(cls) if one.name not in ("status", "seconds", "error")]

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Columns of the report."""
        return ("id", "status", *cls.counted(), "seconds", "error")

    def row(self, name: str) -> tuple[str, ...]:
        """The line of the report, as text."""
        counts = (_text(getattr(self, count)) for count in self.counted())
        return name, self.status, *counts, f"{self.seconds:.1f}", self.error

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Self:
        """The inverse of `row`; an unknown status counts as a failure."""
        status = row["status"] if row["status"] in cls.statuses else FAILED
        counts = {count: _number(row[count]) for count in cls.counted()}
        seconds = float(row["seconds"] or 0)
        return cls(status, **counts, seconds=seconds, error=row["error"])


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _number(text: str) -> float | None:
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


Result = TypeVar("Result", bound=Outcome)


def _never(name: str) -> bool:  # noqa: ARG001
    return False


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """Work on many items.

    Args:
        work: What is done with an item. It raises a `UserError` for one that cannot be used, and
            writes its files under temporary names first. With several `jobs` it goes to other
            processes, so it has to be a function of a module, or a dataclass with `__call__`.
        out: Folder of the results, for `report.csv`.
        doing: What progress calls it, as in `tiling slides`.
        done: Whether an earlier start has finished an item, by its id.
        jobs: Processes at the same time.

    Attributes:
        things: What the items are called.
        outcome: What is known of an item.
    """

    things: ClassVar[str] = "items"
    outcome: ClassVar[type[Outcome]] = Outcome

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
        """Work through the items and write the report.

        Args:
            items: What `work` gets, by the id of the item.
            strict: Whether one failure is enough for exit code 2.

        Returns:
            Exit code: 2 when no item has succeeded.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        before = read_report(self.out / REPORT, self.outcome)
        found = {
            name: replace(before.get(name, self.outcome()), status=BEFORE, error="")
            for name in items
            if self.done(name)
        }
        waiting = {name: item for name, item in items.items() if name not in found}
        if found:
            console.say(f"{len(found)} of {len(items)} {self.things} are done already")
        # Those of earlier starts stay in the report, whatever the list is now.
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
            # A start that was stopped leaves the earlier state of what it did not reach.
            order = dict.fromkeys([*(name for name in before if name not in items), *items])
            left = {name: known[name] for name in order if name in known}
            write_report(self.out / REPORT, left, self.outcome)
        return self._close([known[name] for name in items], strict)

    def _close(self, outcomes: Sequence[Outcome], strict: bool) -> int:
        good = sum(outcome.status in ("ok", BEFORE) for outcome in outcomes)
        failed = sum(outcome.status == FAILED for outcome in outcomes)
        console.result(
            f"written: {self.out} ({good} of {len(outcomes)} {self.things}; see {REPORT})"
        )
        return 2 if good == 0 or (strict and failed) else 0

    def _alone(self, items: Mapping[str, Item]) -> Iterator[tuple[str, Outcome]]:
        for name, item in items.items():
            yield name, timed(self.work, item, self.outcome)

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
                yield name, again or self.outcome(FAILED, error=DIED)

    def _pooled(self, items: Mapping[str, Item], jobs: int) -> Iterator[tuple[str, Outcome | None]]:
        """Outcomes as they come; None for all that were at work when a process died."""
        names = iter(tuple(items))
        others = set(active_children())
        # No fork: libraries that read files hold threads and locks.
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _die_quietly)
        running: dict[Future[Outcome], str] = {}
        try:
            while True:
                while len(running) < jobs and (name := next(names, None)) is not None:
                    running[pool.submit(timed, self.work, items[name], self.outcome)] = name
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


def timed(work: Callable[[Item], Outcome], item: Item, outcome: type[Outcome] = Outcome) -> Outcome:
    """The outcome of an item with the time it took; an error becomes the status `failed`.

    Args:
        work: What is done.
        item: With what.
        outcome: Of a failure.

    Raises:
        UserError: The disk is full, which the next item would not survive either.
    """
    started = time.perf_counter()
    try:
        found = work(item)
    except Exception as err:
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            raise UserError("out: no space is left on the disk; free some and start again") from err
        if os.environ.get("MANYHEAD_DEBUG", "") not in ("", "0"):
            raise
        known = isinstance(err, UserError)
        text = " ".join((str(err) if known else f"{type(err).__name__}: {err}").split())
        found = outcome(FAILED, error=text)
    return replace(found, seconds=time.perf_counter() - started)


def read_report(path: Path, outcome: type[Result] = Outcome) -> dict[str, Result]:  # type: ignore[assignment]
    """Outcomes of a report by id, empty when there is none; the last line of an item counts.

    Args:
        path: Report.
        outcome: What its rows are.

    Raises:
        UserError: The file is no such report.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != outcome.columns():
            raise UserError(f"out: {path} is not of this command; choose another folder")
        return {row["id"]: outcome.from_row(row) for row in reader if None not in row.values()}


def write_report(
    path: Path, outcomes: Mapping[str, Outcome], outcome: type[Outcome] = Outcome
) -> None:
    """Write the report under a temporary name first.

    Args:
        path: Report.
        outcomes: By id.
        outcome: What they are.
    """
    partial = path.with_name(f".{path.name}.partial")
    rows = (known.row(name) for name, known in outcomes.items())
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([outcome.columns(), *rows])
    partial.replace(path)


def _append(path: Path, name: str, outcome: Outcome) -> None:
    """A killed process leaves the items it had finished in the report."""
    row = outcome.row(name)
    rows = [row] if path.is_file() else [outcome.columns(), row]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _die_quietly() -> None:
    """Ctrl-C ends a worker without a traceback; the parent writes the report."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
