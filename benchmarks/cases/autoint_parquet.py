"""Encoded Parquet into arrays on one core, against pandas."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from benchmarks import synthetic
from benchmarks.harness import Outcome, Result, Setting, Target, Variant, compare_work, find
from benchmarks.memory import run_fresh
from manyhead.autoint.parquet import EncodedReader

FEATURES = 1_000_000
PANDAS, READER = "pandas", "EncodedReader"


def run(setting: Setting) -> Outcome:
    """Read a file whole with each, in a process that is held on one core."""
    rows = setting.pick(1_000_000, 200_000)
    group = f"{rows:,} rows of {synthetic.FIELDS} fields"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        synthetic.write_parquet(path, rows, FEATURES)
        size = path.stat().st_size
        fresh = {"path": str(path), "group": group, "quick": setting.quick}
        answer = run_fresh("benchmarks.cases.autoint_parquet:measure", fresh).answer
    results = [Result.from_dict(plain) for plain in answer["results"]]
    speed = 1 / find(results, group, READER).cost.median
    target = Target("rows per second and core from encoded Parquet", 1e6, speed, "rows/s")
    held = "held on one core" if answer["pinned"] else "not held on one core: no such call here"
    notes = [
        f"{held}; one Arrow thread; {size / rows:.0f} bytes per row in the file, snappy, row "
        "groups of 262,144 rows; the file is in the page cache",
        "both give int32 ids and float32 values of all fields; pandas does not check the ids",
    ]
    return Outcome(results, [target], notes)


def measure(path: str, group: str, quick: bool) -> dict[str, Any]:
    """The comparison, on one core; runs in a process of its own because it binds all threads."""
    pinned = hasattr(os, "sched_setaffinity")
    if pinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    torch.set_num_threads(1)
    variants = [
        Variant(PANDAS, lambda: _pandas(Path(path))),
        Variant(READER, lambda: _reader(Path(path))),
    ]
    results = compare_work(group, variants, Setting(quick=quick), unit="row")
    return {"pinned": pinned, "results": [result.to_dict() for result in results]}


def _pandas(path: Path) -> int:
    """The few lines one writes first: a frame, then two matrices of it."""
    frame = pd.read_parquet(path)
    fields = synthetic.encoded_fields(FEATURES).fields
    names = [field.name for field in fields]
    offsets = torch.tensor([field.offset for field in fields], dtype=torch.int32)
    numbers = len([field for field in fields if field.kind == "number"])
    categories = torch.tensor(frame[names[numbers:]].to_numpy("int32"))
    index = torch.empty((len(frame), len(names)), dtype=torch.int32)
    value = torch.ones((len(frame), len(names)))
    index[:, :numbers] = offsets[:numbers]
    index[:, numbers:] = categories + offsets[numbers:]
    value[:, :numbers] = torch.tensor(frame[names[:numbers]].to_numpy("float32"))
    torch.tensor(frame["label"].to_numpy("float32"))
    return len(frame)


def _reader(path: Path) -> int:
    return sum(
        len(block.label) for block in EncodedReader([path], synthetic.encoded_fields(FEATURES))
    )
