"""`clam_sb` and `clam_mb`: clustering-constrained attention of Lu et al. 2021, arXiv:2004.09666."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.acmil.bag_output import MILOutput, one_bag
from manyhead.acmil.baselines.network import BagNetwork, xavier
from manyhead.acmil.model import ACMILConfig
from manyhead_core.attention.pool import pool

DROPOUT = 0.25


class CLAM(BagNetwork):
    """Gated attention with a loss on the patches that it finds most and least important.

    Args:
        config: Sizes; `hidden_dim` is 128 in ACMIL's comparison, CLAM's own models have 256 or 384.
        maps: Attention maps: one (SB), or one per class (MB).
        num_sampled: Patches taken from each end of a map for the instance loss.
        bag_weight: Weight of the bag's loss; the instance loss has the rest.
        mode: `reference` weights the maps of MB by `exp(a) / (1 + sum exp(a))`, as the ACMIL
            authors' code does; CLAM's own code has the plain softmax.
    """

    def __init__(
        self,
        config: ACMILConfig,
        maps: int,
        *,
        num_sampled: int = 8,
        bag_weight: float = 0.7,
        mode: Literal["default", "reference"] = "default",
    ) -> None:
        super().__init__(config)
        width, hidden, outputs = config.width, config.hidden_dim, config.num_outputs
        self.maps, self.num_sampled, self.bag_weight = maps, num_sampled, bag_weight
        self.softmax_plus_one = mode == "reference" and maps > 1
        self.reduction = nn.Linear(config.feature_dim, width)
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, maps)
        self.dropout = nn.Dropout(DROPOUT)
        # One row per class: with a map per class, row c reads the vector of map c alone.
        self.head = nn.Linear(width, outputs)
        self.instance_heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(outputs))
        xavier(self)

    def forward(self, features: Tensor, cu_seqlens: Tensor | None = None) -> MILOutput:
        """Arguments as in `ACMIL.forward`, packed."""
        cu_seqlens = one_bag(features) if cu_seqlens is None else cu_seqlens
        x = self.dropout(self.reduction(features.to(self.reduction.weight.dtype)).relu())
        content, gate = self.content(x).tanh(), self.gate(x).sigmoid()
        scores = self.score(self.dropout(content) * self.dropout(gate))
        pooled = pool(scores, x, cu_seqlens=cu_seqlens).out.float()
        if self.softmax_plus_one:
            pooled = pooled * _log_sums(scores, cu_seqlens).sigmoid()[..., None]
        with torch.autocast(features.device.type, enabled=False):
            if self.maps == 1:
                logits = self.head(pooled[:, 0])
            else:
                logits = (pooled * self.head.weight).sum(-1) + self.head.bias
        return MILOutput(logits, attention=scores[..., None], features=pooled.mean(1), patches=x)

    def losses(
        self,
        output: MILOutput,
        label: Tensor,
        *,
        cu_seqlens: Tensor,
        event: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The bag's loss and, for classes, the instance loss, weighted."""
        slide = self.slide_loss(output.logits, label, event, class_weights)
        if self.config.target != "classes" or self.bag_weight == 1:
            return {"slide": slide}
        assert output.attention is not None and output.patches is not None  # noqa: S101, PT018
        bags = [
            self.instance_loss(output.patches[start:end], output.attention[start:end, :, 0], int(y))
            for (start, end), y in zip(pairwise(cu_seqlens.tolist()), label, strict=True)
        ]
        instance = torch.stack(bags).mean()
        return {
            "slide": self.bag_weight * slide,
            "instance": (1 - self.bag_weight) * instance,
        }

    def instance_loss(self, patches: Tensor, scores: Tensor, label: int) -> Tensor:
        """Cross-entropy of the patches at both ends of the map of the bag's class.

        With more than two classes the other classes learn that their highest patches are none of
        theirs, and the sum is divided by the number of classes. A bag with fewer patches than are
        sampled gives all it has.

        Args:
            patches: Of one bag, `(patches, dim)`.
            scores: Of one bag, `(patches, maps)`.
            label: Class of the bag.
        """
        count = min(self.num_sampled, len(patches))
        classes = len(self.instance_heads)
        total = patches.new_zeros(())
        for number, head in enumerate(self.instance_heads):
            column = scores[:, number if self.maps > 1 else 0]
            top = column.topk(count).indices
            if number == label:
                low = (-column).topk(count).indices
                target = torch.tensor([1, 0], device=patches.device).repeat_interleave(count)
                total = total + F.cross_entropy(head(patches[torch.cat([top, low])]), target)
            elif classes > 2:
                total = total + F.cross_entropy(head(patches[top]), torch.zeros_like(top))
        return total / classes if classes > 2 else total


def _log_sums(scores: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Log of the sum of the exponentials over each bag, `(bags, maps)`."""
    bags = torch.split(scores, cu_seqlens.diff().tolist())
    return torch.stack([bag.logsumexp(0) for bag in bags])


class CLAMSB(CLAM):
    """CLAM with a single attention map.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config, 1)


class CLAMMB(CLAM):
    """CLAM with an attention map per class.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__(config, config.num_outputs)
