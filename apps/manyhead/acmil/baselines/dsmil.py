"""`dsmil`: dual-stream network of Li, Li and Eliceiri 2021, arXiv:2011.08939."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyhead.acmil.bag_output import MILOutput, one_bag
from manyhead.acmil.baselines.network import BagNetwork
from manyhead.acmil.model import ACMILConfig
from manyhead_core.attention.pool import pool


class DSMIL(BagNetwork):
    """The highest patch of each class asks all patches how similar they are.

    The prediction is the mean of both streams' softmaxes; `logits` holds its logarithm.

    Args:
        config: Sizes; `width` is that of the queries.
        nonlinear: Two layers instead of one in front of the comparison, 128 wide.
    """

    def __init__(self, config: ACMILConfig, *, nonlinear: bool = False) -> None:
        super().__init__(config)
        features, classes = config.feature_dim, config.num_outputs
        self.instance_head = nn.Linear(features, classes)
        self.query: nn.Module = nn.Linear(features, config.width)
        if nonlinear:
            self.query = nn.Sequential(
                self.query, nn.ReLU(), nn.Linear(config.width, 128), nn.Tanh()
            )
        self.head = nn.Conv1d(classes, classes, features)

    def forward(self, features: Tensor, cu_seqlens: Tensor | None = None) -> MILOutput:
        """Arguments as in `ACMIL.forward`, packed."""
        cu_seqlens = one_bag(features) if cu_seqlens is None else cu_seqlens
        x = features.to(self.head.weight.dtype)
        instance = self.instance_head(x).float()
        query = self.query(x)
        counts = cu_seqlens.diff().tolist()
        starts = zip(instance.split(counts), cu_seqlens[:-1], strict=True)
        critical = torch.stack([bag.argmax(0) + start for bag, start in starts])
        asked = query[critical] * query.shape[1] ** -0.5
        pairs = zip(query.split(counts), asked, strict=True)
        scores = torch.cat([own @ asked_by.T for own, asked_by in pairs])
        pooled = pool(scores, x, cu_seqlens=cu_seqlens).out.float()
        with torch.autocast(features.device.type, enabled=False):
            bags = self.head(pooled)[..., 0]
        highest = torch.stack([bag.amax(0) for bag in instance.split(counts)])
        return MILOutput(
            _both(highest, bags) if self.config.target == "classes" else bags,
            branch_logits=torch.stack([highest, bags], 1),
            attention=scores[..., None],
            features=pooled.mean(1),
            instance_logits=instance,
        )

    def losses(
        self,
        output: MILOutput,
        label: Tensor,
        *,
        cu_seqlens: Tensor,  # noqa: ARG002
        event: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Half the loss of each stream."""
        assert output.branch_logits is not None  # noqa: S101
        streams = zip(("instance", "slide"), output.branch_logits.unbind(1), strict=True)
        return {
            name: 0.5 * self.slide_loss(logits, label, event, class_weights)
            for name, logits in streams
        }


def _both(first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of the mean of two softmaxes."""
    both = torch.stack([first.log_softmax(-1), second.log_softmax(-1)])
    return both.logsumexp(0) - torch.log(torch.tensor(2.0, device=first.device))
