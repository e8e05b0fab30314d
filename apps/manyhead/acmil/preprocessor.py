"""What is fitted on the training bags and kept with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manyhead.acmil.bag_output import Target
from manyhead_core.errors import DataError, WeightsError

FORMAT = 1


@dataclass(frozen=True)
class BagPreprocessor:
    """Names of the classes and scales of features and labels.

    Args:
        feature_dim: Width of a feature.
        class_names: Of the classes, in order.
        target: What a bag is labelled with.
        mean: Of each feature over the training instances, `(feature_dim,)`, or None.
        scale: Standard deviation of each feature, or None.
        label_mean: What is taken off a number before training.
        label_scale: What it is divided by.
    """

    feature_dim: int
    class_names: tuple[str, ...]
    target: Target = "classes"
    mean: npt.NDArray[np.float32] | None = None
    scale: npt.NDArray[np.float32] | None = None
    label_mean: float = 0.0
    label_scale: float = 1.0

    def features(self, raw: npt.NDArray[Any], name: str = "") -> Tensor:
        """Features as the network takes them, `(patches, feature_dim)`.

        Args:
            raw: Features as they are stored.
            name: Of the bag, for the message.

        Raises:
            DataError: They have another width.
        """
        if len(raw) and raw.shape[1] != self.feature_dim:
            raise DataError(
                f"{name or 'features'}: {raw.shape[1]} wide, the network was trained with "
                f"{self.feature_dim}; use the encoder of the training"
            )
        if self.mean is not None and self.scale is not None:
            raw = (raw.astype(np.float32) - self.mean) / self.scale
        return torch.from_numpy(np.ascontiguousarray(raw))

    def label(self, value: float) -> float:
        """A label in the scale of the network."""
        return (value - self.label_mean) / self.label_scale

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able part and tensors, as weights folders keep them."""
        meta = {
            "format": FORMAT,
            "feature_dim": self.feature_dim,
            "class_names": list(self.class_names),
            "target": self.target,
            "label_mean": self.label_mean,
            "label_scale": self.label_scale,
        }
        tensors = {}
        if self.mean is not None and self.scale is not None:
            tensors = {"mean": torch.from_numpy(self.mean), "scale": torch.from_numpy(self.scale)}
        return meta, tensors

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BagPreprocessor:
        """The inverse of `state`.

        Raises:
            WeightsError: It was written by a newer version.
        """
        if meta.get("format", 0) > FORMAT:
            raise WeightsError(
                f"weights: the preprocessor has format {meta['format']}, this version knows "
                f"{FORMAT}; update manyhead"
            )
        return cls(
            feature_dim=int(meta["feature_dim"]),
            class_names=tuple(meta["class_names"]),
            target=meta["target"],
            mean=tensors["mean"].numpy() if "mean" in tensors else None,
            scale=tensors["scale"].numpy() if "scale" in tensors else None,
            label_mean=float(meta["label_mean"]),
            label_scale=float(meta["label_scale"]),
        )


def z_scores(
    bags: Sequence[npt.NDArray[Any]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each feature over the instances of some bags."""
    count = sum(len(bag) for bag in bags)
    mean = sum(bag.astype(np.float64).sum(0) for bag in bags) / count
    spread = sum(((bag.astype(np.float64) - mean) ** 2).sum(0) for bag in bags) / count
    scale = np.sqrt(spread)
    # A feature that never changes is zero, not divided by nothing.
    scale[scale == 0] = 1.0
    return np.asarray(mean, np.float32), np.asarray(scale, np.float32)
