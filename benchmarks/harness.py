"""Time variants of the same work in one run, interleaved, and report each against a baseline.

Times of different runs are not comparable: clocks, caches and neighbours change. So every round
measures all variants one after the other, in an order that rotates, and the ratio is taken within
the round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Setting:
    """What a case is told.

    Args:
        device: Device of the tensors.
        threads: Threads of PyTorch's operators.
        quick: Smaller sizes and fewer repeats, to see that it works.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    quick: bool = False

    def pick(self, full: Any, quick: Any) -> Any:
        """`quick` in a quick run, else `full`."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise at least one sample."""
        low, median, high = np.quantile(np.asarray(samples, dtype=float), [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high))

    @property
    def iqr(self) -> float:
        """Distance of the quartiles."""
        return self.high - self.low


@dataclass(frozen=True)
class Result:
    """One variant of one comparison.

    Args:
        group: What is compared, with its sizes.
        variant: Name of the way to do it.
        baseline: Variant that the ratio refers to.
        unit: Unit of `cost`, as `s/row` or `bytes`; less is better.
        cost: What it takes.
        ratio: Cost of the baseline over the cost of this variant, within a round: above 1 this
            variant is better.
        repeats: Number of rounds.
        extra: Further numbers, with the unit in the name.
    """

    group: str
    variant: str
    baseline: str
    unit: str
    cost: Spread
    ratio: Spread
    repeats: int
    extra: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        for name in ("cost", "ratio"):
            plain[name]["iqr"] = getattr(self, name).iqr
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`, for what another process has measured."""
        spreads = {
            name: Spread(*(plain[name][part] for part in ("median", "low", "high")))
            for name in ("cost", "ratio")
        }
        return cls(**{**plain, **spreads})


@dataclass(frozen=True)
class Target:
    """A claim with the number that bears it out or refutes it.

    Args:
        claim: What is claimed, with its conditions.
        goal: Number to reach.
        found: Number that was measured; None when it could not be.
        unit: Unit of both.
        at_least: False when `found` has to stay below `goal`.
        reason: Why nothing was found.
    """

    claim: str
    goal: float
    found: float | None
    unit: str = ""
    at_least: bool = True
    reason: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it holds; None when it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.goal if self.at_least else self.found < self.goal

    @property
    def text(self) -> str:
        """The goal in words, as `>= 50 x`."""
        return f"{'>=' if self.at_least else '<'} {self.goal:g} {self.unit}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {"claim": self.claim, "target": self.text, "found": self.found, "met": self.met}
        return plain | ({"reason": self.reason} if self.reason else {})


@dataclass
class Outcome:
    """What a case has measured; `notes` say what a reader of the numbers has to know."""

    results: list[Result] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Args:
        name: How tables call it.
        call: Does the work once. In `compare_work` it returns how many units it has done.
        units: Units, as rows, that one call of `compare` does.
        extra: Further numbers to report beside the time.
    """

    name: str
    call: Callable[[], Any]
    units: int = 1
    extra: Mapping[str, float] = field(default_factory=dict)


def compare(
    group: str,
    variants: Sequence[Variant],
    setting: Setting,
    *,
    unit: str = "call",
    repeats: int | None = None,
    seconds: float | None = None,
    baseline: str | None = None,
) -> list[Result]:
    """Time short functions; each sample is the median of one `Timer.blocked_autorange`.

    Args:
        group: What is compared, with its sizes.
        variants: At least two.
        setting: Device and threads.
        unit: What `Variant.units` counts.
        repeats: Rounds; 9, in a quick run 3.
        seconds: Least time of one sample in seconds; 0.2, in a quick run 0.02.
        baseline: Name of the variant the others are compared with; the first one.
    """
    least = setting.pick(0.2, 0.02) if seconds is None else seconds
    timers = [
        Timer("call()", globals={"call": variant.call}, num_threads=setting.threads)
        for variant in variants
    ]
    samplers = [
        lambda timer=timer, variant=variant: (
            timer.blocked_autorange(min_run_time=least).median / variant.units
        )
        for timer, variant in zip(timers, variants, strict=True)
    ]
    for variant in variants:
        variant.call()
    rounds = repeats or setting.pick(9, 3)
    return _results(group, variants, _interleave(samplers, rounds), f"s/{unit}", baseline)


def compare_work(
    group: str,
    variants: Sequence[Variant],
    setting: Setting,
    *,
    unit: str,
    repeats: int | None = None,
    baseline: str | None = None,
    warm_up: bool = True,
) -> list[Result]:
    """Time long pieces of work by the wall clock; `call` returns how many units it has done.

    A slow variant may do fewer units: times per unit are compared. Arguments as in `compare`.
    """

    def sample(variant: Variant) -> float:
        synchronise(setting.device)
        started = time.perf_counter()
        done = variant.call()
        synchronise(setting.device)
        return (time.perf_counter() - started) / done

    if warm_up:
        for variant in variants:
            variant.call()
    samplers = [lambda variant=variant: sample(variant) for variant in variants]
    rounds = repeats or setting.pick(5, 2)
    return _results(group, variants, _interleave(samplers, rounds), f"s/{unit}", baseline)


def _interleave(samplers: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Samples per sampler; the order rotates, so that none always follows the same one."""
    samples: list[list[float]] = [[] for _ in samplers]
    for round_ in range(rounds):
        for step in range(len(samplers)):
            which = (round_ + step) % len(samplers)
            samples[which].append(samplers[which]())
    return samples


def _results(
    group: str,
    variants: Sequence[Variant],
    samples: Sequence[Sequence[float]],
    unit: str,
    baseline: str | None,
) -> list[Result]:
    names = [variant.name for variant in variants]
    reference = names.index(baseline) if baseline else 0
    return [
        Result(
            group,
            variant.name,
            names[reference],
            unit,
            Spread.of(own),
            Spread.of([a / b for a, b in zip(samples[reference], own, strict=True)]),
            len(own),
            dict(variant.extra),
        )
        for variant, own in zip(variants, samples, strict=True)
    ]


def find(results: Sequence[Result], group: str, variant: str) -> Result:
    """The result of that name."""
    return next(r for r in results if (r.group, r.variant) == (group, variant))


def synchronise(device: torch.device) -> None:
    """Wait for the device: a CUDA call returns before its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of one call.

    The fused kernel on a CPU would be counted as zero, hence the plain form of attention.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
