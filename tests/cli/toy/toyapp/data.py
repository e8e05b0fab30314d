import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from manyhead_core.errors import DataError


class Encoder:
    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"format": 1, "kind": "mean"}, {"mean": self.mean}


class Loader:
    """Batches by index; knows where it is, so that a run can go on in mid-epoch."""

    def __init__(self, rows: dict[str, Tensor], batch: int, seed: int | None) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self.epoch = self.position = 0
        self.rank, self.world = 0, 1

    def __len__(self) -> int:
        return len(self.rows["id"]) // (self.batch * self.world)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.arange(len(self.rows["id"]))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(len(order), generator=generator)
        # The sanity check leaves a validation loader in the middle: only training has a position.
        start, self.position = (self.position if self.seed is not None else 0), 0
        order = order[: len(self) * self.batch * self.world].view(len(self), self.world, self.batch)
        for step in range(start, len(self)):
            self.position = step + 1
            if self.position == len(self):
                self.position, self.epoch = 0, self.epoch + 1
            yield {name: values[order[step, self.rank]] for name, values in self.rows.items()}

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class ToyData(LightningDataModule):
    """Read rows.csv.

    Args:
        root: Folder that holds rows.csv.
        batch_size: Rows of a batch.
        seed: Seed of the shuffle.
    """

    def __init__(self, root: Path, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.root, self.batch_size, self.seed = root, batch_size, seed
        self.preprocessor: Encoder | None = None

    def prepare(self) -> None:
        file = Path(self.root) / "rows.csv"
        if not file.is_file():
            raise DataError(f"data.root: {file} does not exist; run the simulator")
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
        self.table = torch.from_numpy(table)
        self.preprocessor = Encoder(self.table[:, :-1].mean(0))
        torch.rand(3)  # must not change the weights

    def net_overrides(self) -> dict[str, Any]:
        return {"num_features": self.table.shape[1] - 1}

    def write_split(self, folder: Path) -> None:
        (folder / "split.csv").write_text("row,split\n0,train\n", encoding="utf-8")

    def _loader(self, part: slice, seed: int | None) -> Loader:
        rows = self.table[part]
        loader = Loader(
            {"id": torch.arange(len(rows)), "features": rows[:, :-1], "label": rows[:, -1]},
            self.batch_size,
            seed,
        )
        if self.trainer is not None:
            loader.rank, loader.world = self.trainer.global_rank, self.trainer.world_size
        return loader

    def setup(self, stage: str) -> None:
        if self.preprocessor is None:
            self.prepare()

    def train_dataloader(self) -> Loader:
        return self._loader(slice(0, 96), self.seed)

    def val_dataloader(self) -> Loader:
        return self._loader(slice(96, 144), None)

    def test_dataloader(self) -> Loader:
        return self._loader(slice(144, 192), None)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Die like a killed job when the test asks for it."""
        kill_at = os.environ.get("TOY_KILL_AT")
        trainer = self.trainer
        training = kill_at and trainer is not None and trainer.training
        if training and trainer.global_step == int(kill_at):
            os.kill(os.getpid(), getattr(signal, os.environ.get("TOY_SIGNAL", "SIGKILL")))
        return batch
