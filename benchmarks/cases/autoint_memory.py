"""Peak memory while a large encoded Parquet file is read once and a model trains on it."""

from __future__ import annotations

import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import steps, synthetic
from benchmarks.harness import Outcome, Result, Setting, Spread, Target
from benchmarks.memory import Peak, anonymous_bytes, run_fresh
from manyhead.autoint.loader import RowLoader
from manyhead.autoint.parquet import EncodedReader
from manyhead.autoint.store import Layout, Store, StoreWriter
from manyhead_core.errors import UserError
from manyhead_core.training.optimiser import build_optimiser

MODULE = "benchmarks.cases.autoint_memory"
# Few enough ids that 20 million rows stay well below 2 GB on disk.
FEATURES = 20_000
BATCH = 1024
LIMIT_GB = 1.5
# Parquet and store of a row, rounded up.
DISK_BYTES = 500


def run(setting: Setting) -> Outcome:
    """Streaming at two sizes; whole-file reading with pandas at the smaller one."""
    small, large = setting.pick((2_000_000, 20_000_000), (200_000, 2_000_000))
    train_steps = setting.pick(200, 20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _check_disk(folder, large)
        results = _compare(folder, small, setting)
        peak = _train(folder, large, train_steps, setting)
    if peak.anonymous is None:
        raise UserError("autoint_memory: this system does not tell anonymous memory; use Linux")
    group = f"{large:,} rows read, {train_steps} steps"
    results.append(_result(group, "streamed", peak, "streamed", 1.0))
    growth = peak.anonymous / next(r for r in results if r.variant == "streamed").cost.median
    targets = [
        Target(
            f"peak anonymous memory, {group}, batch {BATCH}",
            LIMIT_GB,
            peak.anonymous / 1e9,
            "GB",
            at_least=False,
        ),
        Target(
            f"peak of {large:,} rows over peak of {small:,} rows", 2, growth, "x", at_least=False
        ),
    ]
    notes = [
        "anonymous resident memory of a fresh process, sampled from outside every 5 ms; pages of "
        "mapped files are not counted, the system takes them back when it needs them",
        f"before any data, with PyTorch imported: {peak.answer['start_bytes'] / 1e9:.2f} GB",
        f"streamed: Parquet into a store of {peak.answer['store_bytes'] / 1e9:.1f} GB on disk, "
        f"then training from it; {synthetic.FIELDS} fields, {FEATURES:,} ids",
    ]
    return Outcome(results, targets, notes)


def _check_disk(folder: Path, rows: int) -> None:
    free, needed = shutil.disk_usage(folder).free / 1e9, rows * DISK_BYTES / 1e9
    if free < needed:
        raise UserError(
            f"{folder.parent}: {free:.0f} GB free, {needed:.0f} GB needed; set TMPDIR to a folder "
            "on a larger disk, or use --quick"
        )


def _compare(folder: Path, rows: int, setting: Setting) -> list[Result]:
    steps_here = setting.pick(20, 5)
    group = f"{rows:,} rows read, {steps_here} steps"
    streamed = _train(folder, rows, steps_here, setting)
    whole = _train(folder, rows, steps_here, setting, function="train_whole")
    ratio = (whole.anonymous or 0) / (streamed.anonymous or 1)
    return [
        _result(group, "pandas, whole file", whole, "pandas, whole file", 1.0),
        _result(group, "streamed", streamed, "pandas, whole file", ratio),
    ]


def _result(group: str, variant: str, peak: Peak, baseline: str, ratio: float) -> Result:
    cost = Spread.of([peak.anonymous or 0])
    names = ("read_seconds", "train_seconds", "after_reading_bytes")
    extra = {name: peak.answer[name] for name in names}
    return Result(group, variant, baseline, "bytes", cost, Spread.of([ratio]), 1, extra)


def _train(
    folder: Path, rows: int, count: int, setting: Setting, function: str = "train_streamed"
) -> Peak:
    path = folder / f"train_{rows}.parquet"
    if not path.is_file():
        # In another process: what the writer takes must not count.
        run_fresh(f"{MODULE}:write", {"path": str(path), "rows": rows})
    arguments = {"path": str(path), "count": count, "threads": setting.threads}
    return run_fresh(f"{MODULE}:{function}", arguments, threads=setting.threads)


def write(path: str, rows: int) -> None:
    """Write the file, a row group at a time."""
    synthetic.write_parquet(Path(path), rows, FEATURES)


def train_streamed(path: str, count: int, threads: int) -> dict[str, Any]:
    """Parquet into a store, then steps from the store: what `manyhead autoint fit` does."""
    torch.set_num_threads(threads)
    start = anonymous_bytes()
    started = time.perf_counter()
    store = Path(path).with_suffix(".arrow")
    with StoreWriter(store, Layout(synthetic.FIELDS)) as writer:
        for block in EncodedReader([Path(path)], synthetic.encoded_fields(FEATURES)):
            writer.append(block)
    read, held = time.perf_counter(), anonymous_bytes()
    loader = RowLoader(Store(store), BATCH, shuffle=True)
    net = steps.build(FEATURES, synthetic.FIELDS, Setting())
    optimiser = build_optimiser("adam", net, 1e-3, {})
    for batch in islice(loader, count):
        steps.train(net, optimiser, batch)
    size = store.stat().st_size
    store.unlink()
    return _answer((start, held), size, (started, read))


def train_whole(path: str, count: int, threads: int) -> dict[str, Any]:
    """The short way: the file as a frame, its columns as two tensors, random rows of them."""
    torch.set_num_threads(threads)
    start = anonymous_bytes()
    started = time.perf_counter()
    fields = synthetic.encoded_fields(FEATURES)
    frame = pd.read_parquet(path)
    numbers = len([field for field in fields.fields if field.kind == "number"])
    index = torch.empty((len(frame), fields.num_fields), dtype=torch.int32)
    value = torch.ones((len(frame), fields.num_fields))
    for place, field in enumerate(fields.fields):
        column = torch.from_numpy(frame[field.name].to_numpy(copy=True))
        target = value if place < numbers else index
        target[:, place] = column if place < numbers else column + field.offset
        index[:, place] = field.offset if place < numbers else index[:, place]
    label = torch.from_numpy(frame["label"].to_numpy("float32"))
    read, held = time.perf_counter(), anonymous_bytes()
    net = steps.build(FEATURES, synthetic.FIELDS, Setting())
    optimiser = build_optimiser("adam", net, 1e-3, {})
    for rows in torch.randperm(len(label)).split(BATCH)[:count]:
        drawn = synthetic.Table(index[rows].numpy(), value[rows].numpy(), label[rows].numpy())
        steps.train(net, optimiser, synthetic.batch(drawn, torch.device("cpu")))
    return _answer((start, held), 0, (started, read))


def _answer(
    held: tuple[int | None, int | None], size: int, times: tuple[float, float]
) -> dict[str, Any]:
    return {
        "start_bytes": held[0] or 0,
        "after_reading_bytes": held[1] or 0,
        "store_bytes": size,
        "read_seconds": times[1] - times[0],
        "train_seconds": time.perf_counter() - times[1],
    }
