"""AutoInt on batches that lie in memory: kernels, compilation, optimisers, inference."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch

from benchmarks import steps, synthetic
from benchmarks.harness import (
    Outcome,
    Result,
    Setting,
    Target,
    Variant,
    compare,
    count_flops,
    find,
)
from benchmarks.memory import device_peak
from manyhead.autoint.rows import Rows
from manyhead_core.training.optimiser import build_optimiser

FIELD_COUNTS = (7, 23, 39)
FEATURES = 100_000
# Rows of a training batch and of a batch to score; a GPU is not busy with a small one.
BATCH = {"cpu": 1024, "cuda": 16_384}
SCORED = {"cpu": 4096, "cuda": 65_536}
DIM = 16
OPTIMISERS: tuple[Literal["adam", "lazy_adam"], ...] = ("adam", "lazy_adam")
WHOLE_STEP, TABLE_ALONE = "training step", "lookup, gradient and update of the table alone"
LAZY_GOALS = {WHOLE_STEP: 1.0, TABLE_ALONE: 3.0}


def run(setting: Setting) -> Outcome:
    """Kernels and compilation by number of fields; optimisers; inference."""
    outcome = Outcome()
    for fields in setting.pick(FIELD_COUNTS, FIELD_COUNTS[::2]):
        outcome.results += _training(fields, setting)
    outcome.results += _optimisers(setting)
    bandwidth = copy_bandwidth(setting)
    outcome.results += _inference(setting, bandwidth)
    outcome.targets = _targets(outcome.results, setting)
    outcome.notes = [
        "default sizes: width 16, three layers of 64, two heads; float32 unless the name says bf16",
        f"memory floor: {floor_bytes()} bytes per row (39 ids, 39 values, 39 embedding rows of 16 "
        f"float32, one logit) at a measured copy bandwidth of {bandwidth / 1e9:.1f} GB/s",
    ]
    if not steps.can_compile(setting):
        outcome.notes.append("torch.compile is not measured: there is no g++")
    return outcome


def _rows(count: int, fields: int, features: int, setting: Setting) -> Rows:
    return synthetic.batch(synthetic.table(count, features, fields=fields), setting.device)


def _training(fields: int, setting: Setting) -> list[Result]:
    """Forward and backward with each kernel, compiled, and on CUDA in bfloat16."""
    batch = BATCH[setting.device.type]
    rows = _rows(batch, fields, FEATURES, setting)
    calls: dict[str, Callable[[], Any]] = {}
    for backend in ("eager", "sdpa", "auto"):
        net = steps.build(FEATURES, fields, setting, backend)
        calls[backend] = partial(steps.gradient, net, net, rows)
    flops = count_flops(calls["auto"])
    net = steps.build(FEATURES, fields, setting)
    if steps.can_compile(setting):
        calls["auto, compiled"] = partial(steps.gradient, steps.compiled(net), net, rows)
    if setting.device.type == "cuda":
        calls |= {f"{name}, bf16": partial(_in_bf16, call, setting) for name, call in calls.items()}
    variants = []
    for name, call in calls.items():
        extra = {"flop": float(flops), "first_call_seconds": _first_call(call)}
        variants.append(Variant(name, call, batch, extra | device_peak(call, setting)))
    group = f"forward + backward, {fields} fields, batch {batch}"
    return compare(group, variants, setting, unit="row", seconds=setting.pick(0.3, 0.02))


def _in_bf16(call: Callable[[], Any], setting: Setting) -> None:
    with steps.autocast(setting, True):
        call()


def _first_call(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _optimisers(setting: Setting) -> list[Result]:
    """Dense Adam walks through the whole table in every step, lazy Adam does not."""
    features = setting.pick(1_000_000, 200_000)
    batch = BATCH[setting.device.type]
    rows = _rows(batch, synthetic.FIELDS, features, setting)
    results = []
    for work, step in ((WHOLE_STEP, steps.train), (TABLE_ALONE, steps.train_table)):
        variants = []
        for name in OPTIMISERS:
            net = steps.build(features, synthetic.FIELDS, setting)
            trained = net if step is steps.train else net.embedding
            call = partial(step, trained, build_optimiser(name, trained, 1e-3, {}), rows)
            variants.append(Variant(name, call, batch, device_peak(call, setting)))
        group = f"{work}, table of {features:,} rows, batch {batch}"
        results += compare(group, variants, setting, unit="row")
    return results


def _inference(setting: Setting, bandwidth: float) -> list[Result]:
    batch = setting.pick(SCORED[setting.device.type], 1024)
    rows = _rows(batch, synthetic.FIELDS, FEATURES, setting)
    net = steps.build(FEATURES, synthetic.FIELDS, setting).eval()
    calls: dict[str, Callable[[], Any]] = {"auto": partial(_score, net, rows)}
    if steps.can_compile(setting):
        calls["auto, compiled"] = partial(_score, steps.compiled(net), rows)
    if setting.device.type == "cuda":
        calls |= {f"{name}, bf16": partial(_in_bf16, call, setting) for name, call in calls.items()}
    group = f"inference, {synthetic.FIELDS} fields, batch {batch}"
    variants = [
        Variant(name, call, batch, device_peak(call, setting)) for name, call in calls.items()
    ]
    results = compare(group, variants, setting, unit="row")
    floor = floor_bytes() / bandwidth
    return [
        Result(**{**vars(r), "extra": {**r.extra, "share_of_memory_floor": floor / r.cost.median}})
        for r in results
    ]


@torch.inference_mode()
def _score(net: Callable[..., Any], rows: Rows) -> None:
    net(rows.index, rows.value)


def floor_bytes() -> int:
    """Bytes of a row that inference has to move at least: ids, values, embedding rows, logit."""
    return 4 * (2 * synthetic.FIELDS + synthetic.FIELDS * DIM + 1)


def copy_bandwidth(setting: Setting) -> float:
    """Bytes per second that the device reads and writes while it copies a large tensor."""
    count = setting.pick(2**26, 2**24)
    source = torch.zeros(count, device=setting.device)
    target = torch.empty_like(source)
    variants = [Variant("copy", lambda: target.copy_(source))]
    (result,) = compare("copy", variants, setting)
    return 2 * 4 * count / result.cost.median


def _targets(results: list[Result], setting: Setting) -> list[Target]:
    groups = [r.group for r in results if r.variant == "sdpa"]
    shares = []
    for group in groups:
        eager, sdpa, auto = (find(results, group, name) for name in ("eager", "sdpa", "auto"))
        shares.append(auto.ratio.median / max(eager.ratio.median, sdpa.ratio.median))
    targets = [
        Target(
            "automatic kernel against the better of eager and SDPA, training, worst field count",
            0.9,
            min(shares),
            "x",
        )
    ]
    for lazy in (r for r in results if r.variant == "lazy_adam"):
        goal = LAZY_GOALS[lazy.group.split(", table of")[0]]
        targets.append(
            Target(f"lazy Adam against Adam, {lazy.group}", goal, lazy.ratio.median, "x")
        )
    compiled = [r for r in results if r.variant == "auto, compiled" and "+" in r.group]
    worst = min((r.ratio.median / _auto(results, r) for r in compiled), default=None)
    reason = "" if compiled else "there is no g++"
    targets.append(
        Target("compiled against not, training, worst field count", 1, worst, "x", reason=reason)
    )
    if setting.device.type == "cuda":
        for work in ("forward + backward", "inference"):
            name = f"{work}, {synthetic.FIELDS} fields"
            best = max(1 / r.cost.median for r in results if r.group.startswith(name))
            targets.append(Target(f"{name}, best variant", 1e6, best, "rows/s"))
    return targets


def _auto(results: list[Result], compiled: Result) -> float:
    return find(results, compiled.group, "auto").ratio.median
