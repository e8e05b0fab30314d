"""Stochastic top-K instance masking: the most attended patches give way to the others.

Zhang et al. 2024, arXiv 2311.07125, section 3.3. The paper zeroes each of the K most attended
patches with probability p after the softmax and renormalises. The authors' code, followed here,
masks a fixed number `floor(K p)` of them before the softmax, which renormalises by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Padding a batch to its longest bag is one fast call; above this ratio of padded to real patches
# the bags are ranked one by one.
MOST_PADDING = 8


def mask_top(
    scores: Tensor,
    starts: Tensor,
    counts: Tensor,
    *,
    candidates: int,
    share: float,
    draws: Tensor | None = None,
) -> Tensor:
    """Scores with minus infinity at some of the largest of each bag and row.

    At least one patch of every row stays.

    Args:
        scores: `(total, rows)`; each row is masked by itself.
        starts: First patch of each bag, `(bags,)`.
        counts: Patches of each bag, `(bags,)`.
        candidates: K, how many of the largest scores may be masked.
        share: p, the part of the candidates that is masked; K times p is rounded down.
        draws: Uniform numbers that choose among the candidates, `(bags, rows, candidates)`; None
            draws them.
    """
    bags, rows = len(counts), scores.shape[1]
    if draws is None:
        draws = torch.rand(bags, rows, candidates, device=scores.device)
    places = _largest(scores.detach(), starts, counts, candidates)
    # As many as the reference counts, in Python's arithmetic: 10 * 0.7 is less than 7.
    table = torch.tensor([int(k * share) for k in range(candidates + 1)], device=scores.device)
    masked = table[counts.clamp(max=candidates)].minimum((counts - 1).clamp(min=0))
    rank = torch.arange(candidates, device=scores.device)
    real = rank < counts[:, None, None]
    # Candidates that a small bag does not have come last in the order.
    order = draws.masked_fill(~real, 2.0).argsort(-1)
    chosen = places.gather(-1, order)
    taken = (rank < masked[:, None, None]).expand_as(chosen)
    hidden = torch.zeros(len(scores) + 1, rows, dtype=torch.bool, device=scores.device)
    # The last row takes what is not masked, so that no size depends on the data.
    place = torch.where(taken, chosen, len(scores)).transpose(1, 2).flatten(0, 1)
    hidden.scatter_(0, place, True)
    return scores.masked_fill(hidden[:-1], float("-inf"))


def _largest(scores: Tensor, starts: Tensor, counts: Tensor, count: int) -> Tensor:
    """Places of the largest scores of each bag, in descending order, `(bags, rows, count)`.

    A bag with fewer patches repeats some place.
    """
    longest = int(counts.max()) if len(counts) else 0
    if len(counts) * longest <= MOST_PADDING * len(scores):
        return _padded_largest(scores, starts, counts, max(longest, count), count)
    found = []
    for start, length in zip(starts.tolist(), counts.tolist(), strict=True):
        bag = scores[start : start + length]
        best = bag.topk(min(count, length), dim=0).indices + start
        fill = best.new_full((count - len(best), scores.shape[1]), start)
        found.append(torch.cat([best, fill]).T)
    return torch.stack(found)


def _padded_largest(
    scores: Tensor, starts: Tensor, counts: Tensor, longest: int, count: int
) -> Tensor:
    step = torch.arange(longest, device=scores.device)
    place = (starts[:, None] + step).clamp(max=max(len(scores) - 1, 0))
    padded = scores[place].masked_fill((step >= counts[:, None])[..., None], float("-inf"))
    best = padded.topk(count, dim=1).indices
    return (best + starts[:, None, None]).clamp(max=max(len(scores) - 1, 0)).transpose(1, 2)
