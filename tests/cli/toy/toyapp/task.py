from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from manyhead_core.training.task import Task
from toyapp.model import Toy, ToyConfig


class ToyTask(Task[Toy]):
    """Train the toy.

    Args:
        net: Architecture.
        lr: Learning rate.
        momentum: Momentum.
    """

    def __init__(
        self, net: ToyConfig = ToyConfig(), lr: float = 0.1, momentum: float = 0.5
    ) -> None:
        super().__init__(Toy(net), {"net": net, "lr": lr, "momentum": momentum})

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return binary_cross_entropy_with_logits(self.net(batch["features"]), batch["label"])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val/loss", self._loss(batch), batch_size=len(batch["label"]), sync_dist=True)
        self._rows(batch)

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        self._rows(batch)

    def _rows(self, batch: dict[str, Tensor]) -> None:
        score = self.net(batch["features"]).sigmoid()
        self.record(id=batch["id"], group=batch["id"] % 12, label=batch["label"], score=score)

    def configure_optimizers(self) -> Any:
        options = {"lr": self.hparams["lr"], "momentum": self.hparams["momentum"]}
        optimiser = torch.optim.SGD(self.net.parameters(), **options)
        return {
            "optimizer": optimiser,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimiser, step_size=2, gamma=0.5),
        }
