"""Resume with changed hyper-parameters: what the user asks for now beats what the file says."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.core.optimizer import _init_optimizers_and_lr_schedulers
from torch.optim import Optimizer


class FlagsWin(Callback):
    """Apply changed optimiser settings after the restore.

    Lightning restores the optimiser's state with its learning rate, so that a new `--model.lr`
    would be accepted and then silently ignored.
    """

    def __init__(self) -> None:
        self._changed = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note whether any hyper-parameter differs from the checkpoint's."""
        self._changed = checkpoint.get("hyper_parameters", {}) != dict(pl_module.hparams)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the settings of a freshly configured optimiser; keep moments and schedule."""
        if not self._changed:
            return
        fresh, _ = _init_optimizers_and_lr_schedulers(pl_module)
        for restored, new in zip(trainer.optimizers, fresh, strict=True):
            take_settings(restored, new)
        for config in trainer.lr_scheduler_configs:
            groups = config.scheduler.optimizer.param_groups
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [group["initial_lr"] for group in groups]


def take_settings(restored: Optimizer, new: Optimizer) -> None:
    """Copy the settings of `new` group by group; a scheduled rate keeps its place in the schedule.

    Args:
        restored: Optimiser with the state of the checkpoint; changed in place.
        new: The optimiser that the present hyper-parameters ask for.
    """
    for group, wanted in zip(restored.param_groups, new.param_groups, strict=True):
        before = group.get("initial_lr", group["lr"])
        base = wanted.get("initial_lr", wanted["lr"])
        factor = group["lr"] / before if before else 1.0
        settings = {k: v for k, v in wanted.items() if k not in ("params", "lr", "initial_lr")}
        group.update(settings, lr=base * factor)
        if "initial_lr" in group:
            group["initial_lr"] = base
