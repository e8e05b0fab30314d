"""The folder of a run, `runs/APP/CONFIG/N/`: its number, its loggers, its first files."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from manyhead_core.cli import console
from manyhead_core.errors import UserError
from manyhead_core.training.environment import environment


def claim(root: Path, app: str, config: str) -> Path:
    """Take the next free number below `root/app/config`.

    Other processes of the same run only name a folder: rank 0 writes, and what they need of its
    path Lightning broadcasts.

    Raises:
        UserError: The folder cannot be written.
    """
    parent = root / app / config
    while True:
        taken = [int(p.name) for p in parent.glob("*") if p.name.isdigit()]
        folder = parent / str(max(taken, default=-1) + 1)
        if global_rank():
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run was quicker
            continue
        except OSError as err:
            raise UserError(
                f"--runs: cannot write {folder}: {err.strerror}; choose another folder"
            ) from err
        return folder


def global_rank() -> int:
    """Number of this process among those of the run; known before the trainer is built."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def owner(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None for a file elsewhere."""
    inside = checkpoint.parent.name == "checkpoints"
    return checkpoint.parent.parent if inside else None


def loggers(folder: Path) -> list[Logger]:
    """CSV and TensorBoard, both with the number of the run folder."""
    place: dict[str, Any] = {
        "save_dir": folder.parent.parent,
        "name": folder.parent.name,
        "version": folder.name,
    }
    return [MetricsTable(**place), TensorBoardLogger(**place, default_hp_metric=False)]


class MetricsTable(CSVLogger):
    """`metrics.csv`; a resumed run keeps the rows before the checkpoint it goes on from.

    Lightning's own logger deletes the file of an earlier start.
    """

    def __init__(self, **place: Any) -> None:
        super().__init__(**place, flush_logs_every_n_steps=50)
        self._earlier: list[dict[str, Any]] = []

    def keep(self, before_step: int) -> None:
        """Keep the rows of the file up to this optimiser step."""
        file = Path(self.log_dir) / "metrics.csv"
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                rows = [row for row in csv.DictReader(lines) if int(row["step"]) < before_step]
            self._earlier = [{k: v for k, v in row.items() if v != ""} for row in rows]

    @property
    def experiment(self) -> Any:
        """Lightning's writer, started with the rows to keep."""
        if self._experiment is None and global_rank() == 0:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*exists and is not empty.*")
                writer: Any = super().experiment
            writer.metrics.extend(self._earlier)
        return super().experiment


class RunFiles(Callback):
    """Write `environment.txt` and `split.csv` when training starts, and say where the run lies.

    Args:
        folder: Run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files; the data module is set up by now."""
        if not trainer.is_global_zero:
            return
        lines = [f"{name}: {value}\n" for name, value in environment().items()]
        lines.append(f"run on: {trainer.strategy.root_device}, {trainer.world_size} process(es)\n")
        (self.folder / "environment.txt").write_text("".join(lines), encoding="utf-8")
        write_split = getattr(getattr(trainer, "datamodule", None), "write_split", None)
        if write_split is not None:
            write_split(self.folder)
        numbers = sum(parameter.numel() for parameter in pl_module.parameters())
        console.say(f"run folder {self.folder}; {numbers:,} parameters")

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the logged rows before the checkpoint."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsTable):
                logger.keep(checkpoint["global_step"])
        if trainer.is_global_zero and trainer.training:
            console.say(f"resuming at step {checkpoint['global_step']}")
