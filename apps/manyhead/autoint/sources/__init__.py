"""Raw data sets as streams of tables with the columns of a schema."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from manyhead.autoint.fields import Schema
from manyhead_core.app import find
from manyhead_core.errors import ConfigError

Mode = Literal["default", "reference"]
SOURCES = {
    "movielens-1m": "manyhead.autoint.sources.movielens:open_1m",
    "movielens-100k": "manyhead.autoint.sources.movielens:open_100k",
    "criteo": "manyhead.autoint.sources.criteo:open_criteo",
    "avazu": "manyhead.autoint.sources.avazu:open_avazu",
    "kdd12": "manyhead.autoint.sources.kdd12:open_kdd12",
    "table": "manyhead.autoint.sources.table:open_table",
}


class Source(Protocol):
    """A data set that is read in file order, as often as needed, with bounded memory.

    `format` is the name in `SOURCES`; `fingerprint` changes when the files or the schema change;
    `reference_split` names the split of the published results: `shuffle`, `stratified` or empty.
    """

    format: str
    schema: Schema
    fingerprint: str
    reference_split: str

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Rows in file order, about 200,000 at a time, numbered by the index from 0.

        The label column holds 0.0 and 1.0; rows that the task leaves out are gone and not counted.

        Args:
            columns: Columns to read; None reads all of the schema.
        """
        ...


def open_source(
    format: str, root: Path, schema: Schema | None = None, mode: Mode = "default"
) -> Source:
    """Open raw data.

    Args:
        format: `movielens-1m`, `movielens-100k`, `criteo`, `avazu`, `kdd12` or `table`.
        root: Folder or file of the data.
        schema: Meaning of the columns; needed for `table`, replaces the built-in one elsewhere.
        mode: `reference` insists on the built-in schema.

    Raises:
        UserError: The format is not known.
        ConfigError: A schema is needed or not allowed.
        DataError: Files are missing or not what was expected.
    """
    find(format, SOURCES, "data format")
    if mode == "reference" and (format == "table" or schema is not None):
        raise ConfigError(
            "mode: reference exists for the published data sets with their own fields; "
            "use mode default with a schema or the format table"
        )
    build: Any = pkgutil.resolve_name(SOURCES[format])
    source: Source = build(Path(root), schema, mode)
    return source
