"""Bags of patch features for training: labelled, split by patient, served in packed batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule

from manyhead.acmil.bag_output import Target
from manyhead.acmil.labels import LabelOptions
from manyhead.acmil.loader import BagLoader
from manyhead.acmil.preprocessor import BagPreprocessor, z_scores
from manyhead.acmil.sources import BagSource, open_source
from manyhead.acmil.splits import PARTS, SplitOptions, assign
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.files import replace
from manyhead_core.training.random_state import run_seed


class BagData(LightningDataModule):
    """Slides as bags of patch features.

    Whatever is fitted, such as scales, is fitted on the training part only.

    Args:
        root: Folder or file with features in the layout of CLAM, TRIDENT, STAMP or ACMIL, or a
            classic table of bags (.csv, .data).
        labels: CSV with a row for each slide.
        target: `classes`, `ordinal`, `regression` or `survival`; the same as `model.net.target`.
        label: Column of the class, the number or the time.
        event: Column that is 1 where the event of a survival time was seen.
        slide: Column of the slide.
        case: Column of the patient; patients are never split.
        site: Column of the hospital or scanner, for reports.
        classes: Classes in order with their values, as `benign=0,1,2;malignant=5,6`.
        bag: `slide`, or `patient` for all slides of a patient together.
        split: `random`, `fold`, `column`, or a split file (.json, .csv).
        fractions: Share of train, validation and test of `random`.
        folds: Number of folds.
        fold: Fold that tests, from 0; the next ones validate.
        validation_folds: How many validate; with 0 the last epoch is tested.
        split_seed: Seed of the split; None takes that of the run.
        batch_bags: Bags of a training batch.
        eval_batch_bags: Bags of a batch in evaluation.
        batch_patches: End a training batch before it holds more patches than this; 0 does not look.
        max_patches: Patches of a bag in training, drawn anew for each epoch; 0 takes all.
        sampling: `balanced` draws as many training bags of each class.
        normalise: `train` scales each feature by mean and deviation over the training instances.
        threads: Threads that read.

    Raises:
        ConfigError: Options that contradict each other.
        DataError: Data that are missing or not what was expected.
    """

    def __init__(
        self,
        root: Path,
        labels: Path | None = None,
        target: Target = "classes",
        label: str = "label",
        event: str = "event",
        slide: str = "slide_id",
        case: str = "case_id",
        site: str = "",
        classes: str = "",
        bag: Literal["slide", "patient"] = "slide",
        split: str = "random",
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        folds: int = 5,
        fold: int = 0,
        validation_folds: int = 1,
        split_seed: int | None = 0,
        batch_bags: int = 1,
        eval_batch_bags: int = 1,
        batch_patches: int = 0,
        max_patches: int = 0,
        sampling: Literal["uniform", "balanced"] = "uniform",
        normalise: Literal["none", "train"] = "none",
        threads: int = 2,
    ) -> None:
        super().__init__()
        at_least = {
            "batch_bags": (batch_bags, 1),
            "eval_batch_bags": (eval_batch_bags, 1),
            "threads": (threads, 1),
            "batch_patches": (batch_patches, 0),
            "max_patches": (max_patches, 0),
        }
        for name, (number, least) in at_least.items():
            if number < least:
                raise ConfigError(f"data.{name}: must be at least {least}, got {number}")
        if sampling == "balanced" and target not in ("classes", "ordinal"):
            raise ConfigError(f"data.sampling: balanced needs classes, the target is {target}")
        self.root, self.labels = Path(root), labels
        self.bag: Literal["slide", "patient"] = bag
        self.target: Target = target
        self.columns = LabelOptions(
            target=target,
            label=label,
            event=event,
            slide=slide,
            case=case,
            site=site,
            classes=classes,
        )
        self.split = SplitOptions(
            by=split,
            fractions=fractions,
            folds=folds,
            fold=fold,
            validation_folds=validation_folds,
            seed=run_seed() if split_seed is None else split_seed,
        )
        self.batch_bags, self.eval_batch_bags = batch_bags, eval_batch_bags
        self.batch_patches, self.max_patches = batch_patches, max_patches
        self.balanced, self.normalise, self.threads = sampling == "balanced", normalise, threads
        self.source: BagSource | None = None
        self.parts: dict[str, np.ndarray] = {}
        self.preprocessor: BagPreprocessor | None = None

    def prepare(self) -> None:
        """Read the tables, split, and fit the scales; further calls do nothing."""
        if self.source is not None:
            return
        source = open_source(self.root, self.labels, self.columns, self.bag)
        codes = assign(source.frame, self.split)
        self.parts = {name: np.flatnonzero(codes == k) for k, name in enumerate(PARTS)}
        self.preprocessor = self._fitted(source)
        self.source = source

    def _fitted(self, source: BagSource) -> BagPreprocessor:
        train = self.parts["train"]
        if not len(train):
            raise DataError(f"data.split: no bag of {len(source)} trains; choose another split")
        label = source.frame["label"].to_numpy(dtype=float)[train]
        if self.target in ("classes", "ordinal") and len(np.unique(label)) < 2:
            only = source.class_names[int(label[0])]
            raise DataError(
                f"data.split: all {len(train)} training bags are of the class {only}; "
                "choose another split"
            )
        mean = scale = None
        if self.normalise == "train":
            mean, scale = z_scores(source.read(int(number)) for number in train)
        regression = self.target == "regression"
        return BagPreprocessor(
            feature_dim=source.feature_dim,
            class_names=source.class_names,
            target=self.target,
            bag=self.bag,
            mean=mean,
            scale=scale,
            label_mean=float(label.mean()) if regression else 0.0,
            label_scale=float(label.std() or 1.0) if regression else 1.0,
        )

    def net_overrides(self) -> dict[str, Any]:
        """Sizes of the network that follow from the data."""
        source = self._prepared()
        classes = max(2, len(source.class_names))
        found = {"feature_dim": source.feature_dim, "num_classes": classes}
        return found | {"target": self.target}

    def setup(self, stage: str) -> None:
        """Make sure that the parts of this stage are not empty."""
        self._prepared()
        needed = {"validate": "validation", "test": "test"}.get(stage)
        if needed and not len(self.parts[needed]):
            raise DataError(
                f"data.split: the {needed} part is empty; choose another split, or other data."
                "fractions or data.validation_folds"
            )

    def train_dataloader(self) -> BagLoader:
        """Training bags in an order drawn anew for each epoch."""
        return self._loader("train", self.batch_bags, shuffle=True)

    def val_dataloader(self) -> BagLoader | list[Any]:
        """Validation bags in the order of the table; nothing where no part validates."""
        self._prepared()
        return self._loader("validation", self.eval_batch_bags) if self.validates else []

    @property
    def validates(self) -> bool:
        """Whether there is a validation part."""
        return bool(len(self.parts.get("validation", ())))

    def test_dataloader(self) -> BagLoader:
        """Test bags in the order of the table."""
        return self._loader("test", self.eval_batch_bags)

    def class_weights(self) -> torch.Tensor:
        """Inverse frequency of the classes in training, one on average over the bags."""
        source = self._prepared()
        label = source.frame["label"].to_numpy()[self.parts["train"]]
        count = np.bincount(label, minlength=len(source.class_names))
        present = count > 0
        weights = np.where(present, len(label) / (present.sum() * np.maximum(count, 1)), 0.0)
        return torch.tensor(weights, dtype=torch.float32)

    def about(self, numbers: list[int]) -> dict[str, list[str]]:
        """Names of bags for the table of predictions."""
        rows = self._prepared().frame.iloc[numbers]
        return {
            "id": rows["id"].tolist(),
            "group": rows["case"].tolist(),
            "site": rows["site"].tolist(),
        }

    def write_split(self, folder: Path) -> None:
        """Write `split.csv` with id and split, and `left_out.csv` with the slides of no bag.

        Args:
            folder: Where to; `data.split` reads `split.csv` again.
        """
        source = self._prepared()
        names = source.frame["id"].to_numpy()
        rows = [(names[k], part) for part, numbers in self.parts.items() for k in numbers]
        _write(Path(folder) / "split.csv", pd.DataFrame(rows, columns=["id", "split"]))
        if source.left_out:
            table = pd.DataFrame(source.left_out.items(), columns=["slide_id", "reason"])
            _write(Path(folder) / "left_out.csv", table)

    def _prepared(self) -> BagSource:
        self.prepare()
        assert self.source is not None  # noqa: S101
        return self.source

    def _loader(self, part: str, batch_bags: int, *, shuffle: bool = False) -> BagLoader:
        source = self._prepared()
        assert self.preprocessor is not None  # noqa: S101
        trainer = self.trainer
        gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return BagLoader(
            source,
            self.parts[part],
            self.preprocessor,
            batch_bags=batch_bags,
            shuffle=shuffle,
            balanced=shuffle and self.balanced,
            max_patches=self.max_patches if shuffle else 0,
            batch_patches=self.batch_patches if shuffle else 0,
            epochs=(trainer.max_epochs or 1) if trainer else 1,
            seed=run_seed(),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            threads=self.threads,
            pin_memory=gpu,
        )


def _write(path: Path, table: pd.DataFrame) -> None:
    replace(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))
