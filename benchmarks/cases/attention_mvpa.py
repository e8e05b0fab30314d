"""Parallel attention over steps and channels: its forms against the plain one, time and memory.

The plain one is the formula as it is usually written and as the published code runs it without its
kernel: three score parts of all pairs, two of them gathered, masked, softmax, product. `eager` is
the leaner form of the core that tests compare with, which broadcasts two of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import (
    Outcome,
    Result,
    Setting,
    Spread,
    Target,
    Variant,
    compare,
    compare_work,
    find,
)
from benchmarks.memory import anonymous_bytes, device_peak, run_fresh
from manyhead_core.attention.multivariate.choice import unable
from manyhead_core.attention.multivariate.eager import attend_eagerly
from manyhead_core.attention.multivariate.flex import attend_by_flex
from manyhead_core.attention.multivariate.fused import attend_fused
from manyhead_core.attention.multivariate.inputs import Parts, Rules
from manyhead_core.training.heap import keep_freed_memory

PLAIN, EAGER = "plain", "eager"
WORKS = ("forward", "forward + backward")
# Times faster than the plain form on one thread of a CPU, by channels and work.
GOALS = {16: (5.0, 1.5), 32: (6.0, 2.0), 64: (7.0, 5.0)}
MEMORY_GOAL = 5.0
MEMORY = "memory of forward + backward"
PAIRS = 1.5e9  # scores that the plain form may hold on a GPU


class Size(NamedTuple):
    """Heads of a published size.

    Args:
        name: S or M.
        heads: Query heads.
        key_heads: Key heads.
        width: Of a head.
    """

    name: str
    heads: int
    key_heads: int
    width: int


SMALL, MEDIUM = Size("S", 12, 4, 64), Size("M", 16, 8, 128)


def run(setting: Setting) -> Outcome:
    """Ratios to the plain form; on a GPU also TFLOP/s and the share of a matrix product's."""
    if setting.device.type == "cuda":
        return _gpu(setting)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _cpu(replace(setting, threads=1))
    finally:
        torch.set_num_threads(before)


def parts_of(
    size: Size, steps: int, channels: int, *, device: str = "cpu", kind: torch.dtype | None = None
) -> Parts:
    """Seeded inputs that learn, one window."""
    generator = torch.Generator().manual_seed(0)
    tokens, (_, heads, shared, width) = steps * channels, size
    shapes = [
        (1, heads, tokens, width),
        *[(1, shared, tokens, width)] * 2,
        (shared, steps, width),
        (shared, channels, width),
        *[(shared, width)] * 3,
    ]
    made = (torch.randn(shape, generator=generator) for shape in shapes)
    return Parts(*(part.to(device, kind).requires_grad_() for part in made))


def plain(parts: Parts, rules: Rules) -> Tensor:
    """Head outputs with every part of the scores as a tensor of all pairs."""
    steps, channels = parts.steps, parts.channels
    groups = parts.query.shape[1] // parts.key.shape[1]
    token = torch.arange(steps * channels, device=parts.query.device)
    step, channel = token // channels, token % channels
    back = step[:, None] - step

    def scored(bias: Tensor, key: Tensor) -> Tensor:
        query = parts.query + bias.repeat_interleave(groups, 0)[:, None]
        return query @ key.repeat_interleave(groups, -3).mT

    content = scored(parts.content_bias, parts.key)
    content = content * ((back <= rules.window) | (step[:, None] == steps - 1))
    row = (steps - 1 - back).clamp(max=steps - 1).expand_as(content)
    time = scored(parts.step_bias, parts.step_key).gather(-1, row)
    row = (channels - 1 - (channel[:, None] - channel).abs()).expand_as(content)
    across = scored(parts.channel_bias, parts.channel_key).gather(-1, row)
    score = (content + time + across) * rules.scale
    score = torch.where(back >= 0, score, torch.finfo(score.dtype).min)
    return score.softmax(-1) @ parts.value.repeat_interleave(groups, 1)


def attend(form: str, parts: Parts) -> Tensor:
    """Head outputs by one form."""
    rules = Rules(scale=parts.query.shape[-1] ** -0.5)
    if form == PLAIN:
        return plain(parts, rules)
    if form == EAGER:
        return attend_eagerly(parts, rules)[0]
    return attend_by_flex(parts, rules) if form == "flex" else attend_fused(form, parts, rules)


def _look(form: str, parts: Parts) -> int:
    with torch.no_grad():
        attend(form, parts)
    return 1


def _train(form: str, parts: Parts) -> int:
    out = attend(form, parts)
    torch.autograd.grad(out, parts, torch.ones_like(out))
    return 1


def step(form: str, channels: int) -> int:
    """One forward and backward in this process; returns the memory before it in bytes."""
    parts = parts_of(SMALL, 25, channels)
    before = anonymous_bytes() or 0
    _train(form, parts)
    return before


def _calls(work: str) -> Callable[[str, Parts], int]:
    return _train if work == WORKS[1] else _look


def _cpu(setting: Setting) -> Outcome:
    outcome = Outcome()
    steps = setting.pick(25, 13)
    try:
        for channels in setting.pick((16, 32, 64), (4, 16)):
            parts = parts_of(SMALL, steps, channels)
            for kept, heap in ((False, ""), (True, ", freed memory kept")):
                # Half of what the plain form takes is the system clearing its pages anew, unless
                # the process keeps them, as training does.
                keep_freed_memory(kept)
                for number, work in enumerate(WORKS):
                    group = f"{work}, S, {steps} steps, {channels} channels{heap}"
                    ratio = _against_plain(group, parts, channels, setting, outcome)
                    if not kept and not setting.quick:
                        claim = f"chunked against plain, {group}, one thread"
                        outcome.targets.append(Target(claim, GOALS[channels][number], ratio, "x"))
    finally:
        keep_freed_memory(False)
    outcome.results += _memory(setting.pick(64, 16))
    used = [r.ratio.median for r in outcome.results if r.group == MEMORY]
    if not setting.quick:
        outcome.targets.append(
            Target(
                "peak memory of plain over that of chunked, forward + backward, 64 channels",
                MEMORY_GOAL,
                used[-1] if used else None,
                "x",
                reason="" if used else "this system does not tell it",
            )
        )
    outcome.notes.append("float32, batch 1, heads of size S: 12 query and 4 key heads of width 64")
    return outcome


def _against_plain(
    group: str, parts: Parts, channels: int, setting: Setting, outcome: Outcome
) -> float:
    call = _calls(group.split(",")[0])
    variants = [Variant(form, partial(call, form, parts)) for form in (PLAIN, EAGER, "chunked")]
    # The plain form takes a second for many channels.
    repeats = setting.pick(9 if channels < 64 else 5, 2)
    outcome.results += compare_work(group, variants, setting, unit="call", repeats=repeats)
    return find(outcome.results, group, "chunked").ratio.median


def _memory(channels: int) -> list[Result]:
    used = {}
    for form in (PLAIN, EAGER, "chunked"):
        peak = run_fresh(f"{__name__}:step", {"form": form, "channels": channels})
        if peak.anonymous is not None:
            used[form] = peak.anonymous - peak.answer
    return [
        Result(MEMORY, form, PLAIN, "bytes", Spread.of([cost]), Spread.of([used[PLAIN] / cost]), 1)
        for form, cost in used.items()
    ]


def products(size: Size, steps: int, channels: int, *, window: int = 10) -> tuple[float, float]:
    """Floating-point operations of the matrix products, of a forward and of a backward pass.

    Counted is what has to be computed: no later keys, and no content beyond the window. The
    backward pass computes the scores again.
    """
    seen = [step + 1 for step in range(steps)]
    near = [min(s, window + 1) for s in seen[:-1]] + seen[-1:]
    pair = 2 * size.heads * size.width * channels**2
    tables = 2 * size.heads * size.width * steps * channels * (steps + channels)
    forward = pair * (sum(seen) + sum(near)) + tables
    return forward, pair * (2 * sum(seen) + 3 * sum(near)) + 3 * tables


def _gpu(setting: Setting) -> Outcome:
    outcome = Outcome()
    ceiling = _ceiling(setting)
    for size, steps, channels in _grids(setting):
        parts = parts_of(size, steps, channels, device="cuda", kind=torch.bfloat16)
        tokens = steps * channels
        forms = [f for f in ("triton", "flex", "chunked") if unable(f, parts) is None]
        if size.heads * tokens**2 <= PAIRS:
            forms.insert(0, EAGER)
        counts = products(size, steps, channels)
        for work in WORKS:
            group = f"{work}, {size.name}, {steps} steps, {channels} channels"
            operations = counts[0] if work == WORKS[0] else sum(counts)
            outcome.results += _on_gpu(group, forms, parts, operations, ceiling, setting)
            if EAGER in forms and "triton" in forms and tokens >= 800:
                found = find(outcome.results, group, "triton").ratio.median
                outcome.targets.append(Target(f"triton against eager, {group}", 5.0, found, "x"))
    outcome.notes += [
        f"bfloat16, batch 1; a matrix product of side 8192 reaches {ceiling / 1e12:.0f} TFLOP/s. "
        "Operations are those that have to be done: no later keys, no content beyond the window"
    ]
    return outcome


def _grids(setting: Setting) -> Iterator[tuple[Size, int, int]]:
    for size in (SMALL, MEDIUM):
        for steps in setting.pick((25, 110), (25,)):
            for channels in setting.pick((32, 64, 128), (32,)):
                yield size, steps, channels


def _on_gpu(
    group: str,
    forms: list[str],
    parts: Parts,
    operations: float,
    ceiling: float,
    setting: Setting,
) -> list[Result]:
    call = _calls(group.split(",")[0])
    variants = []
    for form in forms:
        one = partial(call, form, parts)
        one()  # compiles
        variants.append(Variant(form, one, extra=device_peak(one, setting)))
    found = compare(group, variants, setting, unit="call", repeats=5)
    return [
        replace(r, extra={**r.extra, **_speed(operations / r.cost.median, ceiling)}) for r in found
    ]


def _speed(speed: float, ceiling: float) -> dict[str, float]:
    return {"tflop_per_s": speed / 1e12, "share_of_matmul": speed / ceiling}


def _ceiling(setting: Setting) -> float:
    """Operations a second of a large matrix product."""
    side = setting.pick(8192, 2048)
    left, right = (
        torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2)
    )
    variants = [Variant("matmul", lambda: left @ right)]
    found = compare("matrix product", variants, setting, repeats=3)
    return 2 * side**3 / found[0].cost.median
