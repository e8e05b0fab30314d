"""Progress of a training run where there is no terminal to draw on."""

from __future__ import annotations

import os
import sys
import time

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar

from manyhead_core.cli import console


def progress_callback() -> Callback:
    """A bar on a terminal, one line an epoch in a pipe, a log file or a SLURM job."""
    if sys.stderr.isatty() and "SLURM_JOB_ID" not in os.environ:
        # stdout is for results and may be piped.
        return RichProgressBar(console_kwargs={"stderr": True})
    return EpochLines()


class EpochLines(Callback):
    """One line an epoch on stderr: losses and metrics, and how long it took."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line; validation has run by now."""
        if not trainer.is_global_zero:
            return
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        numbers = [
            f"{name} {float(value):.5g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/"))
        ]
        seconds = f"{time.perf_counter() - self._started:.1f} s" if self._started else ""
        parts = [f"epoch {trainer.current_epoch + 1}{last}", *numbers, seconds]
        console.say("  ".join(part for part in parts if part))
