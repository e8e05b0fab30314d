"""Windows of a series as the network takes them, and the scales that forecasts get back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from manyhead.mvpformer.series_table import Series
from manyhead_core.errors import WeightsError

FORMAT = 1
# Deviation of a normalised signal: the middle of what the side input of amplitudes expects, in µV.
GAIN = 30.0
# Least deviation of a window, as a share of the channel's in training.
LEAST = 1e-2
Numbers = npt.NDArray[np.int64]


class SeriesBatch(NamedTuple):
    """Windows of a series.

    Args:
        signal: Patches, normalised, `(batch, segments, channels, patch)`.
        future: The next rows, normalised in the same way, `(batch, channels, horizon)`.
        label: Class of the last row, int64 `(batch,)`; 0 without classes.
        number: Of the windows within the table, int64 `(batch,)`.
        mean: Taken off each channel, `(batch, channels)`.
        scale: What each channel was divided by, `(batch, channels)`.
    """

    signal: Tensor
    future: Tensor
    label: Tensor
    number: Tensor
    mean: Tensor
    scale: Tensor

    def restored(self, prediction: Tensor) -> Tensor:
        """Forecasts `(batch, channels, horizon)` in the units of the table."""
        return prediction * self.scale[..., None] + self.mean[..., None]


@dataclass(frozen=True)
class SeriesPreprocessor:
    """Windows and scales, as they are kept with the weights.

    Args:
        columns: Names of the channels.
        mean: Of each channel over the training rows, `(channels,)`.
        scale: Its standard deviation there.
        patch: Rows of a segment.
        num_segments: Segments of a window.
        horizon: Rows to forecast; 0 for classes.
        normalise: `window` or `train`.
        class_names: Of the classes, in order.
    """

    columns: tuple[str, ...]
    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    patch: int
    num_segments: int
    horizon: int = 0
    normalise: str = "window"
    class_names: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that a window looks at."""
        return self.patch * self.num_segments

    def batch(
        self, values: npt.NDArray[np.float32], label: Numbers | None = None, number: Any = None
    ) -> SeriesBatch:
        """Normalised windows.

        Args:
            values: Rows of the windows and then those of the future, if they are known,
                `(batch, rows + horizon, channels)`.
            label: Classes, `(batch,)`.
            number: Of the windows, `(batch,)`.
        """
        past = values[:, : self.rows].astype(np.float64)
        if self.normalise == "window":
            mean = past.mean(1)
            scale = np.maximum(past.std(1), LEAST * self.scale)
        else:
            mean, scale = (np.broadcast_to(x, past[:, 0].shape) for x in (self.mean, self.scale))
        normal = ((values - mean[:, None]) / scale[:, None]).transpose(0, 2, 1)
        patches = GAIN * normal[..., : self.rows].reshape(*scale.shape, self.num_segments, -1)
        count = len(values)
        parts = (
            patches.transpose(0, 2, 1, 3).astype(np.float32),
            normal[..., self.rows :].astype(np.float32),
            np.zeros(count, np.int64) if label is None else label,
            np.arange(count) if number is None else np.asarray(number, np.int64),
            mean.astype(np.float32),
            scale.astype(np.float32),
        )
        return SeriesBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))

    @staticmethod
    def past(batch: SeriesBatch) -> Tensor:
        """Normalised rows of the windows as they follow each other, `(batch, channels, rows)`."""
        return batch.signal.transpose(1, 2).flatten(2) / GAIN

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able part and tensors, as weights folders keep them."""
        names = ("patch", "num_segments", "horizon", "normalise")
        meta = {"format": FORMAT, "kind": "series"} | {name: getattr(self, name) for name in names}
        meta |= {"columns": list(self.columns), "class_names": list(self.class_names)}
        # Buffers of their own: weights files refuse memory that is shared.
        tensors = {name: torch.tensor(getattr(self, name)) for name in ("mean", "scale")}
        return meta, tensors

    @classmethod
    def from_state(
        cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> SeriesPreprocessor:
        """The inverse of `state`.

        Raises:
            WeightsError: It belongs to recordings, or was written by a newer version.
        """
        if meta.get("kind") != "series" or meta.get("format", 0) > FORMAT:
            raise WeightsError(
                "weights: they were not trained on a series, or by a newer manyhead; use the "
                "command for recordings, or update"
            )
        fields = {name: value for name, value in meta.items() if name not in ("format", "kind")}
        fields |= {name: tuple(meta[name]) for name in ("columns", "class_names")}
        return cls(**fields, mean=tensors["mean"].numpy(), scale=tensors["scale"].numpy())


class SeriesWindows(Dataset[SeriesBatch]):
    """Windows of one part, fetched a batch at a time.

    Args:
        series: The table.
        start: First row of each window.
        preprocessor: Sizes and scales.
    """

    def __init__(self, series: Series, start: Numbers, preprocessor: SeriesPreprocessor) -> None:
        self.series, self.start, self.preprocessor = series, start, preprocessor

    def __len__(self) -> int:
        return len(self.start)

    def __getitems__(self, numbers: list[int]) -> SeriesBatch:
        """The batch of these windows."""
        start = self.start[numbers]
        p = self.preprocessor
        rows = start[:, None] + np.arange(p.rows + p.horizon)
        label = self.series.label
        newest = None if label is None else label[start + p.rows - 1]
        return p.batch(self.series.values[rows], newest, start)
