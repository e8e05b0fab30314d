"""Avazu click-through rate (Kaggle 2014): 22 categories, an hour and a row id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources.files import find_file
from manyhead.autoint.sources.text import TextSource
from manyhead_core.errors import DataError

COLUMNS = (
    "id", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id",
    "app_domain", "app_category", "device_id", "device_ip", "device_model", "device_type",
    "device_conn_type", "C14", "C15", "C16", "C17", "C18", "C19", "C20", "C21",
)  # fmt: skip
DERIVED = ("hour_of_day", "weekday")


class AvazuSource(TextSource):
    """The training file; hour of day and weekday are derived from `hour`, written YYMMDDHH."""

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Rows in file order."""
        wanted = list(columns or self.schema.columns)
        read = [name for name in wanted if name not in DERIVED]
        if len(read) < len(wanted) and "hour" not in read:
            read.append("hour")
        for frame in super().chunks(read):
            if len(read) < len(wanted):
                hour = frame["hour"].astype(str)
                times = pd.to_datetime(hour, format="%y%m%d%H", errors="coerce")
                if times.isna().any():
                    wrong = hour[times.isna()]
                    raise DataError(
                        f"column hour, row {wrong.index[0]}: {wrong.iloc[0]!r} is not of the form "
                        "YYMMDDHH"
                    )
                frame = frame.assign(hour_of_day=times.dt.hour, weekday=times.dt.day_of_week)
            yield frame[wanted]


def open_avazu(root: Path, given: Schema | None, mode: str) -> AvazuSource:
    """Open train.csv, a sample of it, or the folder that holds one of them.

    The published preprocessing takes all 23 columns as fields, the unique row id and the raw hour
    among them. By default neither is a field: a model cannot use an id it will never see again.
    """
    path = find_file(root, "*train*.csv" if _has(root, "*train*.csv*") else "avazu*", "Avazu")
    return AvazuSource("avazu", path, given or schema(mode == "reference"), ",")


def schema(reference: bool = False) -> Schema:
    """Fields of the published preprocessing, or of the default one."""
    names = COLUMNS if reference else (*DERIVED, *COLUMNS[2:])
    fields = tuple(Field(name, "category") for name in names)
    return Schema("click", fields, row_id="id", time="hour")


def _has(root: Path, pattern: str) -> bool:
    return root.is_dir() and any(root.glob(pattern))
