"""Sources that are one delimited text file with fixed columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from manyhead.autoint.fields import Schema
from manyhead.autoint.sources.files import fingerprint, numbered, read_text


class TextSource:
    """One text file, plain or .gz, streamed.

    Args:
        format: Name of the source.
        path: The file.
        schema: Meaning of the columns.
        delimiter: Between the columns.
        chunk_rows: Rows at a time.
    """

    reference_split = "stratified"

    def __init__(
        self, format: str, path: Path, schema: Schema, delimiter: str, chunk_rows: int = 200_000
    ) -> None:
        self.format = format
        self.path = path
        self.schema = schema
        self.delimiter = delimiter
        self.chunk_rows = chunk_rows
        self.fingerprint = fingerprint([path], schema)

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Rows in file order."""
        wanted = list(columns or self.schema.columns)
        frames = read_text(self.path, self.schema, wanted, self.delimiter, self.chunk_rows)
        return numbered(frames, self.schema)
