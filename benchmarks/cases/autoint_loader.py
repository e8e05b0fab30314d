"""Batches of an encoded store against the usual DataLoader over a data set of rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import synthetic
from benchmarks.harness import Outcome, Setting, Target, Variant, compare_work, find
from manyhead.autoint.loader import WINDOW_ROWS, RowLoader
from manyhead.autoint.rows import Rows
from manyhead.autoint.store import Store

FEATURES = 1_000_000
BATCH = 1024
WHOLE_WINDOW = 2**20
NAIVE, RESIDENT, STREAMED = "DataLoader over rows", "RowLoader", "RowLoader, streamed"
FIRST, LEAN = "RowLoader, first epoch", "DataLoader over rows, lean"


class RowByRow(Dataset[Rows]):
    """What one writes first: tensors in memory, one row an item."""

    def __init__(self, drawn: synthetic.Table, count: int) -> None:
        part = synthetic.Table(*(column[:count].copy() for column in drawn))
        self.rows = synthetic.batch(part, torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.rows.label)

    def __getitem__(self, row: int) -> Rows:
        index, value, _, label, number, group = self.rows
        return Rows(index[row], value[row], (), label[row], number[row], group[row])


class Lean(Dataset[tuple[Any, ...]]):
    """The least that trains: rows of arrays, without row number and group."""

    def __init__(self, drawn: synthetic.Table, count: int) -> None:
        self.columns = [column[:count] for column in drawn]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return tuple(column[row] for column in self.columns)


def run(setting: Setting) -> Outcome:
    """Shuffled epochs with each; the per-row loader is timed on fewer rows."""
    rows, naive = setting.pick((600_000, 20_000), (300_000, 4_000))
    drawn = synthetic.table(rows, FEATURES)
    group = f"{rows:,} rows of {synthetic.FIELDS} fields, batch {BATCH}, shuffled"
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic.write_store(Path(folder) / "train.arrow", drawn)
        loaders = {
            NAIVE: DataLoader(RowByRow(drawn, naive), BATCH, shuffle=True),
            LEAN: DataLoader(Lean(drawn, naive), BATCH, shuffle=True),
            RESIDENT: _resident(store, setting),
            STREAMED: _streamed(store, setting),
        }
        variants = [
            Variant(name, partial(_consume, loader, setting)) for name, loader in loaders.items()
        ]
        variants.append(Variant(FIRST, lambda: _consume(_resident(store, setting), setting)))
        results = compare_work(group, variants, setting, unit="row")
    targets = [
        Target(f"{name} against a {NAIVE}", 50, find(results, group, name).ratio.median, "x")
        for name in (RESIDENT, STREAMED)
    ]
    notes = [
        f"{NAIVE}: tensors in memory, num_workers=0, default collate, {naive:,} rows",
        f"{RESIDENT}: all rows fit into one window, so they are in memory after the first epoch",
        f"{STREAMED}: windows of {WINDOW_ROWS:,} rows, read from the file in every epoch",
        "all give ids, values, label, row number and group of a row; lean leaves out the last two "
        "and keeps NumPy arrays, which it indexes faster than tensors",
    ]
    return Outcome(results, targets, notes)


def _resident(store: Store, setting: Setting) -> RowLoader:
    device = setting.device if setting.device.type == "cuda" else None
    return RowLoader(store, BATCH, shuffle=True, window_rows=WHOLE_WINDOW, device=device)


def _streamed(store: Store, setting: Setting) -> RowLoader:
    pin = setting.device.type == "cuda"
    return RowLoader(store, BATCH, shuffle=True, pin_memory=pin)


def _consume(batches: Iterable[Sequence[Any]], setting: Setting) -> int:
    """Rows of all batches, which shuffling has copied; on CUDA they are moved there."""
    rows = 0
    for batch in batches:
        if setting.device.type == "cuda":
            for part in batch:
                if isinstance(part, torch.Tensor):
                    part.to(setting.device, non_blocking=True)
        rows += len(batch[0])
    return rows
