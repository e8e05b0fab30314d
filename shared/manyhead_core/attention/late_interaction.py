"""`late_interaction`: similarity of two sets of tokens by the best match of each token."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.errors import ConfigError

# Largest number of token similarities held at once: 256 MiB of float32.
CHUNK_SIMILARITIES = 2**26


class LateInteraction(NamedTuple):
    """Similarities of all pairs of two batches, in [-1, 1].

    Args:
        a_to_b: `(a_batch, b_batch)`; mean over the tokens of `a` of their best match in `b`.
        b_to_a: `(a_batch, b_batch)`; mean over the tokens of `b` of their best match in `a`.
    """

    a_to_b: Tensor
    b_to_a: Tensor


def late_interaction(
    a: Tensor,
    b: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    keep: float = 1.0,
    chunk: int | None = None,
) -> LateInteraction:
    """Compare every element of one batch with every element of another, token by token.

    Cosine similarity of all pairs of tokens; each token counts with its best match, and the tokens
    of an element are averaged (FILIP, Yao et al., 2021, arXiv 2111.07783, equations 3 and 4). With
    one token each this is the cosine. An element without real tokens has similarity zero to all.

    Args:
        a: Tokens, `(a_batch, a_tokens, dim)`.
        b: Tokens, `(b_batch, b_tokens, dim)`.
        mask_a: True for real tokens, `(a_batch, a_tokens)`; None for all.
        mask_b: The same of `b`.
        keep: Share of the tokens of each element to compare, rounded up: those whose best match
            anywhere in the other batch is closest. FILIP keeps 0.25. The choice has no gradient.
        chunk: Elements of `b` compared at once; None takes as many as 256 MiB hold.

    Raises:
        ConfigError: `keep` is not in (0, 1], `chunk` is not positive, or a mask is not boolean.
    """
    _check(mask_a, mask_b, keep, chunk)
    # Autocast would take the products back to 16 bits.
    with torch.autocast(a.device.type, enabled=False):
        a, mask_a = _unit(a, mask_a)
        b, mask_b = _unit(b, mask_b)
        if keep < 1:
            with torch.no_grad():
                best_a = _best_match(a, b, mask_b, chunk)
                best_b = _best_match(b, a, mask_a, chunk)
            a, mask_a = _most_salient(a, mask_a, best_a, keep)
            b, mask_b = _most_salient(b, mask_b, best_b, keep)
        parts = [_compare(a, b[rows], mask_a, mask_b[rows]) for rows in _chunks(a, b, chunk)]
        # The empty part is the result when there is no element of `b`.
        empty = a.new_zeros(len(a), 0)
        to_b = torch.cat([empty, *(part[0] for part in parts)], 1)
        to_a = torch.cat([empty, *(part[1] for part in parts)], 1)
    return LateInteraction(to_b, to_a)


def _compare(a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
    """Both directions of all pairs, each `(a_batch, b_batch)`."""
    cosine = torch.einsum("atd,bsd->abts", a, b)
    to_b = _mean(_max(cosine, mask_b[None, :, None, :], 3), mask_a[:, None])
    to_a = _mean(_max(cosine, mask_a[:, None, :, None], 2), mask_b[None])
    return to_b, to_a


def _max(cosine: Tensor, real: Tensor, axis: int) -> Tensor:
    """Largest entry among the real ones; zero where there is none."""
    if cosine.shape[axis] == 0:
        return cosine.sum(axis)
    # `max` keeps places for the gradient, `amax` would keep all similarities.
    best = cosine.masked_fill(~real, float("-inf")).max(axis).values
    return best.masked_fill(best == float("-inf"), 0.0)


def _mean(values: Tensor, real: Tensor) -> Tensor:
    """Mean over the real tokens of the last axis; zero where there is none."""
    total = values.masked_fill(~real, 0.0).sum(-1)
    return total / real.sum(-1).clamp(min=1)


def _best_match(a: Tensor, b: Tensor, mask_b: Tensor, chunk: int | None) -> Tensor:
    """Highest similarity of each token of `a` to any real token of `b`, `(a_batch, a_tokens)`."""
    best = a.new_full(a.shape[:2], -2.0)
    for rows in _chunks(a, b, chunk):
        cosine = torch.einsum("atd,bsd->abts", a, b[rows])
        cosine = cosine.masked_fill(~mask_b[rows][None, :, None, :], -2.0)
        if cosine.numel():
            best = torch.maximum(best, cosine.amax((1, 3)))
    return best


def _most_salient(
    tokens: Tensor, mask: Tensor, score: Tensor, keep: float
) -> tuple[Tensor, Tensor]:
    """The tokens with the highest scores, and which of them are real."""
    most = share_of(keep, tokens.shape[1])
    order = score.masked_fill(~mask, float("-inf")).topk(most, 1).indices
    counts = torch.tensor([share_of(keep, n) for n in range(tokens.shape[1] + 1)])
    wanted = counts.to(mask.device)[mask.sum(1)]
    kept = torch.arange(most, device=mask.device) < wanted[:, None]
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2])), kept


def share_of(keep: float, count: int) -> int:
    """Number of tokens in a share of them, rounded up."""
    # 0.1 * 30 is 3.0000000000000004, which is no reason to keep a fourth token.
    return math.ceil(keep * count - 1e-9)


def _unit(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens of length one in float32 at least; padding, which may hold anything, is zero."""
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return F.normalize(tokens.masked_fill(~mask[..., None], 0.0), dim=-1), mask


def _chunks(a: Tensor, b: Tensor, chunk: int | None) -> list[slice]:
    if chunk is None:
        # A compiled graph has one chunk: its batch size is not known.
        if torch.compiler.is_compiling():
            return [slice(None)]
        one = a.shape[0] * a.shape[1] * b.shape[1]
        chunk = max(1, CHUNK_SIMILARITIES // max(1, one))
    return [slice(start, start + chunk) for start in range(0, len(b), chunk)]


def _check(mask_a: Tensor | None, mask_b: Tensor | None, keep: float, chunk: int | None) -> None:
    if not 0 < keep <= 1:
        raise ConfigError(f"keep: {keep} is not in (0, 1]; pass the share of tokens to compare")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk: must be 1 or more, got {chunk}")
    for name, mask in (("mask_a", mask_a), ("mask_b", mask_b)):
        if mask is not None and mask.dtype != torch.bool:
            raise ConfigError(f"{name}: {mask.dtype} is not boolean; pass True for real tokens")
