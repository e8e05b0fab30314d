"""Encoded rows on disk: an Arrow IPC file, mapped into memory and read without a copy."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from manyhead.autoint.rows import Rows
from manyhead_core.errors import DataError

FORMAT = 1
# What is read in one piece when rows are drawn in random order: megabytes for disks, yet small
# enough that a window mixes many places of the file.
BLOCK_ROWS = 2**13
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layout:
    """What one encoded row consists of.

    Args:
        singles: Number of single-valued fields.
        slots: Slots of each multi-valued field, in token order.
    """

    singles: int
    slots: tuple[int, ...] = ()

    def row_bytes(self) -> int:
        """Bytes of one row: ids and numbers of 4 bytes, label, row number and group."""
        return 8 * (self.singles + sum(self.slots)) + 4 + 8 + 8


class Block(NamedTuple):
    """Encoded rows as arrays, in the order of `Rows`.

    Args:
        index: Dictionary ids, int32, `(rows, singles)`.
        value: Values, float32, `(rows, singles)`.
        lists: For each multi-valued field its ids and weights, `(rows, slots)`.
        label: 0 or 1, float32, `(rows,)`.
        row: Row number in the source, int64, `(rows,)`.
        group: Group of the row, -1 for none, int64, `(rows,)`.
    """

    index: Array  # type: ignore[assignment]  # tuple has a method of this name
    value: Array
    lists: tuple[tuple[Array, Array], ...]
    label: Array
    row: Array
    group: Array


def columns(block: Block | Rows) -> list[Any]:
    """The columns of a block in the order of the file."""
    pairs = [column for pair in block.lists for column in pair]
    return [block.index, block.value, *pairs, block.label, block.row, block.group]


def from_columns(parts: Sequence[Tensor]) -> Rows:
    """The inverse of `columns`."""
    pairs = tuple(zip(parts[2:-3:2], parts[3:-3:2], strict=True))
    return Rows(parts[0], parts[1], pairs, *parts[-3:])


def schema(layout: Layout, block_rows: int = BLOCK_ROWS) -> pa.Schema:
    """Arrow schema of a store.

    Args:
        layout: What a row consists of.
        block_rows: Rows of a record batch; only the last one may be shorter.
    """
    names = ["index", "value"]
    widths = [layout.singles, layout.singles]
    for number, slots in enumerate(layout.slots):
        names += [f"ids_{number}", f"weights_{number}"]
        widths += [slots, slots]
    kinds = [pa.int32(), pa.float32()] * (len(names) // 2)
    fields = [
        pa.field(name, pa.list_(kind, width), nullable=False)
        for name, kind, width in zip(names, kinds, widths, strict=True)
    ]
    scalars = {"label": pa.float32(), "row": pa.int64(), "group": pa.int64()}
    fields += [pa.field(name, kind, nullable=False) for name, kind in scalars.items()]
    about = {"format": FORMAT, "block_rows": block_rows, **asdict(layout)}
    return pa.schema(fields, metadata={"manyhead": json.dumps(about)})


class StoreWriter:
    """Write a store; the file appears under its name when it is complete.

    Args:
        path: File to write.
        layout: What a row consists of.
        block_rows: Rows of a record batch.
    """

    def __init__(self, path: Path, layout: Layout, block_rows: int = BLOCK_ROWS) -> None:
        self.path, self.layout, self.block_rows = Path(path), layout, block_rows
        self.rows = 0
        self.positives = 0
        self._schema = schema(layout, block_rows)
        self._pending: list[Block] = []
        self._waiting = 0
        self._partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._file = pa.ipc.new_file(self._sink, self._schema)

    def append(self, block: Block) -> None:
        """Add rows; full record batches go to the file at once."""
        if not len(block.label):
            return
        self._pending.append(block)
        self._waiting += len(block.label)
        self.rows += len(block.label)
        self.positives += int(np.count_nonzero(block.label))
        if self._waiting >= self.block_rows:
            self._write(self._waiting // self.block_rows * self.block_rows)

    def close(self) -> None:
        """Write what is left and give the file its name."""
        if self._waiting:
            self._write(self._waiting)
        self._release()
        self._partial.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self._release()
        self._partial.unlink(missing_ok=True)

    def _release(self) -> None:
        self._file.close()
        self._sink.close()

    def _write(self, count: int) -> None:
        parts = zip(*(columns(block) for block in self._pending), strict=True)
        joined = [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]
        arrays = [
            _arrow(np.ascontiguousarray(column[:count]), field)
            for column, field in zip(joined, self._schema, strict=True)
        ]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._file.write_table(table, max_chunksize=self.block_rows)
        rest = [column[count:].copy() for column in joined]
        self._waiting -= count
        pairs = tuple(zip(rest[2:-3:2], rest[3:-3:2], strict=True))
        self._pending = [Block(rest[0], rest[1], pairs, *rest[-3:])] if self._waiting else []


def _arrow(column: Array, field: pa.Field) -> pa.Array:
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array(column, field.type)
    values = pa.array(column.reshape(-1), field.type.value_type)
    # A type built from the array alone would call its items nullable.
    return pa.FixedSizeListArray.from_arrays(values, type=field.type)


class Store:
    """A store, mapped into memory: a block is a view of the file.

    The mapping is private and copies a page on writing. A tensor may then share its memory
    without torch's warning about read-only arrays, and no tensor can change the file.

    Args:
        path: File of `StoreWriter`.

    Raises:
        DataError: The file is missing, is no store, or is of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file, self._memory = _open(self.path)
        about = _about(self._file.schema, self.path)
        self.layout = Layout(about["singles"], tuple(about["slots"]))
        self.block_rows: int = about["block_rows"]
        self.num_blocks: int = self._file.num_record_batches
        self._base: int = pa.py_buffer(self._memory).address
        last: int = self._file.get_batch(self.num_blocks - 1).num_rows if self.num_blocks else 0
        self._rows: int = max(self.num_blocks - 1, 0) * self.block_rows + last

    def __len__(self) -> int:
        return self._rows

    def block_size(self, number: int) -> int:
        """Rows of one block."""
        return min(self.block_rows, self._rows - number * self.block_rows)

    def block(self, number: int) -> Rows:
        """Rows of one record batch, as views of the file."""
        batch = self._file.get_batch(number)
        return from_columns([self._view(column) for column in batch.columns])

    def blocks(self) -> Iterator[Rows]:
        """All blocks in file order."""
        return (self.block(number) for number in range(self.num_blocks))

    def _view(self, column: pa.Array) -> Tensor:
        shape: tuple[int, ...] = (len(column),)
        if pa.types.is_fixed_size_list(column.type):
            shape += (column.type.list_size,)
            column = column.values
        kind = {4: torch.float32, 8: torch.int64}[column.type.bit_width // 8]
        if pa.types.is_int32(column.type):
            kind = torch.int32
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=kind)
        offset = column.buffers()[1].address - self._base
        offset += column.offset * column.type.bit_width // 8
        view = torch.frombuffer(self._memory, dtype=kind, count=count, offset=offset)
        return view.view(shape)


def _open(path: Path) -> tuple[Any, mmap.mmap]:
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return pa.ipc.open_file(pa.py_buffer(memory)), memory
    except OSError as err:
        raise DataError(
            f"{path}: cannot be read ({err.strerror or 'no store'}); encode it again"
        ) from err
    except (pa.ArrowInvalid, ValueError) as err:
        raise DataError(f"{path}: no complete store of encoded rows; encode it again") from err


def _about(found: pa.Schema, path: Path) -> dict[str, Any]:
    written = (found.metadata or {}).get(b"manyhead")
    if written is None:
        raise DataError(f"{path}: no store of encoded rows; encode it again")
    about: dict[str, Any] = json.loads(written)
    if about["format"] > FORMAT:
        raise DataError(
            f"{path}: format {about['format']} is newer than this version reads "
            f"({FORMAT}); update manyhead or encode it again"
        )
    layout = Layout(about["singles"], tuple(about["slots"]))
    if not found.equals(schema(layout, about["block_rows"])):
        raise DataError(f"{path}: the columns do not fit the header; encode it again")
    return about
