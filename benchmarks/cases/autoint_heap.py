"""Training on a CPU with the C library's own memory management, and with freed memory kept."""

from __future__ import annotations

from benchmarks import steps, synthetic
from benchmarks.harness import Outcome, Setting, Target, Variant, compare_work, find
from manyhead_core.training.heap import keep_freed_memory
from manyhead_core.training.optimiser import build_optimiser

FEATURES = 100_000
BATCH = 1024
DEFAULT, KEPT = "returned to the system", "kept"


def run(setting: Setting) -> Outcome:
    """Steps of AutoInt in its default sizes with Adam, on batches in memory."""
    count = setting.pick(8, 2)
    results, targets = [], []
    for fields in setting.pick((7, 23, 39), (7,)):
        group = f"training step, {fields} fields, batch {BATCH}"
        variants = [_variant(name, fields, count, setting) for name in (DEFAULT, KEPT)]
        results += compare_work(group, variants, setting, unit="step")
        found = find(results, group, KEPT).ratio.median
        targets.append(Target(f"freed memory kept, {fields} fields", 1.0, found, "x"))
    keep_freed_memory(False)
    return Outcome(results, targets, [f"{count} steps a repeat; `fit` keeps memory on a CPU"])


def _variant(name: str, fields: int, count: int, setting: Setting) -> Variant:
    net = steps.build(FEATURES, fields, setting)
    optimiser = build_optimiser("adam", net, 1e-3, {})
    drawn = synthetic.table(BATCH, FEATURES)
    batch = synthetic.batch(drawn, setting.device)
    batch = batch._replace(index=batch.index[:, :fields], value=batch.value[:, :fields])

    def call() -> int:
        keep_freed_memory(name == KEPT)
        for _ in range(count):
            steps.train(net, optimiser, batch)
        return count

    return Variant(name, call)
