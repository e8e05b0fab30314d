"""Attention inside each of many sequences that lie one after another, without padding."""

from __future__ import annotations

import inspect
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from manyhead_core.attention.masks import SlidingWindow
from manyhead_core.errors import ConfigError

# Keys that a query sees before and after its own position; -1 is all of them.
Window = tuple[int, int]

ALL = -1
CAPABILITY = (8, 0)
DTYPES = (torch.bfloat16, torch.float16)
WIDTH_STEP, MAX_WIDTH = 8, 256


def varlen_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    key_cu_seqlens: Tensor | None = None,
    *,
    window: Window = (ALL, ALL),
    scale: float | None = None,
    return_lse: bool = False,
    longest: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention inside each of many sequences that lie one after another.

    The last query of a sequence is on its last key. Sequences without queries or keys are legal;
    a query without a visible key gives zeros and an lse of minus infinity. `packed_reference`
    states all this as a loop, which is also what runs on CPU.

    Args:
        query: `(tokens, heads, head_dim)`.
        key: `(key_tokens, key_heads, head_dim)`.
        value: `(key_tokens, key_heads, head_dim)`.
        cu_seqlens: Where the sequences start, and the end of the last one, `(sequences + 1,)`.
        key_cu_seqlens: The same for keys; None takes that of the queries.
        window: Keys visible before and after the position of a query, -1 for all; `(-1, 0)` is
            causal.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        return_lse: Whether to return the log of the softmax denominator; on CUDA it has no
            gradient.
        longest: Upper bounds of the queries and keys of a sequence; None looks, which waits for
            the device.

    Returns:
        Output `(tokens, heads, head_dim)`; lse `(tokens, heads)` or None.

    Raises:
        ConfigError: The boundaries do not fit, or the device cannot do it.
    """
    cu_keys = cu_seqlens if key_cu_seqlens is None else key_cu_seqlens
    if cu_seqlens.shape != cu_keys.shape:
        raise ConfigError(
            f"cu_seqlens: {len(cu_seqlens) - 1} sequences of queries and {len(cu_keys) - 1} of "
            f"keys; give each its own"
        )
    if query.device.type == "cpu" or query.shape[0] == 0 or key.shape[0] == 0:
        return packed_reference(
            query,
            key,
            value,
            cu_seqlens,
            cu_keys,
            window=window,
            scale=scale,
            return_lse=return_lse,
        )
    reason = no_kernel(query, key, value, return_lse=return_lse)
    if reason:
        raise ConfigError(f"backend: varlen {reason}; use auto or eager")
    most = longest or (int(cu_seqlens.diff().max()), int(cu_keys.diff().max()))
    starts = (cu_seqlens.to(torch.int32), cu_keys.to(torch.int32))
    window, most = _honoured(window, most)
    return _kernel(query, key, value, starts, most, window, scale, return_lse=return_lse)


def packed_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    key_cu_seqlens: Tensor | None = None,
    *,
    window: Window = (ALL, ALL),
    scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `varlen_packed` means, one sequence after another; arguments and result are its own.

    Raises:
        ConfigError: The boundaries are not those of the tokens.
    """
    cu_keys = cu_seqlens if key_cu_seqlens is None else key_cu_seqlens
    # Both are defined by each other: this loop by `attend`, one of whose kernels is the packed one.
    from manyhead_core.attention.attend import attend

    spans = [_spans(*x) for x in ((query, cu_seqlens), (key, cu_keys), (value, cu_keys))]
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for q, k, v in zip(*spans, strict=True):
        part = [x.transpose(0, 1)[None] for x in (q, k, v)]
        mask = _window_mask(window, q.shape[0], k.shape[0])
        found = attend(*part, mask=mask, scale=scale, backend="eager", return_lse=return_lse)
        outs.append(found.out[0].transpose(0, 1))
        if found.lse is not None:
            lses.append(found.lse[0].T)
    return torch.cat(outs), torch.cat(lses) if return_lse else None


def no_kernel(query: Tensor, key: Tensor, value: Tensor, *, return_lse: bool) -> str | None:
    """Why the kernel cannot run with these, in any layout, or None."""
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if return_lse and learns:
        return "has no gradient of the lse"
    if value.shape[-1] != key.shape[-1]:
        return "needs values as wide as keys"
    if query.shape[-1] % WIDTH_STEP or query.shape[-1] > MAX_WIDTH:
        return f"needs a head width that is a multiple of {WIDTH_STEP} and at most {MAX_WIDTH}"
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        return "takes bfloat16 and float16 only"
    if query.device.type != "cuda":
        return "runs on CUDA only"
    if torch.cuda.get_device_capability(query.device) < CAPABILITY:
        return "needs a CUDA device of compute capability 8.0 or more"
    return None if _attention() else "needs torch 2.10 or newer"


def _spans(tokens: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
    ends = cu_seqlens.tolist()
    sizes = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != tokens.shape[0] or min(sizes, default=0) < 0:
        raise ConfigError(
            f"cu_seqlens: {ends} does not run from 0 to {tokens.shape[0]} tokens without going back"
        )
    return tokens.split(sizes)


def _window_mask(window: Window, queries: int, keys: int) -> SlidingWindow:
    before, after = (queries + keys if side == ALL else side for side in window)
    return SlidingWindow(before, after)


@cache
def _attention() -> Any:
    """The module of torch with the kernel, which came with 2.10; None before."""
    try:
        from torch.nn.attention import varlen as module
    except ImportError:
        return None
    return module


def _honoured(window: Window, longest: tuple[int, int]) -> tuple[Window, tuple[int, int]]:
    """Window and lengths with which the kernel looks at the window.

    It drops a side of the window that is as long as the keys, although the far side still cuts when
    there are more queries than keys.
    """
    queries, keys = longest
    before, after = (ALL if side >= queries + keys else side for side in window)
    return (before, after), (queries, max(keys, after + 1))


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    window: Window,
    scale: float | None,
    *,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The call in the form that the installed torch knows."""
    module = _attention()
    known = inspect.signature(module.varlen_attn).parameters
    options: dict[str, Any] = {"return_aux": module.AuxRequest(lse=True)} if return_lse else {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if "window_size" in known:
        options |= {"window_size": window, "scale": scale}
    else:
        query, options = _early_form(query, window, scale, options)
    found = module.varlen_attn(query, key, value, *starts, *longest, **options)
    if not return_lse:
        return found, None
    out, lse = found
    # The heads come first, whatever its description says; where nothing is visible it is plus
    # infinity.
    return out, lse.T.masked_fill(lse.T.isposinf(), float("-inf"))


def _early_form(
    query: Tensor, window: Window, scale: float | None, options: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Torch 2.10 knows causality only, and has no scale."""
    if window not in ((ALL, ALL), (ALL, 0)):
        raise ConfigError("backend: varlen needs torch 2.11 for windows; use auto or eager")
    if scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    return query, options | {"is_causal": window == (ALL, 0)}
