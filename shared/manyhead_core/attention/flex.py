"""FlexAttention: masks and score functions inside a fused kernel that skips blocks nobody sees."""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask

from manyhead_core.attention import biases, masks
from manyhead_core.attention.bias_base import Bias, ScoreMod, chain
from manyhead_core.attention.mask_base import Mask, Shape
from manyhead_core.errors import ConfigError

Kernel = Callable[..., Any]

MIN_WIDTH = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Set to 1 to compile on CPU too, which takes about a minute for each shape.
COMPILE_VARIABLE = "MANYHEAD_FLEX_COMPILE"

# Every shape and every kind of mask or bias is a compilation of its own; the default of 8 would
# end a run over a few image sizes with an error.
RECOMPILATIONS = 256
CACHED_MASKS = 32


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None = None,
    bias: Tensor | Bias | None = None,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    compiled: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Output `(batch, heads, queries, value_dim)`, and the lse `(batch, heads, queries)` or None.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, value_dim)`.
        mask: Which pairs may attend. Objects are worth keeping: their block structure is computed
            once for each shape. Tensors are read anew at each call.
        bias: Added to the scaled scores.
        score_mod: Applied to the score after that. It may not read a learning tensor twice.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        return_lse: Whether to return the log of the softmax denominator.
        compiled: Whether to compile the kernel for this shape; otherwise all scores are held, as in
            the eager form. None compiles on CUDA, and on CPU when the environment variable
            `MANYHEAD_FLEX_COMPILE` is 1.

    Raises:
        ConfigError: It cannot do this; `unable` says why.
    """
    if isinstance(bias, Tensor):
        bias = biases.Dense(bias)
    reason = unable(query, key, value, bias=bias, return_lse=return_lse)
    if reason:
        raise ConfigError(f"backend: flex {reason}; use auto or eager")
    shape = Shape.of(query, key)
    out, lse = _run(
        *_inputs(query, key, value),
        score_mod=_score_mod(bias, score_mod, shape),
        block_mask=None if mask is None else _block_mask(mask, shape),
        scale=scale,
        return_lse=return_lse,
        compiled=_compiles(query.device) if compiled is None else compiled,
    )
    return out.to(value.dtype), lse


def unable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None = None,  # noqa: ARG001 - it takes every one
    bias: Tensor | Bias | None = None,
    score_mod: ScoreMod | None = None,  # noqa: ARG001 - it takes every one
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> str | None:
    """Why FlexAttention cannot do this, or None.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, value_dim)`.
        mask: Which pairs may attend.
        bias: Added to the scaled scores.
        score_mod: Applied to the score.
        dropout_p: Probability of dropping an attention weight.
        return_lse: Whether the log of the softmax denominator is wanted.
    """
    device = query.device.type
    learns = bias is not None and bias.requires_grad
    if dropout_p > 0:
        return "has no dropout"
    if query.is_nested or key.is_nested or value.is_nested:
        return "takes no nested tensors"
    if any(x.dtype not in DTYPES for x in (query, key, value)):
        return "takes float32, bfloat16 and float16 only"
    if query.shape[2] == 0 or key.shape[2] == 0:
        return "needs at least one query and one key"
    if min(query.shape[-1], value.shape[-1]) < MIN_WIDTH:
        return f"needs heads of width {MIN_WIDTH} or more"
    if device not in ("cpu", "cuda"):
        return "runs on CPU and CUDA only"
    if device == "cpu":
        if torch.is_grad_enabled() and (
            learns or any(x.requires_grad for x in (query, key, value))
        ):
            return "has no gradients on CPU"
        return "returns no lse on CPU" if return_lse else None
    if learns and torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled():
        return (
            "adds up the gradients of a bias in random order, and deterministic algorithms are on"
        )
    return None


def clear_block_masks() -> None:
    """Let go of the block structures that are kept, and of the masks they belong to."""
    with _lock:
        _kept.clear()


_lock = threading.Lock()
_kept: OrderedDict[tuple[Any, ...], BlockMask] = OrderedDict()


def _inputs(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    query, key, value = (x.to(kind) for x in (query, key, value))
    if torch.is_grad_enabled():
        return query, key, value
    # On CPU it refuses leaves that learn, whether or not gradients are on.
    return query.detach(), key.detach(), value.detach()


def _score_mod(bias: Bias | None, score_mod: ScoreMod | None, shape: Shape) -> ScoreMod | None:
    if bias is None:
        return score_mod
    if score_mod is None:
        return bias.score_mod(shape)
    # Both may read the same learning tensor, and reading one twice is refused.
    return chain(bias.cloned().score_mod(shape), score_mod)


def _block_mask(mask: Tensor | Mask, shape: Shape) -> BlockMask:
    if isinstance(mask, Tensor):
        return _build(masks.Dense(mask), shape)
    versions = None if torch.compiler.is_compiling() else _versions(mask)
    if versions is None:
        return _build(mask, shape)
    name = (mask, shape, versions)
    with _lock:
        found = _kept.pop(name, None)
        if found is None:
            found = _build(mask, shape)
        _kept[name] = found
        while len(_kept) > CACHED_MASKS:
            _kept.popitem(last=False)
    return found


def _versions(mask: Mask) -> tuple[int, ...] | None:
    """How often each tensor of a mask was changed in place; None if that is not known."""
    if not is_dataclass(mask):
        return None
    found: list[int] = []
    for field in fields(mask):
        part = getattr(mask, field.name)
        if isinstance(part, Tensor):
            if part.is_inference():
                return None
            found.append(part._version)
        elif isinstance(part, Mask):
            inner = _versions(part)
            if inner is None:
                return None
            found.extend(inner)
    return tuple(found)


def _build(mask: Mask, shape: Shape) -> BlockMask:
    per_batch, per_head = mask.varies
    return torch_flex.create_block_mask(
        mask.mask_mod(shape),
        shape.batch if per_batch else None,
        shape.heads if per_head else None,
        shape.queries,
        shape.keys,
        device=shape.device,
    )


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: ScoreMod | None,
    block_mask: BlockMask | None,
    scale: float | None,
    return_lse: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor | None]:
    options: dict[str, Any] = {
        "score_mod": score_mod,
        "block_mask": block_mask,
        "scale": scale,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    if return_lse:
        options |= _lse_option()
    if torch.compiler.is_compiling():
        found = torch_flex.flex_attention(query, key, value, **options)
    else:
        kernel = _compiled() if compiled else cast(Kernel, torch_flex.flex_attention)
        with _many_compilations():
            found = kernel(query, key, value, **options)
    if not return_lse:
        return found, None
    out, extra = found
    return out, extra if isinstance(extra, Tensor) else extra.lse


@cache
def _compiled() -> Kernel:
    return torch.compile(torch_flex.flex_attention, dynamic=False, fullgraph=True)


def _lse_option() -> dict[str, Any]:
    # `return_lse` became `return_aux` in torch 2.9.
    request = getattr(torch_flex, "AuxRequest", None)
    return {"return_lse": True} if request is None else {"return_aux": request(lse=True)}


@contextmanager
def _many_compilations() -> Iterator[None]:
    import torch._dynamo.config as settings

    with warnings.catch_warnings(), settings.patch(recompile_limit=RECOMPILATIONS):
        # Without compiling it warns that it does not compile.
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def _compiles(device: torch.device) -> bool:
    return device.type == "cuda" or os.environ.get(COMPILE_VARIABLE) == "1"
