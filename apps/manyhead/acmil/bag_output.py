"""What every network over bags gives, and how a bag is addressed in a packed batch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.pool import pool

Target = Literal["classes", "ordinal", "regression", "survival"]


class MILOutput(NamedTuple):
    """Result of a network over a batch of bags.

    Args:
        logits: Of the bags, `(bags, outputs)`, float32.
        branch_logits: Of the branches, `(bags, branches, outputs)`, for the loss; None for a
            network without branches.
        attention: Scores before the softmax over the patches of a bag, `(total, branches, heads)`
            of a packed and `(bags, patches, branches, heads)` of a padded batch; minus infinity
            where a patch was masked while training. None for a network without attention.
        features: One vector per bag, `(bags, width)`.
        instance_logits: Of the patches, `(total, outputs)`, for networks that classify them.
        patches: Patches as they were pooled, `(total, width)`, for losses on single patches.
    """

    logits: Tensor
    branch_logits: Tensor | None = None
    attention: Tensor | None = None
    features: Tensor | None = None
    instance_logits: Tensor | None = None
    patches: Tensor | None = None


def one_bag(features: Tensor) -> Tensor:
    """`cu_seqlens` of a single bag of all patches, int64 `(2,)`."""
    return torch.tensor([0, features.shape[0]], device=features.device)


def attention_weights(
    attention: Tensor, *, cu_seqlens: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Weights of the patches, which sum to one over each bag, in the shape of the scores.

    Args:
        attention: Scores of a `MILOutput`.
        cu_seqlens: Where the bags of a packed batch start, and last the total, `(bags + 1,)`.
        lengths: Patches of the bags of a padded batch, `(bags,)`.
    """
    rows = attention.flatten(-2)
    nothing = rows[..., :0]
    found = pool(rows, nothing, cu_seqlens=cu_seqlens, lengths=lengths).weights
    return found.view(attention.shape)


def slide_map(
    attention: Tensor, *, cu_seqlens: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """The map of a slide: weights averaged over branches and heads, `(total,)`."""
    return attention_weights(attention, cu_seqlens=cu_seqlens, lengths=lengths).mean((-2, -1))
