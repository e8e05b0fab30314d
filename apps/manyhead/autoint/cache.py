"""Encoded data that are built once and found again by what they were made of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from manyhead.autoint import store as stores
from manyhead.autoint.encoder import Encoded, Encoder
from manyhead.autoint.encoding import group_ids
from manyhead.autoint.feature_map import EncodedFields
from manyhead.autoint.fields import Schema
from manyhead.autoint.parquet import EncodedReader
from manyhead.autoint.store import Array, Block, Layout, Store, StoreWriter
from manyhead_core.cli import console
from manyhead_core.errors import DataError

FORMAT = 1
PARTS = ("train", "validation", "test")
META = "cache.json"
STALE_SECONDS = 3600
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
AnyEncoder = Encoder | EncodedFields


class Cache:
    """A finished folder of encoded data.

    Args:
        folder: Folder that `built_once` returned.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.meta: dict[str, Any] = json.loads((self.folder / META).read_text(encoding="utf-8"))

    def rows(self, part: str) -> int:
        """Rows of a part."""
        return int(self.meta["rows"][part])

    def store(self, part: str) -> Store:
        """The encoded rows of a part."""
        return Store(self.folder / f"{part}.arrow")

    def segments(self, part: str) -> pd.DataFrame:
        """Segment columns of a part as text, by row number."""
        path = self.folder / f"{part}-segments.parquet"
        if not path.is_file():
            return pd.DataFrame(index=pd.Index([], name="row"))
        table: pd.DataFrame = pq.read_table(path).to_pandas()
        return table.set_index("row")

    def preprocessor(self) -> AnyEncoder:
        """The encoder that made the rows."""
        return load_encoder(self.folder)


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Name of the folder for data made in this way, and with this version of the format."""
    content = {"cache": FORMAT, "store": stores.FORMAT, **recipe}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def built_once(root: Path, name: str, build: Callable[[Path], None]) -> Cache:
    """The folder `root/name`, built if it does not exist.

    It is built under another name and renamed when complete, so an interrupted build is never
    mistaken for data. Of several processes on a machine the first one builds, the others wait.

    Args:
        root: Folder of all caches.
        name: What `fingerprint` gave.
        build: Fills an empty folder.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = Path(root) / name
    if not (folder / META).is_file():
        if _is_first():
            _build(folder, build)
        else:
            _wait(folder)
    return Cache(folder)


def _is_first() -> bool:
    """Whether this is the first process on its machine; others may not share the disk."""
    names = ("LOCAL_RANK", "SLURM_LOCALID")
    return not any(os.environ.get(name, "0") != "0" for name in names)


def _wait(folder: Path) -> None:
    console.say(f"waiting for the first process to encode the data in {folder}")
    while not (folder / META).is_file():
        time.sleep(0.2)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.building-", dir=folder.parent))
    except OSError as err:
        raise _unwritable(folder.parent, err) from err
    try:
        build(work)
        _publish(work, folder)
    except OSError as err:
        if err.errno in FULL:
            raise _unwritable(folder.parent, err) from err
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, folder: Path) -> None:
    work.chmod(0o755)  # mkdtemp makes it private
    try:
        work.rename(folder)
    except OSError:
        if not (folder / META).is_file():  # else another run has built the same meanwhile
            raise


def _unwritable(folder: Path, err: OSError) -> DataError:
    reason = err.strerror or str(err)
    return DataError(
        f"data.cache: cannot write {folder}: {reason}; pass another folder with --data.cache"
    )


def _remove_stale(parent: Path) -> None:
    """Remove what killed builds have left; a living one has written within the hour."""
    for work in parent.glob("*.building-*"):
        times = [path.stat().st_mtime for path in (work, *work.glob("*"))]
        if time.time() - max(times) > STALE_SECONDS:
            shutil.rmtree(work, ignore_errors=True)


def encode_rows(
    folder: Path,
    encoded: Iterable[tuple[pd.DataFrame, Encoded]],
    encoder: Encoder,
    schema: Schema,
    split: Array,
) -> None:
    """Write the parts of a raw data set.

    Args:
        folder: Empty folder.
        encoded: Raw rows with their encoding, in file order.
        encoder: What has encoded them.
        schema: Columns of label, group and segments.
        split: Part of every row: 0 train, 1 validation, 2 test, -1 none; int8 `(rows,)`.
    """
    layout = Layout(len(encoder.field_names) - len(encoder.list_slots), encoder.list_slots)
    done = 0
    with _Parts(folder, layout, schema.segments) as parts:
        for frame, block in _shown(encoded, len(split)):
            here = split[done : done + len(frame)]
            label = frame[schema.label].to_numpy(np.float32)
            rows = np.arange(done, done + len(frame))
            groups = group_ids(frame, schema.group)
            whole = Block(block.index, block.value, block.lists, label, rows, groups)
            for number, part in enumerate(PARTS):
                chosen = np.flatnonzero(here == number)
                parts.append(part, take(whole, chosen), frame.iloc[chosen])
            done += len(frame)
        if done != len(split):
            raise DataError(f"data.split: covers {len(split)} rows, the data have {done}")
        parts.finish()
    save_encoder(folder, encoder)


def copy_rows(folder: Path, files: Mapping[str, list[Path]], fields: EncodedFields) -> None:
    """Write the parts of a data set that comes encoded.

    Args:
        folder: Empty folder.
        files: Parquet files of each part.
        fields: What their columns are.
    """
    first = 0
    with _Parts(folder, fields.layout, ()) as parts:
        for part in PARTS:
            reader = EncodedReader(files.get(part, []), fields, first_row=first)
            count = len(reader)
            blocks = ((pd.DataFrame(), block) for block in reader)
            for frame, block in _shown(blocks, count, part):
                parts.append(part, block, frame)
            first += count
        parts.finish()
    save_encoder(folder, fields)


def take(block: Block, chosen: Array) -> Block:
    """Some rows of a block."""
    if len(chosen) == len(block.label):
        return block
    lists = tuple((ids[chosen], weights[chosen]) for ids, weights in block.lists)
    label, row, group = (column[chosen] for column in block[3:])
    return Block(block.index[chosen], block.value[chosen], lists, label, row, group)


class _Parts:
    """The files of all parts while they are written."""

    def __init__(self, folder: Path, layout: Layout, segments: tuple[str, ...]) -> None:
        self.folder, self.segments = folder, list(segments)
        self._open = ExitStack()
        self._stores = {
            part: self._open.enter_context(StoreWriter(folder / f"{part}.arrow", layout))
            for part in PARTS
        }
        self._tables: dict[str, pq.ParquetWriter] = {}

    def append(self, part: str, block: Block, frame: pd.DataFrame) -> None:
        self._stores[part].append(block)
        if self.segments and len(frame):
            texts = {name: _texts(frame[name]) for name in self.segments}
            self._append_segments(part, pa.table({"row": block.row, **texts}))

    def _append_segments(self, part: str, table: pa.Table) -> None:
        if part not in self._tables:
            path = self.folder / f"{part}-segments.parquet"
            self._tables[part] = self._open.enter_context(pq.ParquetWriter(path, table.schema))
        self._tables[part].write_table(table)

    def finish(self) -> None:
        """Check the labels and write what the reader needs to know; the last file to appear."""
        rows = {part: writer.rows for part, writer in self._stores.items()}
        positives = {part: writer.positives for part, writer in self._stores.items()}
        if not rows["train"]:
            raise DataError("data.split: no training row; choose another split or mend the data")
        if positives["train"] in (0, rows["train"]):
            only = int(positives["train"] > 0)
            raise DataError(
                f"data: all {rows['train']} training labels are {only}; "
                "check the label column of the schema and the split"
            )
        about = {"format": FORMAT, "rows": rows, "positives": positives}
        (self.folder / META).write_text(json.dumps(about, indent=1), encoding="utf-8")

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)


def _texts(column: pd.Series) -> pa.Array:
    found = column.astype("object").where(column.notna(), "").map(str)
    return pa.array(found.to_list(), pa.string())


def _shown(
    blocks: Iterable[tuple[pd.DataFrame, Any]], rows: int, part: str = ""
) -> Iterator[tuple[pd.DataFrame, Any]]:
    """The same blocks, with progress."""
    remaining = iter(blocks)
    first = next(remaining, None)
    if first is None:
        return
    size = max(1, len(first[0]) or len(first[1].label))
    what = f"encoding {rows:,} {part} rows".replace("  ", " ")
    yield from console.progress(chain([first], remaining), what, -(-rows // size))


def save_encoder(folder: Path, encoder: AnyEncoder) -> None:
    """Write `encoder.json` and `encoder.safetensors`."""
    meta, tensors = encoder.state()
    kind = "encoded" if isinstance(encoder, EncodedFields) else "fitted"
    content = json.dumps({"kind": kind, "meta": meta})
    (folder / "encoder.json").write_text(content, encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, _tensors(folder))


def load_encoder(folder: Path) -> AnyEncoder:
    """The inverse of `save_encoder`."""
    content = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    kind = EncodedFields if content["kind"] == "encoded" else Encoder
    loaded: AnyEncoder = kind.from_state(content["meta"], load_file(_tensors(folder)))
    return loaded


def _tensors(folder: Path) -> Path:
    return folder / "encoder.safetensors"
