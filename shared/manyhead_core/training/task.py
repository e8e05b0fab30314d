"""Base of every app's LightningModule: network, hyper-parameters, preprocessor, result rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from manyhead_core.attention.mixer import after_step
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.training.clipping import clip_norm
from manyhead_core.training.plain import from_plain, to_plain
from manyhead_core.training.results import Results

CHECKPOINT_FORMAT = 1

Net = TypeVar("Net", bound=nn.Module)


class Preprocessor(Protocol):
    """What turns raw samples into the network's input, fitted once and kept with the weights."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able part with its `format` version, and tensors by name."""
        ...


class Task(LightningModule, Generic[Net]):
    """Loss, metrics and optimiser of one app are added by the subclass.

    The first parameter of a subclass's constructor is `net`, the config dataclass of the network.
    Checkpoints hold plain values only: they load with `weights_only=True`, and the same run from
    the command line and from Python writes the same file.

    Args:
        net: The network, a plain `nn.Module`.
        hyper_parameters: The subclass's constructor arguments by name.

    Attributes:
        not_compared: Entries of the preprocessor's state that may differ between the checkpoint
            and the data, because they do not change what a sample looks like to the network.
        preprocessor: Taken from the data module's `preprocessor`; saved in the checkpoint.
        results: Where and how the recorded rows are evaluated and written; the command line sets
            it. None keeps them in `table`.
        table: Rows recorded by the last validate or test run.
    """

    not_compared: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, net: Net, hyper_parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self.net: Net = net
        self.preprocessor: Preprocessor | None = None
        self.results: Results | None = None
        self.table: pd.DataFrame | None = None
        self._recorded: list[dict[str, Any]] = []
        self._set_hparams(to_plain(hyper_parameters))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = "cpu",
        **overrides: Any,
    ) -> Self:
        """Build the task of a checkpoint, with its weights.

        Args:
            checkpoint_path: File that a fit has written.
            map_location: Device of the weights.
            **overrides: Constructor arguments that win over those of the file.
        """
        checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        task = cls(**from_plain(cls, checkpoint["hyper_parameters"]) | overrides)
        task.load_state_dict(checkpoint["state_dict"])
        return task

    def setup(self, stage: str) -> None:
        """Adopt the preprocessor of the data module."""
        data = getattr(self.trainer, "datamodule", None)
        self.preprocessor = getattr(data, "preprocessor", None) or self.preprocessor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the weights without the training data."""
        checkpoint["manyhead"] = {
            "app": getattr(self.net, "app", ""),
            "version": version("manyhead"),
            "format": CHECKPOINT_FORMAT,
            "preprocessor": _payload(self.preprocessor),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained on another encoding of the data.

        Raises:
            DataError: The preprocessor in the checkpoint differs from that of the data module.
        """
        saved = checkpoint.get("manyhead", {}).get("preprocessor")
        if saved is None or self.preprocessor is None:
            return
        if not _same(saved, _payload(self.preprocessor), self.not_compared):
            raise DataError(
                "data: the encoding differs from the one in the checkpoint; "
                "use the data and the options that it was trained with"
            )

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """One step, and what mixers do after it: state that is no weight moves once per step."""
        super().optimizer_step(*args, **options)
        after_step(self.net)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as `--trainer.gradient_clip_val` asks; sparse gradients by norm only."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sparse = any(p.grad is not None and p.grad.is_sparse for p in parameters)
        if not (sparse and gradient_clip_val):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm in (None, "norm"):
            clip_norm(parameters, gradient_clip_val)
        else:
            raise ConfigError(
                f"trainer.gradient_clip_algorithm: {gradient_clip_algorithm} does not work with "
                "the sparse gradients of lazy_adam; use norm"
            )

    def record(self, **columns: Tensor | list[Any]) -> None:
        """Keep the rows of one validation or test batch for the table of predictions.

        Args:
            **columns: One value a row: `id`, `group`, `site`, `label`, `status`, `score` or
                `score_<class>`, `segment_<name>`. A missing group is -1 or an empty string.
        """
        if self.trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
            self._recorded.append({name: _column(values) for name, values in columns.items()})

    def complete(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a run with what can only be said of all of them together.

        Args:
            table: Recorded rows.
        """
        return table

    def on_validation_epoch_end(self) -> None:
        """Evaluate and write the rows of a `validate` run; nothing within a fit."""
        self._finish("validate")

    def on_test_epoch_end(self) -> None:
        """Evaluate and write the rows of a `test` run."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        if not self._recorded or self.trainer.state.fn == TrainerFn.FITTING:
            return
        names = self._recorded[0]
        gathered = {name: np.concatenate([part[name] for part in self._recorded]) for name in names}
        self._recorded = []
        self.table = self.complete(pd.DataFrame(gathered))
        if self.results is not None and self.trainer.is_global_zero:
            self.results.write(self.table, stage)


def _payload(preprocessor: Preprocessor | None) -> dict[str, Any] | None:
    if preprocessor is None:
        return None
    meta, tensors = preprocessor.state()
    return {"meta": json.dumps(meta, sort_keys=True), "tensors": dict(tensors)}


def _same(saved: dict[str, Any], current: dict[str, Any] | None, ignored: frozenset[str]) -> bool:
    if current is None:
        return False
    before, now = (
        {name: value for name, value in json.loads(state["meta"]).items() if name not in ignored}
        for state in (saved, current)
    )
    if before != now:
        return False
    ours, theirs = current["tensors"], saved["tensors"]
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours
    )


def _column(values: Tensor | list[Any]) -> np.ndarray[Any, Any]:
    if isinstance(values, Tensor):
        # bfloat16 has no numpy counterpart.
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
