"""Packed `pool` on bags of very different lengths, against padding and against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Outcome, Result, Setting, Target, Variant, compare, find
from benchmarks.memory import device_peak
from manyhead_core.attention.pool import pool

DIM = 512
BRANCHES = (1, 5)


def run(setting: Setting) -> Outcome:
    """Log-uniform bags, one and five branches, forward and forward with backward."""
    setting = replace(setting, threads=1)
    outcome = Outcome()
    lengths = _lengths(*setting.pick((32, 100, 20_000), (8, 50, 1000)))
    ratio = len(lengths) * max(lengths) / sum(lengths)
    for branches in BRANCHES:
        for backward in (False, True):
            outcome.results += _compare(lengths, branches, backward, setting)
    outcome.targets += _targets(outcome.results, ratio)
    outcome.notes.append(
        f"{len(lengths)} bags of {min(lengths)} to {max(lengths)} instances, {sum(lengths)} in "
        f"all, width {DIM}, float32, one thread; padding makes them {ratio:.2f} times as many. "
        "What is padded was padded before the clock starts. The loop splits the bags, and "
        "softmax and product of each are PyTorch's own"
    )
    return outcome


def _lengths(bags: int, low: int, high: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(bags, generator=generator)
    return (low * (math.log(high / low) * share).exp()).int().tolist()


def _compare(lengths: list[int], branches: int, backward: bool, setting: Setting) -> list[Result]:
    generator = torch.Generator().manual_seed(branches)
    packed = [
        torch.randn(sum(lengths), width, generator=generator).to(setting.device).requires_grad_()
        for width in (branches, DIM)
    ]
    padded = [_pad(tensor, lengths) for tensor in packed]
    counts = torch.tensor(lengths, device=setting.device)
    starts = torch.tensor([0, *lengths], device=setting.device).cumsum(0)
    mask = torch.arange(max(lengths), device=setting.device) < counts[:, None]
    calls: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "padded, formula": (partial(_formula, mask=mask), padded),
        "padded, pool": (lambda *x: pool(*x, lengths=counts).out, padded),
        "loop over bags": (partial(_loop, lengths=lengths), packed),
        "packed, pool": (lambda *x: pool(*x, cu_seqlens=starts).out, packed),
    }
    variants = []
    for name, (function, tensors) in calls.items():
        call = partial(_step if backward else _forward, function, tensors)
        variants.append(Variant(name, call, len(lengths), device_peak(call, setting)))
    group = _group(branches, backward)
    return compare(group, variants, setting, unit="bag", repeats=setting.pick(7, 3), seconds=0.01)


def _pad(tensor: Tensor, lengths: list[int]) -> Tensor:
    bags = tensor.detach().split(lengths)
    return torch.nn.utils.rnn.pad_sequence(bags, batch_first=True).requires_grad_()


def _formula(scores: Tensor, values: Tensor, *, mask: Tensor) -> Tensor:
    """Masked softmax and product of the padded bags; the padding is known to be finite."""
    return scores.masked_fill(~mask[..., None], float("-inf")).softmax(1).mT @ values


def _loop(scores: Tensor, values: Tensor, *, lengths: list[int]) -> Tensor:
    bags = zip(scores.split(lengths), values.split(lengths), strict=True)
    return torch.stack([score.softmax(0).mT @ value for score, value in bags])


def _forward(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    with torch.no_grad():
        function(*tensors)


def _step(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    torch.autograd.grad(function(*tensors).sum(), tensors)


def _group(branches: int, backward: bool) -> str:
    return f"forward{' + backward' * backward}, {branches} branch{'es' * (branches > 1)}"


def _targets(results: list[Result], ratio: float) -> list[Target]:
    groups = [_group(branches, backward) for branches in BRANCHES for backward in (False, True)]
    packed = {group: find(results, group, "packed, pool").ratio.median for group in groups}
    loops = {group: find(results, group, "loop over bags").ratio.median for group in groups}
    slowest = min(packed, key=lambda group: packed[group])
    closest = min(groups, key=lambda group: packed[group] / loops[group])
    return [
        Target(
            f"packed bags are at least half the padding ratio ({ratio:.2f}) faster than the "
            f"formula on padded ones, worst case ({slowest})",
            ratio / 2,
            packed[slowest],
            "x",
        ),
        Target(
            f"packed bags are as fast as a loop over them, worst case ({closest})",
            0.95,
            packed[closest] / loops[closest],
            "x",
        ),
    ]
