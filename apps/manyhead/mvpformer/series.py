"""MVPFormer on any multivariate series: forecasts, or classes of the newest rows.

A segment is a patch of consecutive rows, a channel a column. Every window is normalised by itself,
channel by channel, and forecasts are given back in the units of the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from manyhead.mvpformer.series_table import Series, read_series
from manyhead.mvpformer.series_windows import (
    Numbers,
    SeriesBatch,
    SeriesPreprocessor,
    SeriesWindows,
)
from manyhead.mvpformer.wavelet import MIN_SAMPLES
from manyhead_core.errors import ConfigError, DataError

PARTS = ("train", "validation", "test")


class SeriesData(LightningDataModule):
    """Windows of a table, split in order of time.

    What is forecast, or the row that is classified, belongs to the part; training windows lie in
    the training rows as a whole. Scales are fitted on the training rows.

    Args:
        root: Table, see `read_series`.
        columns: Channels in order, as `a,b,c`; empty takes all.
        time: Column with the time of each row; no window spans a gap in it.
        label: Column with the class of each row.
        target: `forecast`, or `classes` of the last row of a window.
        patch: Rows of a segment.
        num_segments: Segments of a window.
        horizon: Rows to forecast.
        stride: Rows between training windows; evaluation takes every window.
        fractions: Share of the rows that train, validate and test.
        look_back: Whether validation and test windows may begin in the rows of the part before,
            whose past is known by then.
        normalise: `window` by the mean and deviation of each window and channel; `train` by those
            of the training rows.
        missing: Empty cells: `refuse`, or `last` to go on with the value before.
        batch_windows: Windows of a batch.

    Raises:
        ConfigError: Options that contradict each other.
        DataError: The table is not what was expected.
    """

    def __init__(
        self,
        root: Path,
        columns: str = "",
        time: str = "",
        label: str = "",
        target: Literal["forecast", "classes"] = "forecast",
        patch: int = 16,
        num_segments: int = 21,
        horizon: int = 96,
        stride: int = 1,
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        look_back: bool = True,
        normalise: Literal["window", "train"] = "window",
        missing: Literal["refuse", "last"] = "refuse",
        batch_windows: int = 32,
    ) -> None:
        super().__init__()
        sizes = {
            "patch": (patch, MIN_SAMPLES),
            "num_segments": (num_segments, 1),
            "stride": (stride, 1),
            "batch_windows": (batch_windows, 1),
            "horizon": (horizon, 1 if target == "forecast" else 0),
        }
        for name, (number, least) in sizes.items():
            if number < least:
                raise ConfigError(f"data.{name}: must be at least {least}, got {number}")
        if target == "classes" and not label:
            raise ConfigError("data.label: target classes needs the column of the class")
        if min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ConfigError(f"data.fractions: must be 0 or more and add up to 1, got {fractions}")
        names = [name.strip() for name in columns.split(",") if name.strip()]
        self.root = Path(root)
        self.reading: dict[str, Any] = {
            "columns": names,
            "time": time,
            "label": label,
            "missing": missing,
        }
        self.target, self.patch, self.num_segments = target, patch, num_segments
        self.horizon = horizon if target == "forecast" else 0
        self.stride, self.fractions, self.look_back = stride, fractions, look_back
        self.normalise, self.batch_windows = normalise, batch_windows
        self.series: Series | None = None
        self.parts: dict[str, Numbers] = {}
        self.preprocessor: SeriesPreprocessor | None = None

    def prepare(self) -> None:
        """Read, split and fit the scales; further calls do nothing."""
        if self.series is not None:
            return
        series = read_series(self.root, **self.reading)
        shares = np.cumsum([0.0, *self.fractions])
        borders = np.rint(shares * len(series.values)).astype(np.int64)
        self.parts = {
            name: self._starts(series, *borders[k : k + 2], train=k == 0)
            for k, name in enumerate(PARTS)
        }
        if not len(self.parts["train"]):
            needed = self.patch * self.num_segments + self.horizon
            raise DataError(
                f"data.num_segments: no window of {needed} rows fits into the {borders[1]} "
                "training rows; take fewer or shorter segments"
            )
        self.preprocessor = self._fitted(series, series.values[: borders[1]])
        self.series = series

    def _starts(self, series: Series, first: int, last: int, *, train: bool) -> Numbers:
        """First rows of the windows whose future, or last row, lies in `first` to `last`."""
        rows = self.patch * self.num_segments
        # The first row that is asked for: the next one, or the last of the window itself.
        asked = rows if self.horizon else rows - 1
        begin = max(0, first - asked) if self.look_back else first
        start = np.arange(begin, max(begin, last - rows - self.horizon + 1))
        end = start + rows + self.horizon - 1
        whole = start[series.piece[start] == series.piece[end]]
        stride = self.stride if train else 1
        chosen: Numbers = whole[::stride]
        return chosen

    def _fitted(self, series: Series, rows: npt.NDArray[np.float32]) -> SeriesPreprocessor:
        precise = rows.astype(np.float64)
        deviation = precise.std(0)
        return SeriesPreprocessor(
            columns=series.columns,
            mean=precise.mean(0).astype(np.float32),
            scale=np.where(deviation > 0, deviation, 1.0).astype(np.float32),
            patch=self.patch,
            num_segments=self.num_segments,
            horizon=self.horizon,
            normalise=self.normalise,
            class_names=series.class_names,
        )

    def net_overrides(self) -> dict[str, Any]:
        """Sizes of the network that follow from the data."""
        series = self._prepared()
        found: dict[str, Any] = {"segment_samples": self.patch, "target": self.target}
        if self.target == "forecast":
            return found | {"horizon": self.horizon}
        return found | {"num_classes": len(series.class_names)}

    def setup(self, stage: str) -> None:
        """Make sure that the parts of this stage are not empty."""
        self._prepared()
        needed = {"validate": "validation", "test": "test"}.get(stage)
        if needed and not len(self.parts[needed]):
            raise DataError(f"data.fractions: no window fits into the {needed} part; enlarge it")

    def train_dataloader(self) -> DataLoader[SeriesBatch]:
        """Training windows in an order drawn anew for each epoch."""
        return self.part_loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[SeriesBatch] | list[Any]:
        """Validation windows in order of time; nothing where no rows validate."""
        self._prepared()
        return self.part_loader("validation") if self.validates else []

    @property
    def validates(self) -> bool:
        """Whether there is a validation part."""
        return bool(len(self.parts.get("validation", ())))

    def test_dataloader(self) -> DataLoader[SeriesBatch]:
        """Test windows in order of time."""
        return self.part_loader("test")

    def class_weights(self) -> Tensor:
        """Inverse frequency of the classes in training, one on average over the windows."""
        series, rows = self._prepared(), self.patch * self.num_segments
        assert series.label is not None  # noqa: S101 - there are classes
        count = np.bincount(
            series.label[self.parts["train"] + rows - 1], minlength=len(series.class_names)
        )
        present = count > 0
        weights = np.where(present, count.sum() / (present.sum() * np.maximum(count, 1)), 0.0)
        return torch.tensor(weights, dtype=torch.float32)

    def about(self, numbers: list[int]) -> dict[str, list[Any]]:
        """Names and places of windows for the table of predictions; a row counts as a second.

        Args:
            numbers: First rows of the windows.
        """
        series = self._prepared()
        last = [number + self.patch * self.num_segments - 1 for number in numbers]
        on = [series.label is not None and series.label[row] == 1 for row in last]
        return {
            "id": [f"series:{row}" for row in last],
            "group": ["series"] * len(last),
            "site": [""] * len(last),
            "recording": ["series"] * len(last),
            "start": [float(row) for row in last],
            "stop": [float(row + 1) for row in last],
            "event_start": [float(row) if y else np.nan for row, y in zip(last, on, strict=True)],
            "event_stop": [
                float(row + 1) if y else np.nan for row, y in zip(last, on, strict=True)
            ],
        }

    def _prepared(self) -> Series:
        self.prepare()
        assert self.series is not None  # noqa: S101
        return self.series

    def part_loader(self, part: str, *, shuffle: bool = False) -> DataLoader[SeriesBatch]:
        """Batches of one part.

        Args:
            part: `train`, `validation` or `test`.
            shuffle: Draw the order anew for each epoch.
        """
        series = self._prepared()
        assert self.preprocessor is not None  # noqa: S101
        windows = SeriesWindows(series, self.parts[part], self.preprocessor)
        return DataLoader(windows, self.batch_windows, shuffle=shuffle, collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch


@torch.no_grad()
def forecast(
    net: torch.nn.Module, preprocessor: SeriesPreprocessor, history: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """The next rows of a series in the units of the table, `(horizon, channels)`.

    Args:
        net: Network with the target `forecast`, in evaluation mode.
        preprocessor: Of its training.
        history: The newest rows, `(rows, channels)`, as many as a window looks at or more.

    Raises:
        DataError: There are too few rows, or other channels.
    """
    if history.shape[1] != len(preprocessor.columns) or len(history) < preprocessor.rows:
        raise DataError(
            f"history: is {history.shape}; the network needs {preprocessor.rows} rows or more of "
            f"the {len(preprocessor.columns)} channels {', '.join(preprocessor.columns[:5])}"
        )
    newest = np.asarray(history[-preprocessor.rows :], dtype=np.float32)
    device = next(net.parameters()).device
    batch = SeriesBatch(*(part.to(device) for part in preprocessor.batch(newest[None])))
    found: npt.NDArray[np.float32] = (
        batch.restored(net(batch.signal).prediction.float())[0].T.cpu().numpy()
    )
    return found
