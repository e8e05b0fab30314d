"""Train and evaluate a click-through-rate model: loss, metrics, optimiser."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from manyhead.autoint.baselines import MLP, BaselineConfig, FactorisationMachine, LogisticRegression
from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead.autoint.rows import Rows
from manyhead_core.training.optimiser import build_optimiser
from manyhead_core.training.task import Task

Network = Literal["autoint", "lr", "fm", "mlp"]
Optimiser = Literal["adam", "adam_tf", "lazy_adam", "adagrad", "sgd"]


def build_network(network: Network, net: AutoIntConfig) -> nn.Module:
    """The model, or a baseline that sees the same fields through a table of the same size.

    Args:
        network: `autoint` (with a tower: AutoInt+), `lr`, `fm` or `mlp`.
        net: Sizes; a baseline takes from it what it has a use for.
    """
    if network == "autoint":
        return AutoInt(net)
    kinds = {"lr": LogisticRegression, "fm": FactorisationMachine, "mlp": MLP}
    return kinds[network](BaselineConfig.like(net))


class AutoIntTask(Task[nn.Module]):
    """Binary classification of table rows, Song et al. 2019, section 4.5.

    The loss is binary cross-entropy on the logit. It differs from the paper's clipped log loss by
    less than 3e-7 and has no dead zone at saturated probabilities.

    Args:
        net: Architecture; the numbers of features and fields come from the data.
        network: `autoint`, or a baseline in the same harness: `lr`, `fm`, `mlp`.
        lr: Learning rate.
        optimizer: `adam`; `adam_tf` places epsilon as TensorFlow 1 does; `lazy_adam` updates only
            the embedding rows of the batch, which is another algorithm and much faster for large
            tables; `adagrad`; `sgd` with momentum 0.95.
        embedding_l2: Weight of half the squared norm of the embedding table.
        tower_l2: Weight of half the squared norm of the tower's weight matrices.
        compile: Compile the network; needs a C++ compiler on a CPU.
    """

    def __init__(
        self,
        net: AutoIntConfig = AutoIntConfig(),
        network: Network = "autoint",
        lr: float = 1e-3,
        optimizer: Optimiser = "adam",
        embedding_l2: float = 0.0,
        tower_l2: float = 0.0,
        compile: bool = False,
    ) -> None:
        options = {
            "net": net,
            "network": network,
            "lr": lr,
            "optimizer": optimizer,
            "embedding_l2": embedding_l2,
            "tower_l2": tower_l2,
            "compile": compile,
        }
        super().__init__(build_network(network, net), options)
        if compile:
            self.net.compile()  # in place: the names of the weights stay
        self.val_loss, self.val_auroc = MeanMetric(), BinaryAUROC(thresholds=None)
        self._segments: pd.DataFrame | None = None

    def forward(self, rows: Rows) -> Tensor:
        """`(batch,)` logits of one batch, in float32."""
        output: Tensor = self.net(rows.index, rows.value, rows.lists).logits
        return output.float()

    def training_step(self, rows: Rows, batch_index: int) -> Tensor:
        """Mean cross-entropy of one batch."""
        loss = binary_cross_entropy_with_logits(self(rows), rows.label)
        # Over all processes: the number must not depend on how many there are.
        size = len(rows.label)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, rows: Rows, batch_index: int) -> None:
        """Gather log loss and AUC over the whole set; a mean of per-batch AUCs would be wrong."""
        logits = self(rows)
        loss = binary_cross_entropy_with_logits(logits, rows.label, reduction="none")
        self.val_loss.update(loss)
        # Probabilities in float64: the metric would squash a batch of logits a second time, and
        # a float32 sigmoid ties everything above a logit of about 17.
        probabilities = logits.double().sigmoid()
        self.val_auroc.update(probabilities, rows.label.int())
        self.record(**self._columns(rows, probabilities))

    def on_validation_epoch_end(self) -> None:
        """Log `val/logloss` and `val/auroc`."""
        self.log("val/logloss", self.val_loss, prog_bar=True)
        self.log("val/auroc", self.val_auroc, prog_bar=True)
        super().on_validation_epoch_end()

    def test_step(self, rows: Rows, batch_index: int) -> None:
        """Record every row; the metrics come from the table of predictions."""
        self.record(**self._columns(rows, self(rows).double().sigmoid()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """L2 terms are coupled weight decay: the same gradient, without a graph."""
        decay = {"embedding": self.hparams["embedding_l2"], "tower": self.hparams["tower_l2"]}
        return build_optimiser(self.hparams["optimizer"], self.net, self.hparams["lr"], decay)

    def on_validation_start(self) -> None:
        """Fetch the segments of the rows that `validate` writes down."""
        self._segments = self._segments_of("validation", TrainerFn.VALIDATING)

    def on_test_start(self) -> None:
        """Fetch the segments of the test rows."""
        self._segments = self._segments_of("test", TrainerFn.TESTING)

    def _segments_of(self, part: str, stage: TrainerFn) -> pd.DataFrame | None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.trainer.state.fn != stage or not hasattr(data, "segments"):
            return None
        found: pd.DataFrame = data.segments(part)
        return found

    def _columns(self, rows: Rows, probabilities: Tensor) -> dict[str, Any]:
        columns = {"id": rows.row, "group": rows.group, "label": rows.label, "score": probabilities}
        if self._segments is None or self._segments.empty:
            return columns
        found = self._segments.loc[rows.row.cpu().numpy()]
        return columns | {f"segment_{name}": found[name].tolist() for name in found}
