"""Batches that threads read ahead of the step that needs them; a run that was cut goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from manyhead_core.errors import DataError

Numbers = npt.NDArray[np.int64]
# A named tuple of tensors.
Batch = TypeVar("Batch", bound=tuple[torch.Tensor, ...])
# Batches that are read ahead, or more where more threads read.
AHEAD = 2


class Reading(TypedDict, total=False):
    """What every loader takes; see `AheadLoader`."""

    seed: int
    rank: int
    world_size: int
    threads: int
    pin_memory: bool


class AheadLoader(ABC, Generic[Batch]):
    """Batches of some items; iterating again gives the next epoch.

    While training, iterating goes on where the last iteration was cut off, which is how a resumed
    run meets the batches it would have met: what is drawn must follow from seed and epoch alone.
    A subclass says `batches` and `read`, and calls `plan` once it knows how many batches there are.

    Args:
        training: Whether all processes take as many steps, and an epoch that was cut goes on.
        seed: Seed of what is drawn.
        rank: Number of this process.
        world_size: Number of processes; each gets every so many-th batch.
        threads: Threads that read.
        pin_memory: Whether a GPU will fetch the batches.
    """

    # No attribute may be named `sampler`: Lightning takes such an object for a loader of torch.

    def __init__(
        self,
        *,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.training, self.seed = training, seed
        self.rank, self.world_size = rank, world_size
        self.threads, self.pin_memory = threads, pin_memory
        self.epoch = self.position = self.count = 0

    def plan(self, count: int, option: str) -> None:
        """Set the number of batches of every epoch, over all processes.

        Args:
            count: Batches.
            option: Option that makes them larger or smaller, for the message.

        Raises:
            DataError: There are fewer training batches than processes.
        """
        self.count = count
        if self.training and not len(self):
            raise DataError(
                f"{option}: {count} training batches are too few for {self.world_size} processes; "
                "use fewer processes or smaller batches"
            )

    @abstractmethod
    def batches(self, epoch: int) -> Sequence[Numbers]:
        """Items of each batch of an epoch, over all processes.

        Args:
            epoch: From 0.
        """

    @abstractmethod
    def read(self, batch: Numbers, epoch: int, place: int) -> Batch:
        """A batch; several threads ask at once.

        Args:
            batch: Its items.
            epoch: From 0.
            place: Number of the batch in the epoch, over all processes.
        """

    def __len__(self) -> int:
        if self.training:
            # What is left over waits for another epoch.
            return self.count // self.world_size
        return len(range(self.rank, self.count, self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        start, self.position = (self.position if self.training else 0), 0
        epoch, count = self.epoch, len(self)
        own = self.batches(epoch)[self.rank :: self.world_size][:count]
        with ThreadPoolExecutor(self.threads, "batches") as pool:
            # Lazily, so that no more is read than is waited for.
            jobs = (pool.submit(self._ready, own[k], epoch, k) for k in range(start, count))
            waiting: deque[Future[Batch]] = deque(islice(jobs, max(AHEAD, self.threads)))
            try:
                for step in range(start, count):
                    ready = waiting.popleft().result()
                    waiting.extend(islice(jobs, 1))
                    ended = step + 1 == count
                    self.epoch, self.position = (epoch + 1, 0) if ended else (epoch, step + 1)
                    yield ready
            finally:
                # A failure or an end before the last batch must not wait for what nobody takes.
                pool.shutdown(wait=False, cancel_futures=True)

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches that it has given of it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch after the saved position."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _ready(self, batch: Numbers, epoch: int, step: int) -> Batch:
        found = self.read(batch, epoch, step * self.world_size + self.rank)
        if not self.pin_memory:
            return found
        return type(found)(*(part.pin_memory() for part in found))
