"""Train and evaluate a network over bags: losses, learning rate, selection."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score

from manyhead.acmil.bag_output import MILOutput
from manyhead.acmil.bags import Bags
from manyhead.acmil.losses import negative_entropy, target_loss
from manyhead.acmil.model import ACMILConfig
from manyhead.acmil.networks import Network, build_network
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.schedule import learning_rate
from manyhead.acmil.scores import probabilities, score_columns
from manyhead_core.errors import ConfigError
from manyhead_core.evaluate.survival import pair_counts
from manyhead_core.training.task import Task


class ACMILTask(Task[nn.Module]):
    """Classification of slides or patients with the recipe of the authors' code.

    The loss is the sum of the network's own terms; every one is the mean over the bags of a batch,
    so a packed batch gives the mean of what its bags would give alone. The best epoch is the one
    with the largest sum of macro F1 and macro AUC on the validation part.

    Args:
        net: Architecture; the width of the features and the classes come from the data.
        network: `acmil`, or a baseline in the same harness.
        lr: Largest learning rate of AdamW.
        min_lr: Learning rate at the end of the cosine.
        warmup_epochs: Epochs of a linear rise from zero before the cosine.
        weight_decay: Decoupled weight decay on all parameters.
        branch_weight: Weight of the branches' loss.
        diversity_weight: Weight of the similarity of the branches' maps.
        entropy_weight: Weight of the negative entropy of the maps, 0.1 in arXiv 2406.15303.
        class_weights: `balanced` weights bags by the inverse frequency of their class in training.
    """

    def __init__(
        self,
        net: ACMILConfig = ACMILConfig(),
        network: Network = "acmil",
        lr: float = 1e-4,
        min_lr: float = 0.0,
        warmup_epochs: float = 0.0,
        weight_decay: float = 1e-5,
        branch_weight: float = 1.0,
        diversity_weight: float = 1.0,
        entropy_weight: float = 0.0,
        class_weights: str = "none",
    ) -> None:
        if class_weights not in ("none", "balanced"):
            raise ConfigError(f"class_weights: {class_weights!r} is unknown; use none or balanced")
        options = {
            "net": net,
            "network": network,
            "lr": lr,
            "min_lr": min_lr,
            "warmup_epochs": warmup_epochs,
            "weight_decay": weight_decay,
            "branch_weight": branch_weight,
            "diversity_weight": diversity_weight,
            "entropy_weight": entropy_weight,
            "class_weights": class_weights,
        }
        super().__init__(build_network(network, net), options)
        self.config = net
        self.term_weights = {"branch": branch_weight, "diversity": diversity_weight}
        self.class_weights: Tensor | None = None
        self.val_logits, self.val_label = CatMetric(), CatMetric()
        self.val_event = CatMetric()

    def forward(self, bags: Bags) -> MILOutput:
        """Output of the network for one batch."""
        output: MILOutput = self.net(bags.features, bags.cu_seqlens)
        return output

    def on_fit_start(self) -> None:
        """Take the weights of the classes from the training part."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.hparams["class_weights"] == "balanced" and self.config.target == "classes":
            self.class_weights = data.class_weights().to(self.device)

    def training_step(self, bags: Bags, batch_index: int) -> Tensor:
        """Sum of the weighted terms."""
        output = self(bags)
        terms = self._terms(output, bags, self.class_weights)
        size = len(bags.label)
        for name, value in terms.items():
            self.log(f"train/{name}", value, batch_size=size, sync_dist=True)
        loss: Tensor = torch.stack(list(terms.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def _terms(self, output: MILOutput, bags: Bags, weights: Tensor | None) -> dict[str, Tensor]:
        about = {"cu_seqlens": bags.cu_seqlens, "event": bags.event, "class_weights": weights}
        net: Any = self.net
        terms = net.losses(output, bags.label, **about)
        found = {name: value * self.term_weights.get(name, 1.0) for name, value in terms.items()}
        if self.hparams["entropy_weight"] and output.attention is not None:
            penalty = negative_entropy(output.attention, cu_seqlens=bags.cu_seqlens)
            found["entropy"] = self.hparams["entropy_weight"] * penalty
        return found

    def validation_step(self, bags: Bags, batch_index: int) -> None:
        """Gather the logits of the whole part; a mean over batches would be another number."""
        logits = self(bags).logits
        self.val_logits.update(logits)
        self.val_label.update(bags.label)
        self.val_event.update(bags.event.float())
        self.record(**self._columns(bags, logits))

    def on_validation_epoch_end(self) -> None:
        """Log the loss and what selects the best epoch."""
        width = self.config.num_outputs
        # The metric drops the axis of a single bag.
        logits = self.val_logits.compute().reshape(-1, width)
        label, event = (m.compute().reshape(-1) for m in (self.val_label, self.val_event))
        for metric in (self.val_logits, self.val_label, self.val_event):
            metric.reset()
        for name, value in selection(logits, label, event > 0, self.config).items():
            # All processes have gathered the same.
            self.log(f"val/{name}", value, prog_bar=True, sync_dist=True)
        super().on_validation_epoch_end()

    def test_step(self, bags: Bags, batch_index: int) -> None:
        """Record every bag; the metrics come from the table of predictions."""
        self.record(**self._columns(bags, self(bags).logits))

    def configure_optimizers(self) -> Any:
        """AdamW with the authors' schedule, set before every step."""
        options = self.hparams
        optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=options["lr"], weight_decay=options["weight_decay"]
        )
        # Without a number of epochs (trainer.max_steps alone) the cosine spans all steps.
        epochs = max(1, self.trainer.max_epochs or 1)
        steps = max(1.0, float(self.trainer.estimated_stepping_batches) / epochs)

        def factor(step: int) -> float:
            place = min(step / steps, float(epochs))
            return learning_rate(
                place,
                peak=1.0,
                floor=options["min_lr"] / options["lr"],
                warmup=options["warmup_epochs"],
                epochs=epochs,
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, as the preprocessor knows them."""
        names = getattr(self.preprocessor, "class_names", None)
        return names or [str(number) for number in range(self.config.num_classes)]

    def _columns(self, bags: Bags, logits: Tensor) -> dict[str, Any]:
        scores = score_columns(logits, self.config, self.class_names)
        label = bags.label
        if self.config.target == "regression" and isinstance(self.preprocessor, BagPreprocessor):
            # The network learns standardised numbers; tables hold those of the label file.
            scores = {name: self.preprocessor.number(value) for name, value in scores.items()}
            label = self.preprocessor.number(label)
        data: Any = getattr(self.trainer, "datamodule", None)
        about = data.about(bags.number.tolist()) if hasattr(data, "about") else {}
        columns = {"id": bags.number, "label": label} | about | scores
        return columns | ({"event": bags.event} if self.config.target == "survival" else {})


def selection(
    logits: Tensor, label: Tensor, event: Tensor, config: ACMILConfig
) -> dict[str, Tensor]:
    """Metrics of a validation part; `score` selects the best epoch.

    Args:
        logits: `(bags, outputs)`.
        label: `(bags,)`.
        event: For survival, True where the event was seen, `(bags,)`.
        config: Sizes and target.
    """
    loss = target_loss(logits, label, config.target, event=event)
    if config.target == "regression":
        return {"loss": loss, "score": -loss}
    if config.target == "survival":
        return {"loss": loss, "score": concordance(logits[:, 0], label, event)}
    label = label.long()
    found = probabilities(logits, config)
    present = label.bincount(minlength=config.num_classes) > 0
    # A class that the part does not hold, or that is all of it, has no AUC; it would count as 0.
    defined = present & (label.bincount(minlength=config.num_classes) < len(label))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No (positive|negative) samples in targets")
        each = multiclass_auroc(found, label, config.num_classes, average=None)
    auroc = each[defined].mean() if defined.any() else torch.tensor(0.5, device=label.device)
    f1 = multiclass_f1_score(found.argmax(-1), label, config.num_classes, average="macro")
    return {"loss": loss, "auroc": auroc.float(), "f1": f1, "score": auroc.float() + f1}


def concordance(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Harrell's C, with the pairs that `evaluate` counts; one half where none can be compared.

    Args:
        risk: Log hazards, `(bags,)`.
        time: Times, `(bags,)`.
        event: True where the event was seen, `(bags,)`.
    """
    scores, times, seen = (part.detach().cpu().numpy() for part in (risk, time, event))
    wins, pairs = pair_counts(scores, times, seen, np.zeros(len(risk), np.int64))
    share = wins.sum() / pairs.sum() if pairs.sum() else 0.5
    return torch.tensor(share, device=risk.device)
