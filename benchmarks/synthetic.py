"""Simulated click logs in the shape of Criteo: 13 numbers and 26 categories per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from manyhead.autoint.rows import Rows

FIELDS, NUMBERS = 39, 13
POSITIVES = 0.25
# Exponent that turns uniform draws into ids of which few are frequent and most are rare.
SKEW = 4.0


class Table(NamedTuple):
    """Encoded rows.

    Args:
        index: Ids, int32 `(rows, fields)`: one for each number, then a range per category.
        value: Numbers, and 1 for categories, float32 `(rows, fields)`.
        label: 0 or 1, float32 `(rows,)`.
    """

    index: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    label: npt.NDArray[np.float32]


def table(
    rows: int, features: int, *, fields: int = FIELDS, numbers: int | None = None, seed: int = 0
) -> Table:
    """Draw encoded rows.

    Args:
        rows: Number of rows.
        features: Ids of all fields together.
        fields: Fields of a row.
        numbers: Numerical fields among them; a third when None.
        seed: Of the draws.
    """
    numbers = fields // 3 if numbers is None else numbers
    generator = np.random.default_rng(seed)
    per_field = (features - numbers) // (fields - numbers)
    index = np.empty((rows, fields), dtype=np.int32)
    value = np.ones((rows, fields), dtype=np.float32)
    index[:, :numbers] = np.arange(numbers)
    # Few distinct numbers, as counts on a log scale have.
    value[:, :numbers] = generator.integers(0, 50, (rows, numbers)) / 10
    skewed = generator.random((rows, fields - numbers), dtype=np.float32) ** SKEW
    starts = numbers + per_field * np.arange(fields - numbers, dtype=np.int32)
    index[:, numbers:] = np.minimum((skewed * per_field).astype(np.int32), per_field - 1) + starts
    label = (generator.random(rows) < POSITIVES).astype(np.float32)
    return Table(index, value, label)


def chunks(rows: int, features: int, size: int) -> Iterator[Table]:
    """The same kind of rows, `size` at a time, so that no more than a chunk is in memory."""
    for number, start in enumerate(range(0, rows, size)):
        yield table(min(size, rows - start), features, seed=number)


def batch(drawn: Table, device: torch.device) -> Rows:
    """Rows as the networks take them."""
    count = len(drawn.label)
    return Rows(
        torch.from_numpy(drawn.index).to(device),
        torch.from_numpy(drawn.value).to(device),
        (),
        torch.from_numpy(drawn.label).to(device),
        torch.arange(count, device=device),
        torch.full((count,), -1, dtype=torch.int64, device=device),
    )
