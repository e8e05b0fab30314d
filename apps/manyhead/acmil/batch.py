"""Many slides one by one, with what the commands count of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from manyhead_core.data import batch
from manyhead_core.data.batch import REPORT

__all__ = ["REPORT", "Batch", "Outcome", "read_report", "timed", "write_report"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome(batch.Outcome):
    """What has become of a slide.

    Args:
        status: `ok`, `done before`, `no tissue` or `failed`.
        patches: Number of patches, or None.
        tissue_share: Share of the slide that is tissue, 0 to 1, or None.
        seconds: Time that it took.
        error: What went wrong, in one line.
    """

    statuses: ClassVar[tuple[str, ...]] = (*batch.Outcome.statuses, "no tissue")

    patches: int | None = None
    tissue_share: float | None = None


class Batch(batch.Batch[Item]):
    """Work on many slides, see `manyhead_core.data.batch.Batch`."""

    things = "slides"
    outcome = Outcome


def timed(work: Callable[[Item], Outcome], item: Item) -> Outcome:
    """As `manyhead_core.data.batch.timed`, for a slide."""
    found = batch.timed(work, item, Outcome)
    assert isinstance(found, Outcome)  # noqa: S101 - as asked for
    return found


def read_report(path: Path) -> dict[str, Outcome]:
    """As `manyhead_core.data.batch.read_report`, for slides."""
    return batch.read_report(path, Outcome)


def write_report(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """As `manyhead_core.data.batch.write_report`, for slides."""
    batch.write_report(path, outcomes, Outcome)
