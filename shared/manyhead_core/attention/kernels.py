"""The forms in which softmax attention is computed; all give the same result.

All take queries, keys and values as `attend` does and run outside autocast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from manyhead_core.attention.masks import Causal, Mask, Shape
from manyhead_core.attention.scores import (
    Rows,
    Scoring,
    Terms,
    attention_scores,
    row_chunks,
)
from manyhead_core.attention.settings import exporting

if TYPE_CHECKING:
    from manyhead_core.attention.biases import Bias, ScoreMod

# Without matrix units for bfloat16 the backward of the fused CPU kernel is slower than float32 and
# the casts: one AMD EPYC thread, torch 2.13, forward and backward, 4 heads of width 32, 64 tokens
# 0.76 ms : 0.26 ms, 512 tokens 7.8 : 7.9. Forward alone is equal.
HAS_AMX = bool(torch.cpu.get_capabilities().get("amx_tile", False))

# cuDNN is left out where it gave NaN gradients: see `settings.configure_sdp`.
SAFE_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Found = tuple[Tensor, Tensor | None]


def outside_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast would take the products back to 16 bits."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def run(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    *,
    dropout_p: float,
    return_lse: bool,
) -> Found:
    """Output and lse, None unless asked for, from the kernel that `explain_backend` named."""
    if backend == "sdpa":
        return sdpa(query, key, value, scoring, dropout_p=dropout_p), None
    if backend == "eager":
        return _eager(query, key, value, scoring, dropout_p=dropout_p, return_lse=return_lse)
    mask, bias, mod, scale = scoring.mask, scoring.bias, scoring.score_mod, scoring.scale
    # Most processes never need these two, and their imports take time.
    if backend == "flex":
        from manyhead_core.attention.flex import flex

        return flex(
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            score_mod=mod,
            scale=scale,
            return_lse=return_lse,
        )
    from manyhead_core.attention.varlen import varlen

    return varlen(query, key, value, mask=mask, scale=scale, return_lse=return_lse)


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | Mask | None,
    bias: Tensor | Bias | None,
    scale: float,
    score_mod: ScoreMod | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Found:
    """Two matrix products with a softmax between, in chunks of queries when the weights are many.

    A chunk is computed again in the backward pass, with the same dropout, so that neither pass
    holds more than one chunk's weights.
    """
    scoring = Scoring(mask, bias, score_mod, scale)
    return _eager(query, key, value, scoring, dropout_p=dropout_p, return_lse=return_lse)


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    *,
    dropout_p: float,
    return_lse: bool,
) -> Found:
    key, value = share_heads(query, key, value)
    shape = Shape.of(query, key)
    chunks = row_chunks(shape.batch, shape.heads, shape.queries, shape.keys)

    def part(query: Tensor, terms: Terms) -> Found:
        scores, blind = attention_scores(query, key, scoring.scale, terms)
        weights = scores.softmax(-1)
        if dropout_p > 0:
            weights = F.dropout(weights, dropout_p)
        out = (weights @ value.to(weights.dtype)).to(value.dtype)
        lse = scores.logsumexp(-1) if return_lse else None
        if blind is not None:
            # Blind rows are taken out here, where there is less to go through than the weights.
            out = out.masked_fill(blind, 0.0)
            lse = None if lse is None else lse.masked_fill(blind[..., 0], float("-inf"))
        return out, lse

    def rows_part(rows: Rows) -> Found:
        return part(query[:, :, rows], scoring.part(shape, rows))

    def again(rows: Rows) -> Found:
        # Only dropout draws random numbers.
        found: Found = checkpoint(
            rows_part, rows, use_reentrant=False, preserve_rng_state=dropout_p > 0
        )
        return found

    if len(chunks) == 1:
        return part(query, scoring.whole(shape))
    found = [again(rows) if torch.is_grad_enabled() else rows_part(rows) for rows in chunks]
    outs, lses = zip(*found, strict=True)
    return torch.cat(outs, 2), torch.cat(lses, 2) if return_lse else None


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, *, dropout_p: float
) -> Tensor:
    """PyTorch's fused kernels.

    A mask and a bias become one tensor, because the kernels take one argument only. The flag for
    causality is set without both: kernels disagree on what it means beside a mask.
    """
    kind, shape = value.dtype, Shape.of(query, key)
    query, key, value = one_format(query, key, value)
    causal = scoring.bias is None and kernel_causal(scoring.mask, shape)
    hidden = None if causal else one_mask(scoring.whole(shape), query.dtype)
    grouped = False
    if query.shape[1] != key.shape[1]:
        grouped = shares_inside(query, hidden)
        if not grouped:
            key, value = share_heads(query, key, value)
    with allowed_kernels(query, hidden):
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=hidden,
            dropout_p=dropout_p,
            is_causal=causal,
            scale=scoring.scale,
            enable_gqa=grouped,
        )
    if hidden is not None and exporting():
        visible = hidden if hidden.dtype == torch.bool else hidden > float("-inf")
        out = out.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    return out if out.dtype == kind else out.to(kind)


def share_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the queries have."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def kernel_causal(mask: Tensor | Mask | None, shape: Shape) -> bool:
    """Whether a kernel's own `is_causal` says all that the mask says.

    Both alignments agree for a square; elsewhere the flag means another one than the default here.
    """
    if not isinstance(mask, Causal) or exporting():
        return False
    # A size may be symbolic, and the kernel's flag takes a plain truth value.
    return True if shape.queries == shape.keys else False  # noqa: SIM210


def one_format(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three in one number format, which the kernels need: the widest of them."""
    kind = query.dtype
    same = kind == key.dtype == value.dtype
    if not same:
        kind = torch.promote_types(torch.promote_types(kind, key.dtype), value.dtype)
    if slow_format(kind, query.device.type):
        kind = torch.float32
    elif same:
        return query, key, value
    return query.to(kind), key.to(kind), value.to(kind)


def slow_format(kind: torch.dtype, device: str) -> bool:
    """Whether the fused kernel is faster in float32 than in this number format."""
    if device != "cpu":
        return False
    return kind == torch.float16 or (kind == torch.bfloat16 and not HAS_AMX)


def one_mask(terms: Terms, kind: torch.dtype) -> Tensor | None:
    """Mask and bias as one tensor."""
    mask, bias = terms.mask, terms.bias
    if bias is not None:
        bias = bias.to(kind)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    # The fused CPU kernel takes two or four axes; any other number goes to the unfused form.
    while mask is not None and mask.dim() not in (2, 4):
        mask = mask[None]
    return mask


def shares_inside(query: Tensor, hidden: Tensor | None) -> bool:
    """Whether the fused kernel shares key heads itself; others would take their unfused form."""
    if exporting():
        return False
    if query.device.type == "cpu":
        return True
    sixteen = query.dtype in (torch.float16, torch.bfloat16)
    return query.device.type == "cuda" and sixteen and hidden is None


def allowed_kernels(query: Tensor, hidden: Tensor | None) -> AbstractContextManager[None]:
    """Leave out cuDNN where a gradient and a mask come together."""
    if hidden is None or query.device.type != "cuda" or not torch.is_grad_enabled():
        return nullcontext()
    return sdpa_kernel(SAFE_KERNELS)
