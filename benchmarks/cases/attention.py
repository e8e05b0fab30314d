"""`attend` against eager code and PyTorch's own function, with and without attention maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

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
from manyhead_core.attention import MapRequest, attend

HEADS, HEAD_DIM = 4, 32
TOKENS = 4096  # of one call, shared between batch and length, so that sizes stay comparable
TOLERANCE = 0.9


def run(setting: Setting) -> Outcome:
    """Lengths 64 to 2048 with gradients; the largest one with maps of three rows."""
    outcome = Outcome()
    lengths = setting.pick((64, 128, 256, 512, 1024, 2048), (64, 256))
    for length in lengths:
        outcome.results += _lengths(length, setting)
        outcome.results += _maps(length, setting)
    outcome.targets += [_choice(outcome.results, lengths), _free_maps(outcome.results, lengths)]
    outcome.notes.append(
        f"float32, {HEADS} heads of width {HEAD_DIM}, {TOKENS} tokens per call, no mask"
    )
    return outcome


def _inputs(length: int, setting: Setting) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (max(1, TOKENS // length), HEADS, length, HEAD_DIM)
    return [
        torch.randn(shape, generator=generator).to(setting.device).requires_grad_()
        for _ in range(3)
    ]


def _step(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    torch.autograd.grad(function(*inputs).sum(), inputs)


def _attend(backend: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value, backend=backend).out


def _with_maps(query: Tensor, key: Tensor, value: Tensor, request: MapRequest | None) -> Tensor:
    with torch.no_grad():
        return attend(query, key, value, maps=request).out


def _lengths(length: int, setting: Setting) -> list[Result]:
    inputs = _inputs(length, setting)
    functions = {
        "torch SDPA": F.scaled_dot_product_attention,
        "attend auto": partial(_attend, "auto"),
        "attend eager": partial(_attend, "eager"),
    }
    calls = {name: partial(_step, function, inputs) for name, function in functions.items()}
    flops = count_flops(calls["torch SDPA"])
    variants = [
        Variant(name, call, extra={"flop": flops, **device_peak(call, setting)})
        for name, call in calls.items()
    ]
    return compare(_training(length), variants, setting, seconds=setting.pick(0.1, 0.01))


def _maps(length: int, setting: Setting) -> list[Result]:
    inputs = _inputs(length, setting)
    rows = torch.tensor([0, length // 2, length - 1], device=setting.device)
    requests = {
        "no maps": None,
        "maps of 3 rows": MapRequest(queries=rows),
        "maps of all rows": MapRequest(),
    }
    calls = {name: partial(_with_maps, *inputs, request) for name, request in requests.items()}
    variants = [
        Variant(name, call, extra=device_peak(call, setting)) for name, call in calls.items()
    ]
    return compare(_inference(length), variants, setting, seconds=setting.pick(0.05, 0.01))


def _training(length: int) -> str:
    return f"forward + backward, {length} tokens"


def _inference(length: int) -> str:
    return f"forward, {length} tokens"


def _choice(results: list[Result], lengths: tuple[int, ...]) -> Target:
    ratios = []
    for length in lengths:
        auto, eager = (
            find(results, _training(length), name).ratio.median
            for name in ("attend auto", "attend eager")
        )
        ratios.append(auto / max(1.0, eager))  # SDPA is the baseline, 1
    return Target(
        "the automatic choice is as fast as the better of eager and SDPA, worst length",
        TOLERANCE,
        min(ratios),
        "x",
    )


def _free_maps(results: list[Result], lengths: tuple[int, ...]) -> Target:
    return Target(
        f"maps of three rows cost little: speed against no maps, {lengths[-1]} tokens",
        TOLERANCE,
        find(results, _inference(lengths[-1]), "maps of 3 rows").ratio.median,
        "x",
    )
