"""Training of MVPFormer and of the baselines in the same harness."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_average_precision

from manyhead.mvpformer.events.postprocess import PostOptions, detect, marked
from manyhead.mvpformer.events.table import true_seizures
from manyhead.mvpformer.events.thresholds import Scored, choose_threshold
from manyhead.mvpformer.gathered import Gathered
from manyhead.mvpformer.initial import load_initial
from manyhead.mvpformer.lora import freeze_base
from manyhead.mvpformer.losses import Negatives, contrastive_loss, draw_negatives
from manyhead.mvpformer.model import MVPFormerConfig
from manyhead.mvpformer.networks import Network, build_network
from manyhead_core.errors import ConfigError
from manyhead_core.training.task import Task

# Weight of the loss beside the average precision: it decides between epochs that rank alike.
TIE = 1e-3
# Precisions of the trainer that cast the batch.
ROUNDING = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
# Local names of the constructor that are no options of the run.
NOT_OPTIONS = ("self", "__class__")
# Words that options take.
KNOWN = {
    "train": ("all", "adapters"),
    "class_weights": ("none", "balanced"),
    "negatives": get_args(Negatives),
    "threshold": ("f1", "false_alarms"),
    "select": ("best", "last"),
}
# What learns beside the adapters: what the weights to start from may not have.
OWN = ("head.", "encoder.amplitude_proj.")


class MVPFormerTask(Task[Any]):
    """Losses, optimiser and validation of one run.

    `classes` minimises the cross-entropy of the newest segment's state, `next_token` the
    contrastive loss of pre-training, `forecast` the squared error of the samples to come. For
    classes the threshold of detection is chosen on the validation patients after every epoch and
    kept with the weights; test patients never touch it.

    Args:
        net: Architecture; the length of a segment comes from the data.
        network: `mvpformer`, or a baseline in the same harness.
        init: Weights folder or checkpoint to start from; a head of another shape is drawn anew.
        train: `all` weights, or `adapters`, head and side input alone, which needs `net.lora_rank`.
        lr: Largest learning rate of AdamW.
        weight_decay: Decoupled weight decay on all parameters.
        warmup: Share of the steps with a linear rise before the half cosine to zero.
        flip: Turn the polarity of every second training window, drawn at random; which pole of an
            electrode is positive is a convention of the recording.
        scale_jitter: Standard deviation of the log factor that a training window is scaled by.
        class_weights: `balanced` weights steps by the inverse frequency of their class in training.
        temperature: Divides the cosines of the contrastive loss.
        num_negatives: Tokens that a next token has to be told from.
        negatives: Where they come from, see `draw_negatives`.
        threshold: `f1` takes the threshold with the best event F1 on validation; `false_alarms` the
            most sensitive one with at most `max_false_alarms` a day; a number is taken as it is.
        max_false_alarms: False alarms a day that `false_alarms` allows.
        select: Which epoch is kept: the `best` by the average precision of validation steps, ties
            decided by the loss; or the `last`, for validation parts too small to rank epochs.
    """

    # Other patients have other channels, which is no reason not to test on them.
    not_compared = frozenset({"contract", "post"})

    def __init__(
        self,
        net: MVPFormerConfig = MVPFormerConfig(),
        network: Network = "mvpformer",
        init: Path | None = None,
        train: Literal["all", "adapters"] = "all",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        flip: bool = False,
        scale_jitter: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        temperature: float = 0.1,
        num_negatives: int = 30,
        negatives: Negatives = "any",
        threshold: Literal["f1", "false_alarms"] | float = "f1",
        max_false_alarms: float = 5.0,
        select: Literal["best", "last"] = "best",
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in NOT_OPTIONS}
        _check(options)
        # A checkpoint holds the weights; what they started from may be gone when it is loaded.
        super().__init__(build_network(network, net), options | {"init": None})
        self.config = net
        if init is not None:
            load_initial(self.net, Path(init))
        if train == "adapters":
            freeze_base(self.net, OWN)
        self._fix_threshold()
        self.class_weights: Tensor | None = None
        self.val_logits, self.val_label = Gathered(), Gathered()
        self.val_number, self.val_loss = Gathered(), Gathered()

    def forward(self, batch: Any) -> Any:
        """Output of the network for one batch."""
        return self.net(batch.signal)

    def setup(self, stage: str) -> None:
        """Adopt the preprocessor of the data module.

        Raises:
            ConfigError: The precision would round the signal before the network sees it.
        """
        super().setup(stage)
        precision = str(self.trainer.precision)
        if precision in ROUNDING:
            raise ConfigError(
                f"trainer.precision: {precision} would round the signal to 16 bits before the "
                "wavelets; use bf16-mixed, or 32-true"
            )

    def on_train_start(self) -> None:
        """Let a threshold that is given win over that of a checkpoint."""
        self._fix_threshold()

    def on_validation_start(self) -> None:
        """Let a threshold that is given win over that of a checkpoint."""
        self._fix_threshold()

    def on_test_start(self) -> None:
        """Let a threshold that is given win over that of a checkpoint."""
        self._fix_threshold()

    def _fix_threshold(self) -> None:
        rule = self.hparams["threshold"]
        if not isinstance(rule, str):
            self.net.threshold.fill_(rule)

    def on_fit_start(self) -> None:
        """Take the weights of the classes from the training part."""
        if self.hparams["class_weights"] == "balanced" and self.config.target == "classes":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.class_weights = data.class_weights().to(self.device)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of the target."""
        options = self.hparams
        if options["flip"] or options["scale_jitter"]:
            signal = augmented(batch.signal, flip=options["flip"], jitter=options["scale_jitter"])
            batch = batch._replace(signal=signal)
        loss, _ = self._loss(batch, weights=self.class_weights)
        size = len(batch.signal)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def _loss(
        self,
        batch: Any,
        *,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        found = self(batch)
        if self.config.target == "classes":
            return F.cross_entropy(found.logits, batch.label, weight=weights), found
        if self.config.target == "forecast":
            return F.mse_loss(found.prediction.float(), batch.future), found
        options = self.hparams
        rows = draw_negatives(
            tuple(found.tokens.shape[:3]),
            options["num_negatives"],
            options["negatives"],
            generator=generator,
            device=found.tokens.device,
        )
        contrast = contrastive_loss(found.prediction, found.tokens, rows, options["temperature"])
        if not self.training:
            size = len(batch.signal)
            self.log("val/accuracy", contrast.accuracy, batch_size=size, sync_dist=True)
        return contrast.loss, found

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Gather the logits of the whole part; a mean over batches would be another number."""
        # The same negatives in every epoch, so that epochs can be compared.
        generator = torch.Generator(self.device).manual_seed(batch_index)
        loss, found = self._loss(batch, generator=generator)
        self.val_loss.update(loss.expand(len(batch.signal)))
        if self.config.target == "classes":
            self.val_logits.update(found.logits)
            self.val_label.update(batch.label)
            self.val_number.update(batch.number)
            self.record(**self._columns(batch, found.logits))

    def on_validation_epoch_end(self) -> None:
        """Choose the threshold, and log what selects the best epoch."""
        loss = self.val_loss.compute().mean()
        found = {"loss": loss, "score": -loss}
        if self.config.target == "classes":
            parts = (self.val_logits, self.val_label, self.val_number)
            logits, label, number = (part.compute() for part in parts)
            found |= self._selected(logits, label, number, loss)
        if self.hparams["select"] == "last":
            # Steps, since an epoch may validate more than once.
            found["score"] = torch.full_like(loss, float(self.global_step))
        for metric in (self.val_logits, self.val_label, self.val_number, self.val_loss):
            metric.reset()
        for name, value in found.items():
            # All processes have gathered the same.
            self.log(f"val/{name}", value.to(self.device), prog_bar=name == "score", sync_dist=True)
        super().on_validation_epoch_end()

    def _selected(
        self, logits: Tensor, label: Tensor, number: Tensor, loss: Tensor
    ) -> dict[str, Tensor]:
        # On the CPU it is the same in every run; sums on a GPU are not.
        logits, label, loss = logits.cpu(), label.cpu(), loss.cpu()
        probability = logits.float().softmax(-1)[:, 1]
        both = 0 < int(label.sum()) < len(label)
        # Without both classes there is nothing to rank; the loss decides.
        if not both:
            return {}
        precision = binary_average_precision(probability, label)
        found = {"score": precision - TIE * loss.clamp(max=1), "average_precision": precision}
        # A validate run shows what the threshold of the checkpoint gives.
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if fitting and isinstance(self.hparams["threshold"], str):
            found |= self._choose(self._steps(number, probability, label))
        return found

    def _choose(self, table: pd.DataFrame) -> dict[str, Tensor]:
        """Set the threshold by validation patients; what it gives on them."""
        if "recording" not in table:
            return {}
        alarms = self.hparams["threshold"] == "false_alarms"
        limit = self.hparams["max_false_alarms"] if alarms else None
        chosen = choose_threshold(scored(table), self.post, alarms_per_day=limit)
        self.net.threshold.fill_(chosen.threshold)
        values = {
            "threshold": chosen.threshold,
            "event_f1": chosen.score.f1,
            "false_alarms_per_day": chosen.score.alarms_per_day,
        }
        return {
            name: torch.tensor(value, dtype=torch.float32)
            for name, value in values.items()
            if not math.isnan(value)
        }

    def test_step(self, batch: Any, batch_index: int) -> None:
        """Record every step; the metrics come from the table of predictions."""
        if self.config.target != "classes":
            raise ConfigError(
                f"test: the target {self.config.target} has no seizures to score; use target "
                "classes, or read val/loss of validate"
            )
        self.record(**self._columns(batch, self(batch).logits))

    def complete(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the threshold, and which steps are detected after post-processing."""
        threshold = float(self.net.threshold)
        options = dataclasses.replace(self.post, threshold=threshold)
        table = table.assign(threshold=threshold, detected=0)
        for _, rows in table.groupby("recording", sort=False):
            ordered = rows.sort_values("start")
            start, stop, score = (ordered[name].to_numpy() for name in ("start", "stop", "score"))
            hits = marked(start, stop, detect(score, start, stop, options))
            table.loc[list(ordered.index), "detected"] = hits.astype(np.int64)
        return table

    @property
    def post(self) -> PostOptions:
        """How steps become events, as the preprocessor knows it."""
        found: PostOptions = getattr(self.preprocessor, "post", None) or PostOptions()
        return found

    def configure_optimizers(self) -> Any:
        """AdamW with a linear rise and half a cosine to zero, set before every step."""
        options = self.hparams
        learning = [p for p in self.net.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            learning, lr=options["lr"], weight_decay=options["weight_decay"]
        )
        total = max(1.0, float(self.trainer.estimated_stepping_batches))
        if math.isinf(total):
            raise ConfigError(
                "trainer.max_epochs: -1 without trainer.max_steps leaves the learning rate no end "
                "to fall to, also with trainer.max_time; set one of them"
            )

        def factor(step: int) -> float:
            return learning_rate(step, total, options["warmup"])

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _columns(self, batch: Any, logits: Tensor) -> dict[str, Any]:
        probability = logits.double().softmax(-1)[:, 1]
        return {"label": batch.label, "score": probability} | self._about(batch.number)

    def _about(self, number: Tensor) -> dict[str, list[Any]]:
        data: Any = getattr(self.trainer, "datamodule", None)
        found: dict[str, list[Any]] = {}
        if hasattr(data, "about"):
            found = data.about(number.tolist())
        return found

    def _steps(self, number: Tensor, probability: Tensor, label: Tensor) -> pd.DataFrame:
        columns = {"score": probability.double().numpy(), "label": label.numpy()}
        return pd.DataFrame(columns | self._about(number))


def _check(options: dict[str, Any]) -> None:
    """Refuse options out of their range or without use.

    Raises:
        ConfigError: Names the option.
    """
    net, rule = options["net"], options["threshold"]
    if options["train"] == "adapters":
        if options["network"] != "mvpformer":
            raise ConfigError(f"train: network {options['network']} has no adapters; use all")
        if not net.lora_rank:
            raise ConfigError("train: adapters needs net.lora_rank of 1 or more, got 0")
    for name, known in KNOWN.items():
        value = options[name]
        if isinstance(value, str) and value not in known:
            raise ConfigError(f"{name}: {value!r} is unknown; use {', '.join(known)}")
    least = {"scale_jitter": 0, "weight_decay": 0, "max_false_alarms": 0, "num_negatives": 1}
    for name, number in least.items():
        if not options[name] >= number:
            raise ConfigError(f"{name}: must be {number} or more, got {options[name]}")
    for name in ("lr", "temperature"):
        if not 0 < options[name] < math.inf:
            raise ConfigError(f"{name}: must be more than 0, got {options[name]}")
    if not 0 <= options["warmup"] < 1:
        raise ConfigError(f"warmup: must be in [0, 1), got {options['warmup']}")
    if not isinstance(rule, str) and not 0 <= rule <= 1:
        raise ConfigError(f"threshold: {rule} is no probability from 0 to 1")


def scored(table: pd.DataFrame) -> list[Scored]:
    """Recordings as the choice of a threshold takes them.

    Args:
        table: A row for each step, with `recording`, `score`, `start`, `stop` (s), and the part of
            a true seizure in the step, `event_start` and `event_stop` (s, NaN without one).
    """
    found = []
    for _, rows in table.groupby("recording", sort=False):
        ordered = rows.sort_values("start")
        columns = ("start", "stop", "score", "event_start", "event_stop")
        start, stop, score, onset, offset = (ordered[name].to_numpy() for name in columns)
        found.append(
            Scored(
                probability=score,
                start=start,
                stop=stop,
                seizures=true_seizures(start, stop, onset, offset),
                duration=float(stop.max()),
            )
        )
    return found


def augmented(signal: Tensor, *, flip: bool, jitter: float) -> Tensor:
    """Windows with drawn polarity and scale, the same for all their channels and segments.

    Args:
        signal: `(batch, segments, channels, samples)`.
        flip: Whether half of the windows change their sign.
        jitter: Standard deviation of the log of the factor.
    """
    size = (len(signal), 1, 1, 1)
    factor = torch.exp(jitter * torch.randn(size, device=signal.device))
    if flip:
        factor = factor * (2.0 * torch.randint(2, size, device=signal.device) - 1.0)
    return signal * factor


def learning_rate(step: float, total: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine to zero.

    Args:
        step: Optimiser steps taken.
        total: Optimiser steps of the run.
        warmup: Share of them with the rise.
    """
    rise = warmup * total
    if step < rise:
        return step / rise
    place = min(1.0, (step - rise) / max(1.0, total - rise))
    return 0.5 * (1 + math.cos(math.pi * place))
