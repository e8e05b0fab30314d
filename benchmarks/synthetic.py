"""Simulated click logs in the shape of Criteo: 13 numbers and 26 categories per row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from manyhead.autoint.parquet import EncodedField, EncodedFields
from manyhead.autoint.rows import Rows
from manyhead.autoint.store import Block, Layout, Store, StoreWriter

FIELDS, NUMBERS = 39, 13
POSITIVES = 0.25
# Exponent that turns uniform draws into ids of which few are frequent and most are rare.
SKEW = 4.0
DRAWN_CHUNKS = 3


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


def encoded_fields(features: int) -> EncodedFields:
    """What the columns of a table are when it is written as encoded Parquet."""
    per_field = (features - NUMBERS) // (FIELDS - NUMBERS)
    numbers = [EncodedField(f"I{n + 1}", "number", n, 1) for n in range(NUMBERS)]
    categories = [
        EncodedField(f"C{n + 1}", "category", NUMBERS + n * per_field, per_field)
        for n in range(FIELDS - NUMBERS)
    ]
    return EncodedFields("label", numbers + categories, features)


def block(drawn: Table, first_row: int = 0) -> Block:
    """Rows as a store takes them."""
    count = len(drawn.label)
    rows = np.arange(first_row, first_row + count)
    groups = np.full(count, -1, dtype=np.int64)
    return Block(drawn.index, drawn.value, (), drawn.label, rows, groups)


def write_store(path: Path, drawn: Table) -> Store:
    """Write rows as a store of encoded rows and open it."""
    with StoreWriter(path, Layout(drawn.index.shape[1])) as writer:
        writer.append(block(drawn))
    return Store(path)


def write_parquet(path: Path, rows: int, features: int, size: int = 2**18) -> None:
    """Write encoded Parquet as other tools do: a column per field, and no other but the label.

    Args:
        path: File to write.
        rows: Number of rows.
        features: Ids of all fields together.
        size: Rows of a row group.
    """
    fields = encoded_fields(features)
    kinds = {"number": pa.float32(), "category": pa.int32()}
    schema = pa.schema([(f.name, kinds[f.kind]) for f in fields.fields] + [("label", pa.int8())])
    with pq.ParquetWriter(path, schema) as writer:
        for drawn in chunks(rows, features, size):
            columns = [
                drawn.value[:, place]
                if field.kind == "number"
                else drawn.index[:, place] - np.int32(field.offset)
                for place, field in enumerate(fields.fields)
            ]
            arrays = [pa.array(column) for column in columns]
            arrays.append(pa.array(drawn.label.astype(np.int8)))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def chunks(rows: int, features: int, size: int) -> Iterator[Table]:
    """The same kind of rows, `size` at a time, so that few chunks are in memory.

    A handful of chunks is drawn and repeated: what is read and written is the same, and drawing
    would take longer than writing.
    """
    drawn = [table(min(size, rows), features, seed=seed) for seed in range(DRAWN_CHUNKS)]
    for number, start in enumerate(range(0, rows, size)):
        chunk = drawn[number % DRAWN_CHUNKS]
        yield Table(*(column[: rows - start] for column in chunk))


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
