"""Which checkpoints a run keeps: the best by the app's metric, and the last to resume from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from manyhead_core.cli import console
from manyhead_core.errors import ConfigError


class AtomicFiles(TorchCheckpointIO):
    """Checkpoint files that are whole or not there.

    Lightning writes to the system's temporary folder and moves the file, which copies it when the
    run folder lies on another disk: a kill then leaves half a checkpoint in place of a good one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside the file, then put it in its place in one step.

        Args:
            checkpoint: What to save.
            path: Where.
            storage_options: Passed to Lightning, which refuses them.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, by the metric that selects the model.

    Where nothing validates there is nothing to select by: the last epoch is the best.

    Args:
        folder: Where the file goes.
        monitor: Logged metric.
        mode: Whether smaller or larger is better.
    """

    def __init__(self, folder: Path, monitor: str, mode: Literal["min", "max"]) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where nothing validates.

        Raises:
            ConfigError: Training shall stop early by a metric that nobody computes.
        """
        super().on_train_start(trainer, pl_module)
        if validates(trainer):
            return
        if trainer.early_stopping_callbacks:
            raise ConfigError(
                "early_stopping: needs a validation part, and there is none; leave early_stopping "
                "out or hold out data for validation"
            )
        if trainer.is_global_zero:
            console.say("no validation part: the last epoch counts as the best")

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        return not validates(trainer) or super()._should_save_on_train_epoch_end(trainer)

    def _save_topk_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        if validates(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        else:
            self._save_none_monitor_checkpoint(trainer, monitor_candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best so far, also when the run folder has moved."""
        before, now = state_dict["dirpath"], str(self.dirpath)

        def moved(path: str) -> str:
            return path.replace(str(before), now, 1)

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(
            state_dict
            | {name: moved(state_dict[name]) for name in paths}
            | {"dirpath": self.dirpath, "best_k_models": scores}
        )


def validates(trainer: Trainer) -> bool:
    """Whether the fit has batches to validate on."""
    return sum(trainer.num_val_batches) > 0


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt` after every epoch and every so many optimiser steps within one.

    `ModelCheckpoint(save_last=True)` writes the last one only when the best one is written.

    Args:
        folder: Where the file goes.
        every_n_steps: Optimiser steps between two files within an epoch; 0 for none.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_steps

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over: there is one file, and it was just read."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within the epoch; its last batch is left to the end of the epoch."""
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if due and not last_batch and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
