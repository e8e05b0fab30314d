"""Batches of windows, read by threads ahead of the step that needs them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from manyhead.mvpformer.sampling import CHANNELS, Sampler, SamplingOptions, in_order
from manyhead.mvpformer.tracks import Numbers, WindowBatch, WindowSet
from manyhead_core.errors import DataError

# Batches that are read ahead; each may hold some 100 MB.
AHEAD = 2


class WindowLoader:
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
        seed: Of what is drawn.
        rank: Number of this process.
        world_size: Number of processes; each gets every so many-th batch.
        threads: Threads that read.
        pin_memory: Whether a GPU will fetch the batches.

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
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.windows, self.numbers, self.train_channels = windows, numbers, train_channels
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.threads, self.pin_memory = threads, pin_memory
        self.epoch = self.given = 0
        # Lightning takes whatever has a `sampler` for a loader of torch.
        self.drawing: Sampler | None = None
        if sampling is None:
            self._fixed = in_order(numbers, windows.track[numbers], batch_windows)
            self._count = len(range(rank, len(self._fixed), world_size))
            return
        about = windows.label[numbers], windows.patient[numbers]
        self.drawing = Sampler(numbers, *about, sampling, seed)
        # All processes must take as many steps.
        self._count = self.drawing.count // world_size
        if not self._count:
            raise DataError(
                f"data.batch_windows: {self.drawing.count} training batches are too few for "
                f"{world_size} processes; use fewer processes or smaller batches"
            )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[WindowBatch]:
        epoch, first = self.epoch, self.given
        self.given = 0
        places = iter(range(first, self._count))
        batches = self._batches(epoch)
        with ThreadPoolExecutor(self.threads, "windows") as pool:
            # Lazily, so that no more is read than is waited for.
            jobs = (pool.submit(self._read, batches[k], epoch, k) for k in places)
            waiting: deque[Future[WindowBatch]] = deque(itertools.islice(jobs, AHEAD))
            try:
                for place in range(first, self._count):
                    batch = waiting.popleft().result()
                    waiting.extend(itertools.islice(jobs, 1))
                    self._remember(epoch, place + 1)
                    yield batch
            finally:
                for job in waiting:
                    job.cancel()

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches were given."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the saved batch."""
        self.epoch, self.given = state["epoch"], state["given"]

    def _remember(self, epoch: int, given: int) -> None:
        if self.drawing is None:
            return
        ended = given == self._count
        self.epoch, self.given = (epoch + 1, 0) if ended else (epoch, given)

    def _batches(self, epoch: int) -> list[Numbers]:
        """Batches of this process."""
        drawn = self._fixed if self.drawing is None else self.drawing.epoch(epoch)
        return drawn[self.rank :: self.world_size][: self._count]

    def _read(self, batch: Numbers, epoch: int, place: int) -> WindowBatch:
        counts = np.array(self.windows.channels(batch))
        count = int(counts.min())
        first = None
        if self.drawing is not None:
            count = min(count, self.train_channels or count)
            stream = (self.seed, epoch, CHANNELS, place * self.world_size + self.rank)
            first = np.random.default_rng(stream).integers(0, counts - count + 1).tolist()
        found = self.windows.read(batch, count, first)
        return WindowBatch(*(part.pin_memory() for part in found)) if self.pin_memory else found
