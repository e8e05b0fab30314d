"""Any table: CSV or TSV (plain or .gz), Parquet, or a folder of such files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from manyhead.autoint.fields import Schema
from manyhead.autoint.sources.files import (
    CHUNK_ROWS,
    check_columns,
    check_names,
    fingerprint,
    header_of,
    numbered,
    read_text,
)
from manyhead_core.errors import ConfigError, DataError

TEXT = (".csv", ".tsv", ".txt")
PARQUET = (".parquet", ".pq")
DRAFT = "`manyhead autoint inspect --input TABLE --write_schema FILE` drafts one"


class TableSource:
    """Files with a schema, read one after the other in the order of their names.

    Args:
        root: A file, or a folder that is searched with its sub-folders; `name=value` in the name
            of a sub-folder is a column.
        schema: Meaning of the columns.
        labelled: False for new data: the label is not read.
        allow_absent: Leave out columns that a file does not have.
        chunk_rows: Rows at a time.
        base: Folder from which on `name=value` counts, if not `root`.
    """

    format = "table"
    reference_split = ""

    def __init__(
        self,
        root: Path,
        schema: Schema,
        *,
        labelled: bool = True,
        allow_absent: bool = False,
        chunk_rows: int = CHUNK_ROWS,
        base: Path | None = None,
    ) -> None:
        self.root = root
        self.base = base or root
        self.schema = schema
        self.labelled, self.allow_absent = labelled, allow_absent
        self.chunk_rows = chunk_rows
        self.paths = table_files(root)
        self.fingerprint = fingerprint(self.paths, schema)

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Rows in the order of the files."""
        wanted = [
            name
            for name in columns or self.schema.columns
            if self.labelled or name != self.schema.label
        ]
        return numbered(self._files(wanted), self.schema)

    def _files(self, wanted: list[str]) -> Iterator[pd.DataFrame]:
        rows = 0
        for path in self.paths:
            fixed = partition_values(self.base, path)
            present = [*columns_of(path, self.schema), *fixed]
            if not self.allow_absent:
                check_columns(wanted, present, path.name)
            inside = [name for name in wanted if name in present and name not in fixed]
            for frame in read_frames(path, self.schema, inside, self.chunk_rows):
                rows += len(frame)
                yield frame.assign(**{name: fixed[name] for name in wanted if name in fixed})
        if not rows:  # a single empty part among others is what distributed writers leave
            raise DataError(f"{self.root.name}: is empty")


def open_table(root: Path, given: Schema | None, mode: str) -> TableSource:  # noqa: ARG001
    """Open a table with its schema."""
    if given is None:
        raise ConfigError(f"data.schema: the format table needs a schema file; {DRAFT}")
    return TableSource(root, given)


def table_files(root: Path) -> list[Path]:
    """The files of a table, in the order of their names.

    Raises:
        DataError: There is none, or the folder mixes kinds.
    """
    if root.is_file():
        _kind(root)
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: does not exist; pass a table or a folder of tables")
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and _suffix(path) in TEXT + PARQUET and path.name[0] not in "._"
    )
    if not found:
        raise DataError(f"{root}: holds no {', '.join(TEXT + PARQUET)} file")
    kinds = {_kind(path) for path in found}
    if len(kinds) > 1:
        raise DataError(f"{root}: mixes text and Parquet files; keep one kind")
    return found


def columns_of(path: Path, schema: Schema | None = None) -> list[str]:
    """Names of the columns of a file."""
    if _kind(path) == "text":
        if schema is not None and schema.header:
            return list(schema.header)
        return header_of(path, delimiter_of(path, schema))
    names = list(_parquet(path).schema_arrow.names)
    check_names(names, path.name)
    return names


def read_frames(
    path: Path, schema: Schema, columns: Sequence[str], chunk_rows: int = CHUNK_ROWS
) -> Iterator[pd.DataFrame]:
    """Stream columns of one file."""
    if _kind(path) == "text":
        return read_text(path, schema, columns, delimiter_of(path, schema), chunk_rows)
    return read_parquet(path, columns, chunk_rows)


def delimiter_of(path: Path, schema: Schema | None = None) -> str:
    """Delimiter of the schema, or by the ending of the file."""
    if schema is not None and schema.delimiter:
        return schema.delimiter
    return "\t" if _suffix(path) == ".tsv" else ","


def partition_values(root: Path, path: Path) -> dict[str, str]:
    """Columns that the names of the sub-folders give, as in `day=3/part.parquet`."""
    if path == root:
        return {}
    parts = [part.split("=", 1) for part in path.relative_to(root).parts[:-1] if "=" in part]
    return dict(parts)


def read_parquet(path: Path, columns: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
    """Stream columns of a Parquet file."""
    import pyarrow as pa

    file = _parquet(path)
    check_flat(path, columns)
    for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
        # What pandas noted about its own types is in the way of the ones chosen here.
        table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
        for place, column in enumerate(table.itercolumns()):
            # An integer with gaps would become a float and lose the digits of a 64-bit id.
            if pa.types.is_integer(column.type) and column.null_count:
                table = table.set_column(place, table.column_names[place], column.cast(pa.string()))
        yield table.to_pandas()[list(columns)]


def check_flat(path: Path, columns: Sequence[str]) -> None:
    """Refuse columns of a Parquet file that hold records, which are no value of a field.

    Raises:
        DataError: A column holds structures or maps.
    """
    import pyarrow as pa

    kinds = _parquet(path).schema_arrow
    for name in columns:
        kind = kinds.field(name).type
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        if pa.types.is_nested(inner):
            raise DataError(f"{path.name}: column {name!r} holds {kind}; flatten it into columns")


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as err:
        raise DataError(f"{path.name}: is no Parquet file ({' '.join(str(err).split())})") from err


def _suffix(path: Path) -> str:
    suffixes = [part.lower() for part in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _kind(path: Path) -> str:
    suffix = _suffix(path)
    if suffix in PARQUET:
        return "parquet"
    if suffix in TEXT:
        return "text"
    raise DataError(
        f"{path.name}: ends in {suffix or 'nothing'}; known: {', '.join(TEXT + PARQUET)}"
    )
