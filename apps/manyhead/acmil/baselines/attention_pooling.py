"""One map: `abmil` of Ilse et al. 2018, arXiv:1802.04712, and `mha` with one learned query."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyhead.acmil.bag_output import MILOutput, one_bag
from manyhead.acmil.baselines.network import BagNetwork
from manyhead.acmil.model import ACMILConfig, GatedAttention, LatentAttention, Reduction
from manyhead_core.attention.pool import pool


class AttentionPooling(BagNetwork):
    """Reduction, one attention map, one linear layer.

    Args:
        config: Sizes.
        attention: `gated` is ABMIL, `multihead` is MHA.
    """

    def __init__(self, config: ACMILConfig, attention: str) -> None:
        super().__init__(config)
        width = config.width
        self.reduction = Reduction(config.feature_dim, width, config.num_residual)
        self.attention: GatedAttention | LatentAttention = (
            GatedAttention(width, config.hidden_dim, 1)
            if attention == "gated"
            else LatentAttention(width, config.num_heads, 1, config.dropout, bag=False)
        )
        self.head = nn.Linear(width, config.num_outputs)

    def forward(self, features: Tensor, cu_seqlens: Tensor | None = None) -> MILOutput:
        """Arguments as in `ACMIL.forward`, packed."""
        cu_seqlens = one_bag(features) if cu_seqlens is None else cu_seqlens
        x = self.reduction(features)
        scores = self.attention(x)
        sums = pool(scores, x, cu_seqlens=cu_seqlens).out
        with torch.autocast(features.device.type, enabled=False):
            _, slide = self.attention.pooled(sums.float())
            logits = self.head(slide)
        return MILOutput(logits, attention=scores[:, None], features=slide)


class ABMIL(AttentionPooling):
    """Gated attention pooling.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config, "gated")


class MHA(AttentionPooling):
    """Multi-head attention of one learned query.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config, "multihead")
