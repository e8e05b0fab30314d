"""A loss that is no longer a number stops the run before it spoils weights or checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from manyhead_core.errors import UserError

# Reading a value on an accelerator waits for it; there the loss is looked at this rarely, and
# before every checkpoint.
EVERY_N_STEPS = 50


class FiniteLoss(Callback):
    """Raise as soon as a training loss is NaN or infinite."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss before it reaches the weights."""
        # Zero times a number is zero; zero times NaN or infinity is NaN, and stays in the sum.
        value = loss.detach() * 0
        self._sum = value if self._sum is None else self._sum + value
        if self._at_once(value) or trainer.global_step % EVERY_N_STEPS == 0:
            self._check(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save weights that a bad loss has reached."""
        self._check(trainer, pl_module)

    @staticmethod
    def _at_once(loss: Tensor) -> bool:
        return loss.device.type == "cpu"

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if self._sum is None or bool(torch.isfinite(self._sum).all()):
            return
        rate = f" with model.lr {module.hparams['lr']:g}" if "lr" in module.hparams else ""
        raise UserError(
            f"the training loss is not finite at step {trainer.global_step} "
            f"(epoch {trainer.current_epoch + 1}){rate}; lower --model.lr, or set "
            "--trainer.gradient_clip_val 1, and look for missing values in the data"
        )
