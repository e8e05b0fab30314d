"""Losses over a batch of bags: every one is the mean of what the bags would give alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead.acmil.bag_output import Target, attention_weights
from manyhead_core.attention.pool import pool
from manyhead_core.errors import ConfigError

# The smallest product of norms that a cosine divides by.
SMALL = 1e-8


def target_loss(
    logits: Tensor,
    label: Tensor,
    target: Target = "classes",
    *,
    event: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Loss of what a slide is labelled with.

    Args:
        logits: `(bags, outputs)`.
        label: Class numbers for `classes` and `ordinal`, numbers for `regression`, times for
            `survival`; `(bags,)`.
        target: Which of them.
        event: For `survival`, True where the event was seen and False where the time is censored.
        class_weights: For `classes`, factor of the bags of each class, `(classes,)`; the mean is
            over bags, so weights that average to one over the training bags keep the scale.
    """
    if target == "classes":
        losses = F.cross_entropy(logits, label.long(), reduction="none")
        if class_weights is not None:
            losses = losses * class_weights[label.long()]
        return losses.mean()
    if target == "ordinal":
        return ordinal_loss(logits, label)
    if target == "regression":
        return F.mse_loss(logits[:, 0], label.to(logits.dtype))
    if event is None:
        raise ConfigError("target: survival needs an event column beside the time")
    return cox_loss(logits[:, 0], label, event)


def ordinal_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of the questions "is the class higher than k?", one per threshold.

    Frank and Hall 2001; logit k belongs to the probability that the class is above k.

    Args:
        logits: `(bags, classes - 1)`.
        label: Class numbers, `(bags,)`.
    """
    above = label[:, None] > torch.arange(logits.shape[1], device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, above.to(logits.dtype))


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood per event of Cox 1972, ties as Breslow 1974.

    A batch without an event gives zero. Only bags of one batch are compared, so batches should
    not be small.

    Args:
        risk: Log hazards, `(bags,)`.
        time: Times to the event or the end of observation, any unit, `(bags,)`.
        event: True where the event was seen, `(bags,)`.
    """
    at_risk = time[None, :] >= time[:, None]
    total = risk.expand(len(risk), -1).masked_fill(~at_risk, float("-inf")).logsumexp(1)
    seen = event.to(risk.dtype)
    return ((total - risk) * seen).sum() / seen.sum().clamp(min=1)


def branch_loss(
    branch_logits: Tensor,
    label: Tensor,
    target: Target = "classes",
    *,
    event: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Semantic loss: the mean of the branches' own losses; zero for a single branch.

    Args:
        branch_logits: `(bags, branches, outputs)`.
        label: As in `target_loss`.
        target: As in `target_loss`.
        event: As in `target_loss`.
        class_weights: As in `target_loss`.
    """
    branches = branch_logits.unbind(1)
    if len(branches) == 1:
        return branch_logits.new_zeros(())
    losses = [
        target_loss(logits, label, target, event=event, class_weights=class_weights)
        for logits in branches
    ]
    return torch.stack(losses).mean()


def diversity_loss(
    attention: Tensor, *, cu_seqlens: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Mean cosine between the maps of two branches, over all pairs; zero for a single branch.

    Args:
        attention: Scores of a `MILOutput`, those after masking.
        cu_seqlens: Where the bags of a packed batch start, and last the total, `(bags + 1,)`.
        lengths: Patches of the bags of a padded batch, `(bags,)`.
    """
    branches = attention.shape[-2]
    if branches == 1:
        return attention.new_zeros(())
    bounds = {"cu_seqlens": cu_seqlens, "lengths": lengths}
    cosines = []
    for scores in attention.unbind(-1):
        weights = attention_weights(scores[..., None], **bounds)[..., 0]
        # Sums of products of two maps are what pooling the one with the other gives.
        gram = pool(scores, weights, **bounds).out
        norms = gram.diagonal(dim1=1, dim2=2).clamp(min=SMALL**2).sqrt()
        cosines.append(gram / (norms[:, :, None] * norms[:, None]).clamp(min=SMALL))
    upper = torch.ones(branches, branches, device=attention.device).triu(1).bool()
    pairs: Tensor = torch.stack(cosines).mean(0)[:, upper]
    return pairs.mean()


def negative_entropy(
    attention: Tensor, *, cu_seqlens: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Mean over bags and maps of `sum of w log w`, the penalty of Zhang et al., arXiv 2406.15303.

    Args:
        attention: Scores of a `MILOutput`.
        cu_seqlens: Where the bags of a packed batch start, and last the total, `(bags + 1,)`.
        lengths: Patches of the bags of a padded batch, `(bags,)`.
    """
    weights = attention_weights(attention, cu_seqlens=cu_seqlens, lengths=lengths)
    bags = len(cu_seqlens) - 1 if cu_seqlens is not None else len(attention)
    # Masked patches weigh nothing; the slope of `w log w` is infinite there.
    terms = (weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).flatten(-2)
    return terms.sum() / max(1, bags * terms.shape[-1])
