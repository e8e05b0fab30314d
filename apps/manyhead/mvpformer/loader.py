"""Batches of windows, read by threads ahead of the step that needs them."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from manyhead.mvpformer.sampling import CHANNELS, Sampler, SamplingOptions, in_order
from manyhead.mvpformer.tracks import Numbers, WindowBatch, WindowSet
from manyhead_core.data.ahead import AheadLoader, Reading


class WindowLoader(AheadLoader[WindowBatch]):
    """Batches of some windows; iterating again gives the next epoch.

    Batches that are drawn follow from seed and epoch alone, and a loader whose state was saved
    within an epoch goes on with the batch after it.

    Args:
        windows: The windows.
        numbers: Which of them.
        sampling: How training batches are drawn; None gives all windows in order, a batch being of
            one recording, for evaluation.
        batch_windows: Most windows of a batch in evaluation.
        train_channels: Most channels of a training batch; windows give that many neighbouring
            channels, drawn anew each time. 0 does not look.
        **reading: Seed, processes and threads; see `AheadLoader`.

    Raises:
        DataError: There are fewer training batches than processes.
    """

    def __init__(
        self,
        windows: WindowSet,
        numbers: Numbers,
        *,
        sampling: SamplingOptions | None = None,
        batch_windows: int = 8,
        train_channels: int = 0,
        **reading: Unpack[Reading],
    ) -> None:
        super().__init__(training=sampling is not None, **reading)
        self.windows, self.numbers, self.train_channels = windows, numbers, train_channels
        # Lightning takes whatever has a `sampler` for a loader of torch.
        self.drawing: Sampler | None = None
        if sampling is None:
            self._fixed = in_order(numbers, windows.track[numbers], batch_windows)
            self.plan(len(self._fixed), "data.batch_windows")
            return
        about = windows.label[numbers], windows.patient[numbers]
        self.drawing = Sampler(numbers, *about, sampling, self.seed)
        self.plan(self.drawing.count, "data.batch_windows")

    def batches(self, epoch: int) -> list[Numbers]:
        """Windows of each batch of an epoch, over all processes.

        Args:
            epoch: From 0.
        """
        return self._fixed if self.drawing is None else self.drawing.epoch(epoch)

    def read(self, batch: Numbers, epoch: int, place: int) -> WindowBatch:
        """Windows with as many channels.

        Args:
            batch: Their numbers.
            epoch: From 0; it decides on the channels.
            place: Number of the batch in the epoch, over all processes.
        """
        counts = np.array(self.windows.channels(batch))
        count = int(counts.min())
        first = None
        if self.drawing is not None:
            count = min(count, self.train_channels or count)
            stream = (self.seed, epoch, CHANNELS, place)
            first = np.random.default_rng(stream).integers(0, counts - count + 1).tolist()
        return self.windows.read(batch, count, first)
