"""What all networks over bags share: a loss by named terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from manyhead.acmil.losses import target_loss

if TYPE_CHECKING:
    from manyhead.acmil.bag_output import MILOutput
    from manyhead.acmil.model import ACMILConfig


class BagNetwork(nn.Module):
    """Base of the baselines.

    Args:
        config: Sizes and target.
    """

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__()
        self.config = config

    def losses(
        self,
        output: MILOutput,
        label: Tensor,
        *,
        cu_seqlens: Tensor,  # noqa: ARG002 - for networks with a loss on single patches
        event: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of the training loss by name; their sum is minimised.

        Args:
            output: What `forward` gave.
            label: Of the bags, `(bags,)`.
            cu_seqlens: Where the bags start, and last the total, `(bags + 1,)`.
            event: As in `target_loss`.
            class_weights: As in `target_loss`.
        """
        return {"slide": self.slide_loss(output.logits, label, event, class_weights)}

    def slide_loss(
        self, logits: Tensor, label: Tensor, event: Tensor | None, class_weights: Tensor | None
    ) -> Tensor:
        """Loss of the bags' own logits."""
        target = self.config.target
        return target_loss(logits, label, target, event=event, class_weights=class_weights)


def xavier(network: nn.Module) -> None:
    """Xavier-normal weights and zero biases, as CLAM's code draws them."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
