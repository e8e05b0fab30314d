"""The folder of a run, `runs/APP/CONFIG/N/`: its number, its loggers, its first files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

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
        # Every row is written at once: a killed run must not lose its numbers.
        super().__init__(**place, flush_logs_every_n_steps=1)

    @property
    def experiment(self) -> Any:
        """The writer of the file; a stand-in in all processes but the first."""
        if self._experiment is None and global_rank() == 0:
            self._experiment = TableWriter(log_dir=self.log_dir)
        return super().experiment


class TableWriter(ExperimentWriter):
    """Writer that goes on with the file it finds."""

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                self.metrics_keys = list(csv.DictReader(lines).fieldnames or [])

    def keep(self, before_step: int) -> None:
        """Drop the rows from this optimiser step on."""
        file = Path(self.metrics_file_path)
        if not file.is_file():
            return
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if int(row["step"]) < before_step]
        unfinished = file.with_suffix(".unfinished")
        with unfinished.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        unfinished.replace(file)


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
            if isinstance(logger, MetricsTable) and trainer.is_global_zero:
                logger.experiment.keep(checkpoint["global_step"])
        if trainer.is_global_zero and trainer.training:
            console.say(f"resuming at step {checkpoint['global_step']}")
