"""Training fed by the loader against the same steps on batches that already lie in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from benchmarks import steps, synthetic
from benchmarks.harness import Outcome, Setting, Target, Variant, compare_work, find
from manyhead.autoint.loader import RowLoader
from manyhead.autoint.rows import Rows
from manyhead.autoint.store import Store
from manyhead_core.training.optimiser import build_optimiser

FEATURES = 100_000
# A GPU is not busy with a small batch.
BATCH = {"cpu": 1024, "cuda": 16_384}
# One block of the store, so that the steps of a repeat see windows come and go.
WINDOW = 2**16
STAGED, STREAMED, RESIDENT = "staged batches", "loader, streamed", "loader, on the device"


def run(setting: Setting) -> Outcome:
    """Steps per second of AutoInt in its default sizes with Adam."""
    rows, count = setting.pick((500_000, 16), (150_000, 4))
    group = f"training step, {synthetic.FIELDS} fields, batch {_batch(setting)}"
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic.write_store(Path(folder) / "train.arrow", synthetic.table(rows, FEATURES))
        staged = [_move(batch, setting) for batch in islice(_streamed(store, setting), count)]
        variants = [
            _variant(STAGED, _again(staged), count, setting),
            _variant(STREAMED, _streamed(store, setting), count, setting),
        ]
        if setting.device.type == "cuda":
            resident = RowLoader(store, _batch(setting), shuffle=True, device=setting.device)
            variants.append(_variant(RESIDENT, _forever(resident), count, setting))
        results = compare_work(group, variants, setting, unit="step")
    targets = [
        Target(
            f"{variant.name} against {STAGED}",
            0.9,
            find(results, group, variant.name).ratio.median,
            "x",
        )
        for variant in variants[1:]
    ]
    notes = [
        f"{count} steps a repeat, table of {FEATURES:,} rows, Adam",
        f"windows of {WINDOW:,} rows, the next one is made by a thread beside the training",
    ]
    return Outcome(results, targets, notes)


def _batch(setting: Setting) -> int:
    return BATCH[setting.device.type]


def _variant(name: str, batches: Iterator[Rows], count: int, setting: Setting) -> Variant:
    net = steps.build(FEATURES, synthetic.FIELDS, setting)
    optimiser = build_optimiser("adam", net, 1e-3, {})

    def call() -> int:
        for batch in islice(batches, count):
            steps.train(net, optimiser, _move(batch, setting))
        return count

    return Variant(name, call)


def _streamed(store: Store, setting: Setting) -> Iterator[Rows]:
    pin = setting.device.type == "cuda"
    batch = _batch(setting)
    return _forever(RowLoader(store, batch, shuffle=True, window_rows=WINDOW, pin_memory=pin))


def _forever(loader: RowLoader) -> Iterator[Rows]:
    """Epoch after epoch; no repeat then pays for the start of one."""
    while True:
        yield from loader


def _again(batches: Iterable[Rows]) -> Iterator[Rows]:
    while True:
        yield from batches


def _move(rows: Rows, setting: Setting) -> Rows:
    if setting.device.type == "cpu":
        return rows
    index, value, label, row, group = (
        part.to(setting.device, non_blocking=True)
        for part in (rows.index, rows.value, rows.label, rows.row, rows.group)
    )
    return Rows(index, value, (), label, row, group)
