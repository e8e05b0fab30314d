"""No attention: every patch is classified, and the mean or the largest of the logits counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyhead.acmil.bag_output import MILOutput, one_bag
from manyhead.acmil.baselines.network import BagNetwork, xavier
from manyhead.acmil.model import ACMILConfig


class LogitPooling(BagNetwork):
    """Patch classifier whose logits are reduced over the bag.

    Args:
        config: Sizes.
        reduce: `mean` or `max`.
    """

    def __init__(self, config: ACMILConfig, reduce: str) -> None:
        super().__init__(config)
        self.reduce = reduce
        self.classifier = nn.Sequential(
            nn.Linear(config.feature_dim, config.width),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(config.width, config.num_outputs),
        )
        xavier(self)

    def forward(self, features: Tensor, cu_seqlens: Tensor | None = None) -> MILOutput:
        """Arguments as in `ACMIL.forward`, packed."""
        cu_seqlens = one_bag(features) if cu_seqlens is None else cu_seqlens
        precise = next(self.parameters()).dtype
        logits = self.classifier(features.to(precise)).float()
        bags = torch.segment_reduce(logits, self.reduce, lengths=cu_seqlens.diff())
        return MILOutput(bags, instance_logits=logits)


class MeanPooling(LogitPooling):
    """Mean of the patches' logits.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config, "mean")


class MaxPooling(LogitPooling):
    """Largest of the patches' logits.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config, "max")
