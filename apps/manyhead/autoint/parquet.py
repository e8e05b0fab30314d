"""Encoded Parquet: one column a field, beside a feature_map.json that says what the columns are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manyhead.autoint.feature_map import MAP_FILE, EncodedField, EncodedFields
from manyhead.autoint.store import Array, Block
from manyhead_core.errors import DataError

# Rows that are laid side by side at a time: the matrix of so many rows stays in the cache.
TILE_ROWS = 8192
BATCH_ROWS = 65_536
# Columns beside the fields that this suite writes.
ROW, GROUP = "manyhead_row", "manyhead_group"


class EncodedReader:
    """Stream encoded Parquet with bounded memory.

    Args:
        files: Parquet files, read one after the other.
        fields: What their columns are.
        batch_rows: Rows of a block.
        first_row: Row number of the first row, where the files have no row numbers.

    Raises:
        DataError: A file is missing or unreadable, lacks columns, or holds impossible ids.
    """

    def __init__(
        self,
        files: Sequence[Path],
        fields: EncodedFields,
        batch_rows: int = BATCH_ROWS,
        first_row: int = 0,
    ) -> None:
        self.files, self.fields, self.batch_rows = list(files), fields, batch_rows
        self.first_row = first_row
        for file in self.files:
            self._check(file)

    def __len__(self) -> int:
        return sum(_parquet(file).metadata.num_rows for file in self.files)

    def __iter__(self) -> Iterator[Block]:
        row = self.first_row
        with ThreadPoolExecutor(1, "parquet") as pool:
            for file in self.files:
                for batch in _ahead(pool, self._batches(file)):
                    yield self._block(batch, file, row)
                    row += batch.num_rows

    def _batches(self, file: Path) -> Iterator[pa.RecordBatch]:
        opened = _parquet(file)
        wanted = [self.fields.label, *self.fields.field_names]
        wanted += [name for name in (ROW, GROUP) if name in opened.schema_arrow.names]
        # Arrow's own read-ahead over row groups would hold many of them.
        yield from opened.iter_batches(self.batch_rows, columns=wanted, use_threads=False)

    def _check(self, file: Path) -> None:
        kinds = {field.name: field.type for field in _parquet(file).schema_arrow}
        missing = [n for n in [self.fields.label, *self.fields.field_names] if n not in kinds]
        if missing:
            raise DataError(
                f"{file}: has no column {', '.join(missing[:5])}; {MAP_FILE} names it, "
                f"the file has {', '.join(list(kinds)[:8])}"
            )
        for field in self.fields.fields:
            kind = kinds[field.name]
            if field.kind == "list":
                fits = pa.types.is_list(kind) or pa.types.is_large_list(kind)
                fits = fits or pa.types.is_fixed_size_list(kind)
            else:
                fits = pa.types.is_integer(kind)
                fits = fits or (field.kind == "number" and pa.types.is_floating(kind))
            if not fits:
                raise DataError(
                    f"{file}: column {field.name} is {kind}, {MAP_FILE} calls it a {field.kind}; "
                    "encode it as int32 ids, float32 numbers or lists of int32"
                )

    def _block(self, batch: pa.RecordBatch, file: Path, row: int) -> Block:
        count = batch.num_rows
        index, value = self._singles(batch, file)
        lists = tuple(_list(batch, field, file) for field in self.fields.lists)
        names = batch.schema.names
        rows = _array(batch.column(ROW)) if ROW in names else np.arange(row, row + count)
        groups = _array(batch.column(GROUP)) if GROUP in names else np.full(count, -1)
        label = _label(batch.column(self.fields.label), file, self.fields.label)
        return Block(index, value, lists, label, _int64(rows), _int64(groups))

    def _singles(self, batch: pa.RecordBatch, file: Path) -> tuple[Array, Array]:
        columns = [(f, *_single(batch.column(f.name), f, file)) for f in self.fields.singles]
        index = np.empty((batch.num_rows, len(columns)), np.int32)
        value = np.ones((batch.num_rows, len(columns)), np.float32)
        for start in range(0, batch.num_rows, TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            for place, (field, ids, numbers) in enumerate(columns):
                if ids is None:
                    index[tile, place] = field.offset
                else:
                    np.add(ids[tile], field.offset, out=index[tile, place], casting="unsafe")
                if numbers is not None:
                    value[tile, place] = numbers[tile]
        return index, value


def _ahead(pool: ThreadPoolExecutor, batches: Iterator[Any]) -> Iterator[Any]:
    """The same items; the next one is read while one is being used."""
    coming: Future[Any] = pool.submit(next, batches, None)
    while (batch := coming.result()) is not None:
        coming = pool.submit(next, batches, None)
        yield batch


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as err:
        reason = str(err).splitlines()[0]
        raise DataError(f"{file}: cannot be read as Parquet: {reason}") from err


def _array(column: pa.Array) -> Array:
    found: Array = column.to_numpy(zero_copy_only=False)
    return found


def _int64(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.int64)


def _label(column: pa.Array, file: Path, name: str) -> Array:
    label = _array(column).astype(np.float32)
    if not np.isin(label, (0.0, 1.0)).all():
        raise DataError(f"{file}: column {name} holds other labels than 0 and 1")
    return label


def _single(column: pa.Array, field: EncodedField, file: Path) -> tuple[Any, Any]:
    """Ids of a column (None for a number) and its values (None where all are 1)."""
    present = None
    if column.null_count:
        present = _array(column.is_valid())
        column = column.fill_null(0)
    found = _array(column)
    if field.kind == "number":
        numbers = found.astype(np.float32)
        real = np.isfinite(numbers)
        present = real if present is None else present & real
        return None, numbers if present.all() else np.where(present, numbers, np.float32(0))
    _check_ids(found, field, file)
    if field.padding is not None:
        real = found != field.padding
        present = real if present is None else present & real
    return found, present


def _check_ids(ids: Array, field: EncodedField, file: Path) -> None:
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= field.size:
        wrong = low if low < 0 else high
        raise DataError(
            f"{file}: column {field.name} holds id {wrong}, outside 0..{field.size - 1} "
            f"(vocab_size {field.size} in {MAP_FILE}); encode it again or mend the map"
        )


def _list(batch: pa.RecordBatch, field: EncodedField, file: Path) -> tuple[Array, Array]:
    """Ids and weights of a list column, `(rows, slots)`; longer lists keep their first values."""
    column = batch.column(field.name)
    count = len(column)
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    lengths = _array(column.value_lengths().fill_null(0)).astype(np.int64)
    flat = _array(column.flatten().fill_null(field.padding or 0))
    _check_ids(flat, field, file)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(count), lengths)
    slot = np.arange(len(flat)) - np.repeat(starts, lengths)
    keep = slot < field.slots
    ids = np.full((count, field.slots), field.offset, np.int32)
    weights = np.zeros((count, field.slots), np.float32)
    ids[owner[keep], slot[keep]] = flat[keep] + field.offset
    real = np.ones(len(flat), bool) if field.padding is None else flat != field.padding
    weights[owner[keep], slot[keep]] = real[keep]
    return ids, weights


class EncodedWriter:
    """Write one part of encoded data as Parquet; the file appears when it is complete.

    Args:
        path: File to write, such as `train.parquet`.
        fields: What the columns are.
    """

    def __init__(self, path: Path, fields: EncodedFields) -> None:
        self.path, self.fields = Path(path), fields
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._file: pq.ParquetWriter | None = None

    def append(self, block: Block) -> None:
        """Add rows as one row group."""
        columns: dict[str, pa.Array] = {self.fields.label: pa.array(block.label)}
        for place, field in enumerate(self.fields.singles):
            value = block.value[:, place]
            if field.kind == "number":
                columns[field.name] = pa.array(value)
            else:
                ids = block.index[:, place] - np.int32(field.offset)
                columns[field.name] = pa.array(ids, mask=value == 0)
        for field, (ids, weights) in zip(self.fields.lists, block.lists, strict=True):
            columns[field.name] = _ragged(ids - np.int32(field.offset), weights)
        columns |= {ROW: pa.array(block.row), GROUP: pa.array(block.group)}
        batch = pa.table(columns)
        if self._file is None:
            self._file = pq.ParquetWriter(self._partial, batch.schema)
        self._file.write_table(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if kind is not None:
            self._partial.unlink(missing_ok=True)
        elif self._partial.exists():
            self._partial.replace(self.path)


def _ragged(ids: Array, weights: Array) -> pa.ListArray:
    used = weights != 0
    ends = np.concatenate([[0], np.cumsum(used.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(ids[used].astype(np.int32)))
