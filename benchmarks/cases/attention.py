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
FUSED_GAIN = 2.0
ROWS_COST = 5.0  # per cent
FORMULA, FUSED, FUSED_ROWS = "eager formula, all maps", "attend", "attend, maps of 3 rows"


def run(setting: Setting) -> Outcome:
    """Lengths 64 to 2048 with gradients; the largest one with maps of three rows."""
    outcome = Outcome()
    lengths = setting.pick((64, 128, 256, 512, 1024, 2048), (64, 256))
    for length in lengths:
        outcome.results += _lengths(length, setting)
        outcome.results += _maps(length, setting)
    longest = lengths[-1]
    outcome.results += _formula_maps(longest, setting)
    outcome.targets += [
        _choice(outcome.results, lengths),
        _fused(outcome.results, longest, setting),
        _free_maps(outcome.results, longest, setting),
    ]
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


def _formula_maps(length: int, setting: Setting) -> list[Result]:
    """The longest call alone, with more rounds: what the targets are about."""
    inputs = _inputs(length, setting)
    rows = torch.tensor([0, length // 2, length - 1], device=setting.device)
    calls = {
        FORMULA: partial(_formula, *inputs),
        FUSED: partial(_with_maps, *inputs, None),
        FUSED_ROWS: partial(_with_maps, *inputs, MapRequest(queries=rows)),
    }
    variants = [
        Variant(name, call, extra=device_peak(call, setting)) for name, call in calls.items()
    ]
    repeats = setting.pick(15, 3)
    return compare(
        _against_formula(length),
        variants,
        setting,
        repeats=repeats,
        seconds=setting.pick(0.2, 0.01),
        baseline=FUSED,
    )


def _formula(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and all maps, as one writes them down."""
    with torch.no_grad():
        weights = (query @ key.mT * HEAD_DIM**-0.5).softmax(-1)
        return weights @ value, weights


def _against_formula(length: int) -> str:
    return f"forward against the formula, {length} tokens"


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


def _fused(results: list[Result], length: int, setting: Setting) -> Target:
    formula = find(results, _against_formula(length), FORMULA)
    return Target(
        f"attend is faster than the eager formula with all maps, forward, {length} tokens, "
        f"threads: {setting.threads}",
        FUSED_GAIN,
        1 / formula.ratio.median,
        "x",
    )


def _free_maps(results: list[Result], length: int, setting: Setting) -> Target:
    with_rows = find(results, _against_formula(length), FUSED_ROWS)
    return Target(
        f"maps of three rows cost little: time on top of attend without, forward, {length} "
        f"tokens, threads: {setting.threads}",
        ROWS_COST,
        100 * (1 / with_rows.ratio.median - 1),
        "%",
        at_least=False,
    )
