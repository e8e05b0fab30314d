"""Every mixer in every pattern that it declares: time and memory over the number of tokens."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.attention_sparse import crossing
from benchmarks.harness import Outcome, Result, Setting, Spread, Target, Variant, compare_work
from manyhead_core.attention.masks import Causal, Mask
from manyhead_core.attention.mixer import PATTERNS, TokenMixer
from manyhead_core.attention.registry import MIXERS, build, mixer_class

DIM, HEADS = 64, 4
FULL = "softmax"
FORWARD, TRAINING = "forward", "forward + backward"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QUICK = (64, 128, 256)
SLOW_SECONDS = 2.0  # a call that takes longer ends the series of its mixer
LARGE_BYTES = 3 * 2**30  # and so does one that needs more
LONG = 4096  # from here on one call is a measurement
SURE_SECONDS = 0.2
STEEP = 1.5  # growth of cost per growth of length, as an exponent
PUBLISHED = 4195  # largest efficiency length in CAB, that of local attention
LINEAR = ("linear", "inline", "spectral", "gaam", "lsda", "halo")
CLUSTER = 128

# What the number of tokens decides, or what the defaults are no sensible choice for.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "bra": lambda length: {"num_windows": 8},  # noqa: ARG005
    "rcmha": lambda length: {"max_distance": length},
    "routing": lambda length: {
        "num_clusters": max(1, length // CLUSTER),
        "window_size": min(CLUSTER, length),
    },
    "summary": lambda length: {"num_tasks": length // 8, "num_selectors": 7},
    "random_qk": lambda length: {"num_embeddings": length},
}


def run(setting: Setting) -> Outcome:
    """Time and memory of each mixer against softmax attention in the same pattern."""
    # The profiler that counts memory reports each of its runs otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(replace(setting, threads=1), list(MIXERS))
    finally:
        torch.set_num_threads(before)


def _run(setting: Setting, names: Sequence[str]) -> Outcome:
    outcome = Outcome()
    for pattern in PATTERNS:
        able = [name for name in names if pattern in mixer_class(name).capabilities.patterns]
        for work in (FORWARD, TRAINING):
            outcome.results += series(pattern, work, able, setting)
    found = outcome.results
    for work in (FORWARD, TRAINING):
        outcome.targets += [_target(found, name, work) for name in LINEAR if name in names]
    outcome.notes += [
        f"float32, batch 1, dim {DIM}, {HEADS} heads, one thread, one module without a block "
        "around it; cross patterns have as many queries as keys, grids are square or twice as "
        f"wide as high. Options that are not the defaults: {_options()}",
        "peak_bytes: most memory of tensors that the call allocates, beside inputs and weights, "
        "counted by the allocator",
        f"a series ends before a call of more than about {SLOW_SECONDS:g} s or "
        f"{LARGE_BYTES >> 30} GiB; softmax is always measured",
    ]
    return outcome


def _options() -> str:
    parts = [f"{name} {make(LENGTHS[-1])}" for name, make in OPTIONS.items()]
    return ", ".join(parts) + f" at {LENGTHS[-1]} tokens"


@dataclass
class Probe:
    """One mixer at one length, after a first call.

    Args:
        name: Name in the registry.
        call: Does the work once.
        peak: Most bytes of tensors that a call allocates.
        seconds: What the first call took.
    """

    name: str
    call: Callable[[], Any]
    peak: int
    seconds: float


def series(pattern: str, work: str, names: Sequence[str], setting: Setting) -> list[Result]:
    """Growing lengths; mixers that would get too slow or too large drop out.

    Args:
        pattern: One of `PATTERNS`.
        work: `FORWARD` or `TRAINING`.
        names: Mixers; `softmax` is measured in any case.
        setting: Device, threads and whether to be quick.
    """
    results: list[Result] = []
    alive = [FULL, *(name for name in names if name != FULL)]
    for length in setting.pick(LENGTHS, QUICK):
        probes = [probe(name, pattern, length, work) for name in alive]
        found = _measure(group_name(pattern, work, length), probes, length, setting)
        results += found
        alive = [p.name for p in probes if p.name == FULL or not _too_much(p, results)]
    return results


def _too_much(last: Probe, results: Sequence[Result]) -> bool:
    """Whether the next length would cost too much, as far as the last two can tell."""
    times = [seconds_of(result) for result in results if result.variant == last.name]
    growth = times[-1] / times[-2] if len(times) > 1 else 4.0
    return times[-1] * max(growth, 1.5) > SLOW_SECONDS or 4 * last.peak > LARGE_BYTES


def probe(name: str, pattern: str, length: int, work: str) -> Probe:
    """Build a mixer for so many tokens, run it once and count its memory."""
    net = mixer(name, length).train(work == TRAINING)
    x, words = tokens(net, pattern, length)
    call = partial(_train if work == TRAINING else _look, net, x, words)
    started = perf_counter()
    peak = allocated_peak(call)
    return Probe(name, call, peak, perf_counter() - started)


def mixer(name: str, length: int) -> TokenMixer:
    """The mixer for so many tokens, with seeded weights."""
    torch.manual_seed(0)
    options = OPTIONS[name](length) if name in OPTIONS else {}
    accepted = inspect.signature(mixer_class(name)).parameters
    sizes = {"size": grid_of(length), "num_tokens": length}
    options |= {option: value for option, value in sizes.items() if option in accepted}
    return build(name, dim=DIM, num_heads=HEADS, **options)


def tokens(net: TokenMixer, pattern: str, length: int) -> tuple[Tensor, dict[str, Any]]:
    """Tokens, and the other arguments of a call in this pattern."""
    generator = torch.Generator().manual_seed(length)
    x, context = torch.randn(2, 1, length, DIM, generator=generator).unbind()
    words: dict[str, Any] = {}
    if pattern[1] == "C":
        words["context"] = context
    mask: Mask | None = Causal() if pattern[0] == "C" else None
    if mask is not None:
        words["mask"] = mask
    if "2d" in net.capabilities.layouts and pattern[0] == "N":
        words["grid"] = grid_of(length)
    return x.requires_grad_(), words


def grid_of(length: int) -> tuple[int, int]:
    """Height and width of a grid with so many tokens."""
    height = 2 ** (int(math.log2(length)) // 2)
    return height, length // height


def _train(net: TokenMixer, x: Tensor, words: dict[str, Any]) -> None:
    found = net(x, **words)
    loss = found.y.sum() + sum(found.aux.values())
    torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)


def _look(net: TokenMixer, x: Tensor, words: dict[str, Any]) -> None:
    with torch.no_grad():
        net(x, **words)


def allocated_peak(call: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once among those that a call allocates.

    Exact and without a process of its own, unlike the memory that the system counts: what the
    process has freed and kept would hide small differences.
    """
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    found = profile.kineto_results
    assert found is not None
    changes = [(e.start_ns(), e.nbytes()) for e in found.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def _measure(group: str, probes: Sequence[Probe], length: int, setting: Setting) -> list[Result]:
    extras = [{"peak_bytes": float(p.peak), "tokens": float(length)} for p in probes]
    if length >= LONG:
        full, *_ = times = [_again(found) for found in probes]
        return [
            Result(
                group,
                found.name,
                FULL,
                "s/token",
                Spread.of([seconds / length]),
                Spread.of([full / seconds]),
                1,
                extra,
            )
            for found, seconds, extra in zip(probes, times, extras, strict=True)
        ]
    variants = []
    for found, extra in zip(probes, extras, strict=True):
        count = max(1, math.ceil(setting.pick(0.02, 0.002) / _again(found)))
        work = partial(_repeated, found.call, count, length)
        variants.append(Variant(found.name, work, extra=extra))
    rounds = setting.pick(3 if length < LONG // 2 else 2, 1)
    return compare_work(group, variants, setting, unit="token", repeats=rounds, warm_up=False)


def _again(found: Probe) -> float:
    """Time of one call; the first one of a short kind has waited for caches and says little."""
    if found.seconds > SURE_SECONDS:
        return found.seconds
    started = perf_counter()
    found.call()
    return max(perf_counter() - started, 1e-6)


def _repeated(call: Callable[[], Any], count: int, length: int) -> int:
    for _ in range(count):
        call()
    return count * length


def group_name(pattern: str, work: str, length: int) -> str:
    """Name of a comparison."""
    return f"{pattern} {work}, {length} tokens"


def seconds_of(result: Result) -> float:
    """Time of one call."""
    return result.cost.median * result.extra["tokens"]


@dataclass(frozen=True)
class Curve:
    """Cost of one mixer in one pattern over the number of tokens.

    Args:
        lengths: Numbers of tokens that were measured.
        seconds: Of one call.
        peaks: Bytes.
        ratios: Time of softmax over that of the mixer.
    """

    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    peaks: tuple[float, ...]
    ratios: tuple[float, ...]

    def at(self, length: int) -> int | None:
        """Index of a length; None where it was not measured."""
        return self.lengths.index(length) if length in self.lengths else None

    @property
    def first_win(self) -> int | None:
        """Measured length from which the mixer is faster, there and at all longer ones."""
        lost = max((i for i, ratio in enumerate(self.ratios) if ratio <= 1), default=-1) + 1
        return self.lengths[lost] if lost < len(self.lengths) else None


def curve(results: Sequence[Result], name: str, pattern: str, work: str) -> Curve:
    """The series of a mixer."""
    start = group_name(pattern, work, 0).split(",")[0] + ","
    own = [r for r in results if r.variant == name and r.group.startswith(start)]
    return Curve(
        tuple(int(r.extra["tokens"]) for r in own),
        tuple(seconds_of(r) for r in own),
        tuple(r.extra["peak_bytes"] for r in own),
        tuple(r.ratio.median for r in own),
    )


def efficiency_length(
    results: Sequence[Result], name: str, pattern: str, work: str, what: str = "seconds"
) -> float | None:
    """Tokens from which a mixer is cheaper than softmax, by the fits of CAB.

    A quadratic is fitted to softmax and a line to the mixer. No line fits a mixer whose cost still
    grows much faster than its length, and far from what was measured a fit says nothing: such a
    mixer has no efficiency length.

    Args:
        results: Of this case.
        name: The mixer.
        pattern: One of `PATTERNS`.
        work: `FORWARD` or `TRAINING`.
        what: `seconds` or `peaks`.
    """
    own, full = (curve(results, n, pattern, work) for n in (name, FULL))
    costs = getattr(own, what)
    if len(costs) < 3 or not min(costs) or name == FULL:
        return None
    steps = math.log2(own.lengths[-1] / own.lengths[-2])
    if math.log2(costs[-1] / costs[-2]) / steps > STEEP:
        return None
    base = [getattr(full, what)[full.lengths.index(length)] for length in own.lengths]
    found = crossing(own.lengths, base, costs)
    return found if found is not None and found <= 2 * own.lengths[-1] else None


def _target(results: Sequence[Result], name: str, work: str) -> Target:
    found = efficiency_length(results, name, "NS", work)
    return Target(
        f"{name} is faster than {FULL} from a length of, NS {work}, by the fit",
        PUBLISHED,
        found,
        "tokens",
        at_least=False,
        reason="" if found is not None else "the fitted curves do not cross near what was measured",
    )
