"""A packed batch of bags against the loop over bags that published code runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.harness import Outcome, Result, Setting, Target, Variant, compare, find
from manyhead.acmil.model import ACMIL, ACMILConfig
from manyhead_core.training.heap import keep_freed_memory

BAGS = 32
# Patches of the shortest and the longest bag, features, width, least speed-up.
SMALL = ("bags of 2 to 40", 2, 40, 166, 64, 3.0)
LARGE = ("bags of 1,000 to 4,000", 1000, 4000, 1024, 512, 0.95)
QUICK = ("bags of 100 to 400", 100, 400, 1024, 512, 0.95)


def run(setting: Setting) -> Outcome:
    """Forward and backward with masking and all three losses, in training mode."""
    setting = replace(setting, threads=1)
    outcome = Outcome()
    kept = keep_freed_memory() if setting.device.type == "cpu" else False
    for name, low, high, features, dim, goal in (SMALL, setting.pick(LARGE, QUICK)):
        lengths = spread_lengths(BAGS, low, high)
        results = _compare(f"{BAGS} {name}", lengths, features, dim, setting)
        outcome.results += results
        ratio = find(results, f"{BAGS} {name}", "packed").ratio.median
        outcome.targets.append(
            Target(f"packed batch over loop, {name} patches of {features}", goal, ratio, "x")
        )
        outcome.notes.append(
            f"{name}: {sum(lengths):,} patches in all, {features} features, width {dim}, five "
            "branches, 6 of 10 patches masked, float32, one thread"
        )
    if kept:
        keep_freed_memory(False)
        outcome.notes.append("the process keeps the memory that tensors free, as fit on a CPU does")
    return outcome


def spread_lengths(bags: int, low: int, high: int) -> list[int]:
    """Lengths of bags, uniform on the logarithm."""
    share = torch.rand(bags, generator=torch.Generator().manual_seed(0))
    return (low * (math.log(high / low) * share).exp()).int().tolist()


def _compare(
    group: str, lengths: list[int], features: int, dim: int, setting: Setting
) -> list[Result]:
    torch.manual_seed(0)
    device = setting.device
    net = ACMIL(ACMILConfig(feature_dim=features, dim=dim)).to(device).train()
    packed = torch.randn(sum(lengths), features, device=device)
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0)
    label = torch.arange(len(lengths), device=device) % 2
    bags = packed.split(lengths)
    one = [torch.tensor([0, length], device=device) for length in lengths]

    def loop() -> None:
        net.zero_grad(set_to_none=True)
        for number, (bag, ends) in enumerate(zip(bags, one, strict=True)):
            (loss(net, bag, ends, label[number : number + 1]) / len(bags)).backward()

    def together() -> None:
        net.zero_grad(set_to_none=True)
        loss(net, packed, bounds, label).backward()

    _check(net, loop, together)
    variants = [
        Variant("loop over bags", loop, len(lengths)),
        Variant("packed", together, len(lengths)),
    ]
    return compare(group, variants, setting, unit="bag", repeats=setting.pick(5, 3))


def loss(net: ACMIL, features: Tensor, bounds: Tensor, label: Tensor) -> Tensor:
    """Sum of the losses of a packed batch."""
    terms = net.losses(net(features, bounds), label, cu_seqlens=bounds)
    return torch.stack(list(terms.values())).sum()


def _check(net: ACMIL, loop: Callable[[], None], together: Callable[[], None]) -> None:
    """Both ways give the same gradients; masking draws, so it is off here."""
    net.eval()
    loop()
    expected = [parameter.grad for parameter in net.parameters()]
    together()
    for parameter, other in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=1e-3, atol=1e-5)
    net.train()
