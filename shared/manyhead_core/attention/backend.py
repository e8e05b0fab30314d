"""Which kernel runs a call of `attend`, and why the faster ones were refused."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manyhead_core.errors import ConfigError

Backend = Literal["auto", "eager", "sdpa"]

# Forward and backward on one AVX-512 thread, torch 2.13, batch 1024, 2 heads of width 32, eager
# against SDPA in ms: 7 keys 10.0 : 10.8, 23 keys 27.7 : 35.2, 39 keys 67.5 : 57.9. Without
# gradients SDPA wins or ties at every size (7 keys: 4.4 : 2.7).
EAGER_TRAINING_KEYS = 32

# CUDA launches one grid row per batch element, and a grid has at most 65,535 of them.
CUDA_BATCH_LIMIT = 65_535


class AttendInfo(NamedTuple):
    """The kernel of a call.

    Args:
        backend: Name of the kernel, `eager` or `sdpa`.
        refused: Faster kernels that were not taken, each with the reason.
    """

    backend: str
    refused: tuple[tuple[str, str], ...] = ()


def explain_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> AttendInfo:
    """Name the kernel that `attend` takes for these inputs, without running it.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, value_dim)`.
        bias: Added to the scores, broadcastable to `(batch, heads, queries, keys)`.
        dropout_p: Probability of dropping an attention weight.
        return_lse: Whether the log of the softmax denominator is wanted.
        backend: `auto`, or the name of the kernel to take.

    Raises:
        ConfigError: The named kernel does not exist or cannot do it.
    """
    if backend == "eager":
        return AttendInfo("eager")
    unable = _sdpa_unable(key, return_lse)
    if backend == "sdpa":
        if unable:
            raise ConfigError(f"backend: sdpa {unable}; use auto or eager")
        return AttendInfo("sdpa")
    if backend != "auto":
        raise ConfigError(f"backend: {backend!r} is unknown; use auto, eager or sdpa")
    reason = unable or _sdpa_slower(query, key, value, bias, dropout_p)
    return AttendInfo("eager", (("sdpa", reason),)) if reason else AttendInfo("sdpa")


def _sdpa_unable(key: Tensor, return_lse: bool) -> str | None:
    if return_lse:
        return "returns no lse"
    if key.shape[2] == 0:
        return "needs at least one key"
    if key.device.type == "cuda" and key.shape[0] > CUDA_BATCH_LIMIT:
        return f"takes at most {CUDA_BATCH_LIMIT} batch elements on CUDA"
    return None


def _sdpa_slower(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_p: float
) -> str | None:
    if query.device.type != "cpu":
        return None
    if query.dtype in (torch.bfloat16, torch.float16):
        return "has a slow 16-bit backward on CPU"
    if dropout_p > 0:
        return "falls back to its unfused form with dropout on CPU"
    if value.shape[-1] != key.shape[-1]:
        return "falls back to its unfused form with another value width on CPU"
    if not torch.is_grad_enabled():
        return None
    if bias is not None and bias.requires_grad:
        return "falls back to its unfused form for a bias gradient on CPU"
    # A size that is symbolic while a graph is exported would become a guard on the batch here;
    # only the number of keys is looked at.
    if query.requires_grad and key.shape[2] <= EAGER_TRAINING_KEYS:
        return f"trains slower with {EAGER_TRAINING_KEYS} keys or fewer on CPU"
    return None
