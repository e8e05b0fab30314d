"""From logits to the numbers that stand in a table of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manyhead.acmil.model import ACMILConfig


def probabilities(logits: Tensor, config: ACMILConfig) -> Tensor:
    """Probability of each class, `(bags, classes)`, in float64.

    Args:
        logits: Of a network with the target `classes` or `ordinal`, `(bags, outputs)`.
        config: Sizes and target.
    """
    precise = logits.double()
    if config.target == "classes":
        return precise.softmax(-1)
    above = precise.sigmoid()
    edges = torch.cat([torch.ones_like(above[:, :1]), above, torch.zeros_like(above[:, :1])], 1)
    # The thresholds are learned one by one, so a lower one may come out less likely.
    share = (edges[:, :-1] - edges[:, 1:]).clamp(min=0)
    return share / share.sum(1, keepdim=True)


def score_columns(
    logits: Tensor, config: ACMILConfig, class_names: Sequence[str]
) -> dict[str, Tensor]:
    """Columns of the table of predictions.

    Args:
        logits: `(bags, outputs)`.
        config: Sizes and target.
        class_names: Of the classes, in order.

    Returns:
        `score_<class>` for classes; `score` for a number or a log hazard.
    """
    if config.target in ("regression", "survival"):
        return {"score": logits[:, 0].double()}
    found = probabilities(logits, config)
    return {f"score_{name}": found[:, k] for k, name in enumerate(class_names)}
