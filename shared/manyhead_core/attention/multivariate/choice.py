"""Which form of parallel attention runs, and why the faster ones do not."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from manyhead_core.attention.backend import AttendInfo, Refused, describe
from manyhead_core.attention.backend import unable as unable_backend
from manyhead_core.attention.multivariate.inputs import Parts
from manyhead_core.attention.settings import exporting
from manyhead_core.errors import ConfigError

Form = Literal["auto", "eager", "chunked", "flex", "triton"]
DropoutKind = Literal["weights", "keys"]

HAS_TRITON = find_spec("triton") is not None
WIDTHS = (16, 32, 64, 128)  # heads that the Triton kernels take
SHORT = 128  # tokens up to which the plain form is the fastest on a CPU
KEYS = 'set dropout_kind="keys"'
FASTEST = {"cuda": ("triton", "flex", "chunked"), "cpu": ("chunked",)}
WHY = {
    "triton": "is a fused kernel for these heads",
    "flex": "is a fused kernel for heads of any width",
    "chunked": "holds no scores of all pairs",
    "eager": "can do everything",
}


def choose_form(parts: Parts, form: Form = "auto", *, drops_weights: bool = False) -> AttendInfo:
    """The form for a call.

    Args:
        parts: What it is called with.
        form: `auto`, or the form to take.
        drops_weights: Whether single weights are dropped.

    Raises:
        ConfigError: The named form does not exist or cannot do it.
    """
    if form not in get_args(Form):
        raise ConfigError(f"form: {form!r} is unknown; use one of {', '.join(get_args(Form))}")
    if form != "auto":
        reason = unable(form, parts, drops_weights=drops_weights)
        if reason:
            raise ConfigError(f"form: {form} {reason}; use auto or eager")
        return AttendInfo(form, why="was asked for")
    device, tokens = parts.query.device.type, parts.query.shape[2]
    if device == "cpu" and tokens <= SHORT and not torch.compiler.is_compiling():
        return AttendInfo("eager", why=f"is the fastest over up to {SHORT} tokens")
    refused: list[Refused] = []
    for faster in FASTEST.get(device, ("chunked",)):
        reason = unable(faster, parts, drops_weights=drops_weights)
        if reason is None:
            return AttendInfo(faster, tuple(refused), WHY[faster])
        remedy = KEYS if reason == _DROPS and not exporting() else ""
        refused.append(Refused(faster, reason, remedy))
    return AttendInfo("eager", tuple(refused), WHY["eager"])


_DROPS = "drops no single weights"


def unable(form: str, parts: Parts, *, drops_weights: bool = False) -> str | None:
    """Why a form cannot do a call, or None.

    Args:
        form: Its name.
        parts: What it is called with.
        drops_weights: Whether single weights are dropped.
    """
    if form == "eager":
        return None
    if exporting():
        return "is no part of an exported graph"
    if drops_weights and (form != "chunked" or torch.compiler.is_compiling()):
        return _DROPS if form != "chunked" else "drops no single weights in a compiled graph"
    if form == "triton":
        return _no_triton(parts)
    return _no_flex(parts) if form == "flex" else None


def _no_triton(parts: Parts) -> str | None:
    query = parts.query
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "takes float32, bfloat16 and float16 only"
    if query.shape[-1] not in WIDTHS:
        return f"takes heads of width {', '.join(map(str, WIDTHS))} only"
    if not HAS_TRITON:
        return "needs the package triton"
    if query.device.type != "cuda":
        # Triton's own setting: its kernels as Python, to test them.
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "runs on CUDA only"
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.cuda.get_device_capability(query.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    return None


def _no_flex(parts: Parts) -> str | None:
    given: dict[str, Any] = {"mask": None, "bias": None, "score_mod": None}
    call = describe(*parts[:3], **given, dropout_p=0.0, return_lse=False)
    # What is looked up in tables is a bias to the kernel.
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    limit = unable_backend("flex", replace(call, score_mod=True, bias_grad=learns))
    return None if limit is None else limit.reason
