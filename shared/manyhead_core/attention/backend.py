"""Which kernel runs a call of `attend`, and why the faster ones were refused.

A call is described as a `Call`; `BACKEND_RULES` and `LIMITS` of `backend_rules` decide.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from manyhead_core.attention.backend_rules import (
    BACKEND_RULES,
    LIMITS,
    PACK_KEYS,
    SHORT_KEYS,
    STRUCTURED,
    Call,
    Limit,
    MaskKind,
    Rule,
)
from manyhead_core.attention.masks import (
    Both,
    Causal,
    Either,
    KeyPadding,
    Mask,
    Shape,
    SlidingWindow,
)
from manyhead_core.attention.settings import exporting
from manyhead_core.errors import ConfigError

if TYPE_CHECKING:
    from manyhead_core.attention.biases import Bias, ScoreMod

Backend = Literal["auto", "eager", "sdpa", "flex", "varlen"]


class Refused(NamedTuple):
    """A faster kernel that was not taken.

    Args:
        kernel: Its name; `flash` is the fastest of those behind `sdpa`.
        reason: What it cannot do, or why it would not be faster here.
        remedy: What the user can change; empty where nothing can be gained.
    """

    kernel: str
    reason: str
    remedy: str = ""


class AttendInfo(NamedTuple):
    """The kernel of a call.

    Args:
        backend: Name of the kernel: `eager`, `sdpa`, `flex` or `varlen`.
        refused: Faster kernels that were not taken, each with reason and remedy.
        why: Why this one was.
    """

    backend: str
    refused: tuple[Refused, ...] = ()
    why: str = ""


PART_OF = {"flash": "sdpa", "efficient": "sdpa"}


def explain_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None = None,
    bias: Tensor | Bias | None = None,
    score_mod: ScoreMod | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> AttendInfo:
    """Name the kernel that `attend` takes for these inputs, without running it.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, value_dim)`.
        mask: Which pairs may attend.
        bias: Added to the scores.
        score_mod: Function of the scores.
        dropout_p: Probability of dropping an attention weight.
        return_lse: Whether the log of the softmax denominator is wanted.
        backend: `auto`, or the name of the kernel to take.

    Raises:
        ConfigError: The named kernel does not exist or cannot do it.
    """
    if backend == "eager":
        return AttendInfo("eager")
    call = describe(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        score_mod=score_mod,
        dropout_p=dropout_p,
        return_lse=return_lse,
    )
    return choose(call) if backend == "auto" else named(call, backend)


def choose(call: Call) -> AttendInfo:
    """The kernel for a call by the first row of `BACKEND_RULES` that can do it."""
    refused: dict[str, Refused] = {}
    for rule in _rules(call.device):
        if not rule.holds(call):
            continue
        limit = unable(rule.kernel, call)
        if limit is not None:
            _refuse(refused, call, rule.kernel, limit.reason, limit.remedy)
            continue
        if rule.instead_of:
            # A kernel that could not do it anyway is refused for that.
            limit = unable(rule.instead_of, call)
            reason, remedy = (
                (rule.why, rule.remedy) if limit is None else (limit.reason, limit.remedy)
            )
            _refuse(refused, call, rule.instead_of, reason, remedy)
        backend = PART_OF.get(rule.kernel, rule.kernel)
        why = f"{rule.instead_of} {rule.why}" if rule.instead_of else rule.why
        return AttendInfo(backend, tuple(refused.values()), why)
    return AttendInfo("eager", tuple(refused.values()), "can do everything")


def named(call: Call, backend: str) -> AttendInfo:
    """The kernel that the user names, if it can do the call.

    Raises:
        ConfigError: It does not exist or cannot.
    """
    if backend not in get_args(Backend):
        names = ", ".join(get_args(Backend))
        raise ConfigError(f"backend: {backend!r} is unknown; use one of {names}")
    limit = unable(backend, call)
    if limit is not None:
        raise ConfigError(f"backend: {backend} {limit.reason}; use auto or eager")
    return AttendInfo(backend)


def unable(kernel: str, call: Call) -> Limit | None:
    """What a kernel cannot do of a call, or None."""
    for limit in _limits(kernel):
        if limit.holds(call):
            return limit
    return None


@cache
def _rules(device: str) -> tuple[Rule, ...]:
    own = tuple(rule for rule in BACKEND_RULES if rule.device == device)
    return own or tuple(rule for rule in BACKEND_RULES if rule.device == "any")


@cache
def _limits(kernel: str) -> tuple[Limit, ...]:
    names = (kernel, PART_OF.get(kernel, kernel))
    return tuple(limit for limit in LIMITS if limit.kernel in names)


def _refuse(refused: dict[str, Refused], call: Call, kernel: str, reason: str, remedy: str) -> None:
    if kernel == "efficient":
        kernel = "sdpa"
    # Over few keys nothing is gained by another kernel.
    refused.setdefault(kernel, Refused(kernel, reason, remedy if call.keys > SHORT_KEYS else ""))


def describe(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None,
    bias: Tensor | Bias | None,
    score_mod: ScoreMod | None,
    dropout_p: float,
    return_lse: bool,
) -> Call:
    """A call of `attend` as what the rules look at."""
    device = query.device.type
    on_cuda = device == "cuda"
    autograd = torch.is_grad_enabled()
    export = exporting()
    tracing = export or torch.compiler.is_compiling()
    queries, keys = query.shape[2], key.shape[2]
    kind: MaskKind = "none" if mask is None else mask_kind(mask, Shape.of(query, key))
    countable = on_cuda and not tracing and kind == "keys" and keys >= PACK_KEYS
    return Call(
        device=device,
        capability=_capability(query.device) if on_cuda and not tracing else (0, 0),
        dtype=query.dtype,
        batch=0 if tracing else query.shape[0],
        queries=queries,
        keys=keys,
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        mask=kind,
        packable=_packable(mask),
        padding=padding(mask, keys) if countable else 0.0,
        bias=bias is not None,
        bias_grad=autograd and bias is not None and bias.requires_grad,
        score_mod=score_mod is not None,
        dropout=dropout_p > 0,
        lse=return_lse,
        grad=autograd and (query.requires_grad or key.requires_grad or value.requires_grad),
        deterministic=on_cuda and torch.are_deterministic_algorithms_enabled(),
        compiling=tracing,
        exporting=export,
        has_varlen=not on_cuda or _has_varlen(),
    )


def mask_kind(mask: Tensor | Mask | None, shape: Shape) -> MaskKind:
    """What a mask is to the kernels."""
    if mask is None:
        return "none"
    if isinstance(mask, Tensor):
        return "dense"
    if mask.kind == "causal" and shape.queries == shape.keys:
        return "causal"
    if mask.kind == "keys":
        return "keys"
    return "structured" if _structured(mask) else "dense"


def _structured(mask: Mask) -> bool:
    """Whether whole blocks of the scores may be hidden, as the kind tells."""
    if isinstance(mask, Both | Either):
        return _structured(mask.first) or _structured(mask.second)
    return mask.kind in STRUCTURED


def _packable(mask: Tensor | Mask | None) -> bool:
    if isinstance(mask, Both):
        return _packable(mask.first) and _packable(mask.second)
    return mask is None or isinstance(mask, KeyPadding | Causal | SlidingWindow)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _has_varlen() -> bool:
    return find_spec("torch.nn.attention.varlen") is not None


def padding(mask: Tensor | Mask | None, keys: int) -> float:
    """Share of the keys that a padding mask hides; waits for the device."""
    if not isinstance(mask, KeyPadding):
        return 0.0
    return 1.0 - float(mask.keys(keys).float().mean())
