"""Efficiency length: from how many tokens a sparse mixer is cheaper than full attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
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
from benchmarks.memory import anonymous_bytes, run_fresh
from manyhead_core.attention.mixer import TokenMixer
from manyhead_core.attention.registry import build

DIM, HEADS = 128, 4
FULL = "softmax"
LONG = 4096  # from here on one call is a measurement
LONGEST = 8192  # a sparse mixer has to win from here at the latest
MEMORY = "memory of forward + backward"
CLUSTER = 128
OPTIONS: dict[str, dict[str, Any]] = {
    FULL: {},
    "bra": {"num_windows": 8},
    "dynamic_mask": {},
    "halo": {},
    "routing": {"window_size": CLUSTER},
}
SPARSE = tuple(OPTIONS)[1:]


def run(setting: Setting) -> Outcome:
    """Time and memory of each mixer over the number of tokens, and where they cross."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(replace(setting, threads=1))
    finally:
        torch.set_num_threads(before)


def _run(setting: Setting) -> Outcome:
    outcome = Outcome()
    lengths = setting.pick((256, 512, 1024, 2048, 4096, 8192, 16384), (256, 512, 1024))
    for backward in (False, True):
        work = _work(backward)
        for length in lengths:
            outcome.results += _compare(length, backward, setting)
        outcome.targets += [_target(outcome.results, name, work, lengths) for name in SPARSE]
        outcome.notes += [_first_win(outcome.results, work, lengths)]
    sizes = setting.pick((1024, 4096, 8192), (256, 512, 1024))
    outcome.results += [result for length in sizes for result in _memory(length)]
    outcome.notes += [
        _memory_note(outcome.results, sizes),
        f"float32, batch 1, dim {DIM}, {HEADS} heads, no mask, one thread; options that are not "
        f"the defaults: bra num_windows=8, routing {CLUSTER} tokens in each of tokens / {CLUSTER} "
        "clusters. The crossing is that of a quadratic fitted to softmax and a line fitted to the "
        "mixer, errors relative",
    ]
    return outcome


def mixer(name: str, length: int) -> TokenMixer:
    """The mixer for so many tokens, with seeded weights."""
    torch.manual_seed(0)
    clusters = {"num_clusters": max(1, length // CLUSTER)} if name == "routing" else {}
    return build(name, dim=DIM, num_heads=HEADS, **OPTIONS[name], **clusters)


def step(name: str, length: int) -> int:
    """One forward and backward in this process; returns the memory before it in bytes."""
    net, x = mixer(name, length), _tokens(length)
    before = anonymous_bytes() or 0
    _train(net, x, _grid(net, length))
    return before


def _tokens(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(1, length, DIM, generator=generator).requires_grad_()


def _grid(net: TokenMixer, length: int) -> tuple[int, int] | None:
    if "2d" not in net.capabilities.layouts or net.name == FULL:
        return None
    height = 2 ** (int(math.log2(length)) // 2)
    return height, length // height


def _compare(length: int, backward: bool, setting: Setting) -> list[Result]:
    x = _tokens(length)
    group = _group(_work(backward), length)
    calls = {}
    for name in OPTIONS:
        net = mixer(name, length).train(backward)
        calls[name] = partial(_train if backward else _look, net, x, _grid(net, length))
    if length < LONG:
        variants = [Variant(name, call, length) for name, call in calls.items()]
        return compare(group, variants, setting, unit="token", repeats=5, seconds=0.05)
    variants = [Variant(name, partial(_counted, call, length)) for name, call in calls.items()]
    return compare_work(group, variants, setting, unit="token", repeats=3, warm_up=length == LONG)


def _counted(call: Callable[[], None], length: int) -> int:
    call()
    return length


def _train(net: TokenMixer, x: Tensor, grid: tuple[int, int] | None) -> None:
    found = net(x, grid=grid)
    loss = found.y.sum() + sum(found.aux.values())
    torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)


def _look(net: TokenMixer, x: Tensor, grid: tuple[int, int] | None) -> None:
    with torch.no_grad():
        net(x, grid=grid)


def _memory(length: int) -> list[Result]:
    """Peak anonymous memory of one step, less what the process held before it."""
    used = {}
    for name in OPTIONS:
        peak = run_fresh(f"{__name__}:step", {"name": name, "length": length})
        if peak.anonymous is not None:
            used[name] = (peak.anonymous - peak.answer) / length
    return [
        Result(
            _group(MEMORY, length),
            name,
            FULL,
            "bytes/token",
            Spread.of([cost]),
            Spread.of([used[FULL] / cost]),
            1,
        )
        for name, cost in used.items()
    ]


def _work(backward: bool) -> str:
    return f"forward{' + backward' * backward}"


def _group(work: str, length: int) -> str:
    return f"{work}, {length} tokens"


def _costs(results: list[Result], name: str, work: str, lengths: Sequence[int]) -> list[float]:
    return [find(results, _group(work, n), name).cost.median * n for n in lengths]


def _target(results: list[Result], name: str, work: str, lengths: Sequence[int]) -> Target:
    found = crossing(
        lengths, _costs(results, FULL, work, lengths), _costs(results, name, work, lengths)
    )
    return Target(
        f"{name} is faster than {FULL} from a length of, {work}, by the fit",
        LONGEST,
        found,
        "tokens",
        at_least=False,
        reason="" if found is not None else "the fitted curves do not cross",
    )


def crossing(
    lengths: Sequence[int], full: Sequence[float], sparse: Sequence[float]
) -> float | None:
    """Length from which a line stays below a quadratic, both fitted with relative errors.

    Args:
        lengths: Numbers of tokens.
        full: Cost of full attention at each, fitted by a quadratic.
        sparse: Cost of the mixer at each, fitted by a line.

    Returns:
        Tokens, at least the shortest of `lengths`; None when they do not cross.
    """
    scaled = np.asarray(lengths, dtype=float) / lengths[0]
    curve = np.polyfit(scaled, full, 2, w=1 / np.asarray(full))
    line = np.polyfit(scaled, sparse, 1, w=1 / np.asarray(sparse))
    excess = np.polysub(curve, line)
    if len(excess) < 3 or excess[0] <= 0:
        return None
    roots = [float(root.real) for root in np.roots(excess) if abs(root.imag) < 1e-9]
    return max([1.0, *roots]) * lengths[0]


def _first_win(results: list[Result], work: str, lengths: Sequence[int]) -> str:
    """From which of the measured lengths each mixer wins at that and all longer ones."""
    firsts = []
    for name in SPARSE:
        ratios = [find(results, _group(work, n), name).ratio.median for n in lengths]
        lost = max((i for i, ratio in enumerate(ratios) if ratio <= 1), default=-1) + 1
        firsts.append(f"{name} {lengths[lost] if lost < len(lengths) else 'none'}")
    return f"{work}: measured length from which the mixer wins: {', '.join(firsts)}"


def _memory_note(results: list[Result], sizes: Sequence[int]) -> str:
    if not any(result.group.startswith(MEMORY) for result in results):
        return "memory: this system does not tell it"
    full = _costs(results, FULL, MEMORY, sizes)
    shown = []
    for name in SPARSE:
        found = crossing(sizes, full, _costs(results, name, MEMORY, sizes))
        # What is fitted says little about lengths far beyond those measured.
        known = found is not None and found <= sizes[-1]
        shown.append(f"{name} {round(found or 0) if known else f'none up to {sizes[-1]}'}")
    return f"{MEMORY}: length from which the fit is below that of {FULL}: {', '.join(shown)}"
