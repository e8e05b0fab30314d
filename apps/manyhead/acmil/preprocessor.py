"""What is fitted on the training bags and kept with the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manyhead.acmil.bag_output import Target
from manyhead_core.errors import DataError, WeightsError

FORMAT = 1
# Rows that are made precise at a time.
CHUNK = 16_384


@dataclass(frozen=True)
class BagPreprocessor:
    """Names of the classes and scales of features and labels.

    Args:
        feature_dim: Width of a feature.
        class_names: Of the classes, in order.
        target: What a bag is labelled with.
        bag: Whether a bag is a slide or all slides of a patient.
        mean: Of each feature over the training instances, `(feature_dim,)`, or None.
        scale: Standard deviation of each feature, or None.
        label_mean: What is taken off a number before training.
        label_scale: What it is divided by.
    """

    feature_dim: int
    class_names: tuple[str, ...]
    target: Target = "classes"
    bag: str = "slide"
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
        self.check_width(raw.shape[1], name)
        if self.mean is not None and self.scale is not None:
            raw = (raw.astype(np.float32) - self.mean) / self.scale
        raw = np.ascontiguousarray(raw)
        return torch.from_numpy(raw if raw.flags.writeable else np.asarray(_Writable(raw)))

    def check_width(self, width: int, name: str = "") -> None:
        """Refuse features of another encoder.

        Args:
            width: Of a feature.
            name: Of the bag, for the message.

        Raises:
            DataError: The network was trained with another width.
        """
        if width != self.feature_dim:
            raise DataError(
                f"{name or 'input'}: features are {width} wide, the network was trained with "
                f"{self.feature_dim}; use the encoder of the training"
            )

    def label(self, value: float) -> float:
        """A label in the scale of the network."""
        return (value - self.label_mean) / self.label_scale

    def number(self, value: Tensor) -> Tensor:
        """Labels or outputs of the network in the scale of the labels, float64."""
        return value.double() * self.label_scale + self.label_mean

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able part and tensors, as weights folders keep them."""
        meta = {
            "format": FORMAT,
            "feature_dim": self.feature_dim,
            "class_names": list(self.class_names),
            "target": self.target,
            "bag": self.bag,
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
            bag=meta.get("bag", "slide"),
            mean=tensors["mean"].numpy() if "mean" in tensors else None,
            scale=tensors["scale"].numpy() if "scale" in tensors else None,
            label_mean=float(meta["label_mean"]),
            label_scale=float(meta["label_scale"]),
        )


class _Writable:
    """View of a mapped file as an array that could be written, which torch wants and nobody does.

    Args:
        array: The mapped array.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        about = array.__array_interface__
        self.__array_interface__ = about | {"data": (about["data"][0], False)}


def z_scores(
    bags: Iterable[npt.NDArray[Any]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each feature over the instances of some bags, `(width,)`.

    One pass, merged as in Chan et al. 1979, so that no more than one bag has to be in memory.

    Args:
        bags: Features, `(instances, width)`.
    """
    count, mean, spread = 0, np.zeros(0), np.zeros(0)
    for bag in bags:
        for start in range(0, len(bag), CHUNK):
            part = bag[start : start + CHUNK].astype(np.float64)
            own, share = part.mean(0), len(part) / (count + len(part))
            if not count:
                mean, spread = np.zeros_like(own), np.zeros_like(own)
            gap = own - mean
            spread = spread + ((part - own) ** 2).sum(0) + gap**2 * (count * share)
            mean, count = mean + gap * share, count + len(part)
    scale = np.sqrt(spread / max(1, count))
    # A feature that never changes becomes zero; dividing by nothing would not.
    scale[scale == 0] = 1.0
    return np.asarray(mean, np.float32), np.asarray(scale, np.float32)
