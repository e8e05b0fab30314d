"""Score raw rows with saved weights: a table of any size, or a folder of tables as a batch."""

from __future__ import annotations

import csv
import dataclasses
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import nn

from manyhead.autoint.encoder import Encoded, Encoder
from manyhead.autoint.fields import Schema
from manyhead.autoint.interactions import logits
from manyhead.autoint.rows import Rows
from manyhead.autoint.sources import open_source
from manyhead.autoint.sources.files import open_text
from manyhead.autoint.sources.table import TableSource, delimiter_of, table_files
from manyhead.autoint.sources.text import TextSource
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError, UserError, WeightsError
from manyhead_core.evaluate.calibration import Temperature
from manyhead_core.hub.loading import load_weights

Format = Literal["table", "movielens-1m", "movielens-100k", "criteo", "avazu", "kdd12"]
SUFFIXES = (".csv", ".parquet")
ENDING = re.compile(r"\.(csv|tsv|txt|parquet|pq)(\.gz)?$", re.IGNORECASE)
# A field with more unknown values than this is mentioned: the model knows little about such rows.
NOTED_UNSEEN = 0.05


@dataclasses.dataclass
class Scorer:
    """A network with the encoder it was trained with.

    Args:
        net: Any network of this app, in evaluation mode.
        encoder: Fitted encoder.
        calibration: What `calibrate` has fitted, or None.
        format: How new data lie on disk: `table`, or the raw files of a published data set.
        allow_missing: Take an absent column for a column of missing values.
        batch_size: Rows at a time.
    """

    net: nn.Module
    encoder: Encoder
    calibration: Temperature | None = None
    format: str = "table"
    allow_missing: bool = False
    batch_size: int = 8192

    @classmethod
    def load(cls, app: App, weights: str | Path, **options: Any) -> Scorer:
        """Take weights folder, checkpoint or run folder; see `load_weights`."""
        loaded = load_weights(app, weights)
        meta, tensors = loaded.need_preprocessor()
        if "schema" not in meta:
            raise WeightsError(
                f"weights: {loaded.source} was trained on encoded data and cannot encode raw rows; "
                "use the model from Python"
            )
        fitted = meta.get("calibration")
        calibration = None if fitted is None else Temperature(**fitted)
        return cls(loaded.net, Encoder.from_state(meta, tensors), calibration, **options)

    def chunks(
        self, path: Path, *, labelled: bool = False, base: Path | None = None
    ) -> Iterator[pd.DataFrame]:
        """New data: the columns of the fields, the one that names rows, and the label if wanted.

        Args:
            path: Table, or file or folder of raw data.
            labelled: Whether to read the label, which need not be there otherwise.
            base: Folder that `path` belongs to; the names of its sub-folders give columns.
        """
        schema = self.encoder.schema
        # Group, time and segments are for splits and evaluation; new data may lack them.
        wanted = [column for field in schema.fields for column in field.columns]
        wanted += [
            column for column in (schema.row_id, schema.label if labelled else None) if column
        ]
        wanted = list(dict.fromkeys(wanted))
        if self.format != "table":
            source = open_source(self.format, path)
            if not labelled and isinstance(source, TextSource):
                source.schema = without_label(source.schema, source.path, source.delimiter)
            return source.chunks(wanted)
        first = table_files(path)[0]
        if not labelled and schema.header:
            schema = without_label(schema, first, delimiter_of(first, schema))
        absent = self.allow_missing
        return TableSource(path, schema, labelled=labelled, allow_absent=absent, base=base).chunks(
            wanted
        )

    def rows(self, frame: pd.DataFrame) -> Rows:
        """Encode raw rows."""
        absent: Literal["error", "missing"] = "missing" if self.allow_missing else "error"
        return as_rows(self.encoder.transform(frame, absent=absent), frame, self.encoder)

    def score(self, frame: pd.DataFrame) -> np.ndarray:
        """Click probabilities, `(rows,)` float64."""
        scores: np.ndarray = expit(logits(self.net, self.rows(frame), self.batch_size))
        return scores


def as_rows(encoded: Encoded, frame: pd.DataFrame, encoder: Encoder) -> Rows:
    """Encoded arrays as tensors; rows without a label get NaN."""
    label = frame.get(encoder.schema.label)
    labels = (
        np.full(len(frame), np.nan)
        if label is None
        else label.to_numpy(dtype=np.float64, copy=True)
    )
    return Rows(
        torch.from_numpy(encoded.index),
        torch.from_numpy(encoded.value),
        tuple((torch.from_numpy(ids), torch.from_numpy(w)) for ids, w in encoded.lists),
        torch.from_numpy(labels).float(),
        torch.from_numpy(frame.index.to_numpy(dtype=np.int64).copy()),
        torch.full((len(frame),), -1, dtype=torch.int64),
    )


def predict(
    app: App,
    weights: str,
    input: Path,
    out: Path,
    format: Format = "table",
    allow_missing: bool = False,
    batch_size: int = 8192,
    strict: bool = False,
) -> int:
    """Write the click probability of every raw row.

    Rows are streamed; the encoder comes with the weights. A folder as `out` scores the files of
    the folder `input` one by one, goes on after a failure, lists all in report.csv and skips what
    an earlier start has done. Weights of a run that `calibrate` has seen give a second column.

    Args:
        app: The app.
        weights: Weights folder, run folder, checkpoint file or hub id.
        input: CSV, TSV or Parquet file, or a folder of them, with the columns of the training data.
        out: File ending in .csv or .parquet, or a folder for one file each.
        format: How the input lies on disk: `table`, or the raw files of a published data set.
        allow_missing: Accept tables without some columns; their values count as missing.
        batch_size: Rows scored at a time.
        strict: In a batch of files, fail when one of them did.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: must be at least 1, got {batch_size}")
    if out.suffix and out.suffix not in SUFFIXES:
        raise ConfigError(f"out: {out} must end in .csv or .parquet, or be a folder")
    if out.is_file():
        raise UserError(f"out: {out} exists; choose another name")
    if format != "table" and not out.suffix:
        raise ConfigError(f"out: {out} is a folder; --format {format} needs one file, as {out}.csv")
    scorer = Scorer.load(
        app, weights, format=format, allow_missing=allow_missing, batch_size=batch_size
    )
    if out.suffix:
        count = score_table(scorer, input, out)
        console.result(f"written: {out} ({count:,} rows)")
        return 0
    return _score_folder(scorer, input, out, strict)


def score_table(scorer: Scorer, source: Path, out: Path, base: Path | None = None) -> int:
    """Score one table, or a folder as one table, into one file.

    Args:
        scorer: Network and encoder.
        source: File or folder.
        out: File ending in .csv or .parquet; appears when it is complete.
        base: Folder that `source` belongs to; the names of its sub-folders give columns.

    Returns:
        Number of rows.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    unseen = _Unseen(scorer.encoder)
    rows = 0
    try:
        with _Writer(part, out.suffix) as writer:
            for frame in _scored(scorer, scorer.chunks(source, base=base), unseen):
                writer.write(frame)
                rows += len(frame)
                console.say(f"scored {rows:,} rows")
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    unseen.note()
    return rows


def _scored(
    scorer: Scorer, frames: Iterator[pd.DataFrame], unseen: _Unseen
) -> Iterator[pd.DataFrame]:
    row_id = scorer.encoder.schema.row_id
    for frame in frames:
        unseen.add(frame)
        names = frame[row_id] if row_id and row_id in frame else frame.index
        found = pd.DataFrame({"id": np.asarray(names), "score": scorer.score(frame)})
        if scorer.calibration is not None:
            found["score_calibrated"] = scorer.calibration.apply(found["score"].to_numpy())
        yield found


def _score_folder(scorer: Scorer, folder: Path, out: Path, strict: bool) -> int:
    files = table_files(folder)
    targets = _targets(files, folder)
    out.mkdir(parents=True, exist_ok=True)
    report = []
    for path in console.progress(files, "scoring files"):
        inside = path.relative_to(folder) if path != folder else Path(path.name)
        target = out / targets[path]
        started = time.perf_counter()
        status, remark = "done before", ""
        if not target.exists():
            try:
                status, remark = "ok", f"{score_table(scorer, path, target, folder)} rows"
            except DataError as err:
                status, remark = "failed", str(err)
                console.error(f"{inside}: {remark}")
        report.append((str(inside), status, f"{time.perf_counter() - started:.1f}", remark))
    with (out / "report.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "status", "seconds", "remark"), *report])
    failed = sum(1 for row in report if row[1] == "failed")
    console.result(f"written: {out} ({len(files) - failed} of {len(files)} files; see report.csv)")
    return 2 if failed == len(files) or (strict and failed) else 0


def _targets(files: list[Path], folder: Path) -> dict[Path, str]:
    """A name of its own for the scores of every file: without its ending, unless two are alike."""
    names = {p: p.name if p == folder else "-".join(p.relative_to(folder).parts) for p in files}
    stems = {p: ENDING.sub("", name) for p, name in names.items()}
    alike = Counter(stems.values())
    targets = {p: f"{names[p] if alike[stems[p]] > 1 else stems[p]}.csv" for p in files}
    for target, count in Counter([*targets.values(), "report.csv"]).items():
        if count > 1:
            raise DataError(f"input: two files would both give {target}; rename one of them")
    return targets


class _Writer:
    """Appends frames to a CSV or Parquet file."""

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        self.file: Any = None

    def __enter__(self) -> _Writer:
        return self

    def write(self, frame: pd.DataFrame) -> None:
        if self.suffix == ".csv":
            first = self.file is None
            if first:
                self.file = self.path.open("w", newline="", encoding="utf-8")
            frame.to_csv(self.file, index=False, header=first)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(frame, preserve_index=False)
        if self.file is None:
            self.file = pq.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()


class _Unseen:
    """Shares of values that the encoder does not know, over all chunks."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.sums: dict[str, float] = {}
        self.rows = 0

    def add(self, frame: pd.DataFrame) -> None:
        for name, share in self.encoder.unseen(frame).items():
            self.sums[name] = self.sums.get(name, 0.0) + (0 if np.isnan(share) else share) * len(
                frame
            )
        self.rows += len(frame)

    def note(self) -> None:
        shares = {name: total / max(1, self.rows) for name, total in self.sums.items()}
        for name, share in shares.items():
            if share > NOTED_UNSEEN:
                console.say(f"note: {share:.0%} of the values of {name} were not seen in training")


def without_label(schema: Schema, path: Path, delimiter: str) -> Schema:
    """The schema of files without header line, when the new ones lack the label column."""
    with open_text(path, "utf-8-sig") as file:
        columns = len(next(csv.reader(file, delimiter=delimiter), []))
    if columns != len(schema.header) - 1:
        return schema
    header = tuple(name for name in schema.header if name != schema.label)
    return dataclasses.replace(schema, header=header)
