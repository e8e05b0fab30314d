"""Packed batches: bags are read by threads ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from manyhead.acmil.bags import Bags, pack
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.sources import BagSource

Numbers = npt.NDArray[np.int64]
# Batches that are read ahead.
AHEAD = 3


class BagLoader:
    """Batches of some bags of a source; iterating again gives the next epoch.

    Args:
        source: The bags.
        numbers: Which of them.
        preprocessor: Scales.
        batch_bags: Bags of a batch.
        shuffle: Draw the order anew for each epoch.
        balanced: Draw as many bags of each class, with replacement.
        max_patches: Patches of a bag, drawn anew for each epoch; 0 takes all.
        batch_patches: End a batch before it holds more patches than this; 0 does not look.
        seed: Seed of what is drawn.
        rank: Number of this process.
        world_size: Number of processes.
        threads: Threads that read.
        pin_memory: Whether a GPU will fetch the batches.
    """

    def __init__(
        self,
        source: BagSource,
        numbers: Numbers,
        preprocessor: BagPreprocessor,
        *,
        batch_bags: int = 1,
        shuffle: bool = False,
        balanced: bool = False,
        max_patches: int = 0,
        batch_patches: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.source, self.numbers, self.preprocessor = source, numbers, preprocessor
        self.batch_bags, self.shuffle, self.balanced = batch_bags, shuffle, balanced
        self.max_patches, self.batch_patches = max_patches, batch_patches
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.threads, self.pin_memory = threads, pin_memory
        self.epoch = 0
        self.classes = preprocessor.target in ("classes", "ordinal")

    def __len__(self) -> int:
        return len(self._batches(self._order()))

    def __iter__(self) -> Iterator[Bags]:
        batches = self._batches(self._order())
        epoch, self.epoch = self.epoch, self.epoch + 1
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Future[Bags]] = deque()
            for batch in batches:
                waiting.append(pool.submit(self._read, batch, epoch))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def set_epoch(self, epoch: int) -> None:
        """Order and draws of an epoch, for a training that goes on."""
        self.epoch = epoch

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, stream))

    def _order(self) -> Numbers:
        if not self.shuffle:
            return self._own(self.numbers)
        generator = self._generator(self.epoch, 0)
        if not self.balanced:
            return self._own(generator.permutation(self.numbers))
        label = self.source.frame["label"].to_numpy()[self.numbers]
        _, code, count = np.unique(label, return_inverse=True, return_counts=True)
        chance = 1 / count[code]
        drawn = generator.choice(self.numbers, len(self.numbers), p=chance / chance.sum())
        return self._own(drawn)

    def _own(self, order: Numbers) -> Numbers:
        """The part of this process; all have as many, and the rest of a division is left out."""
        if self.world_size == 1:
            return order
        even = len(order) // self.world_size * self.world_size if self.shuffle else len(order)
        return order[self.rank : even : self.world_size]

    def _batches(self, order: Numbers) -> list[Numbers]:
        if not self.batch_patches:
            cuts = np.arange(self.batch_bags, len(order), self.batch_bags)
            return [batch for batch in np.split(order, cuts) if len(batch)]
        batches: list[list[int]] = [[]]
        held = 0
        for number in order.tolist():
            size = self._size(number)
            full = len(batches[-1]) == self.batch_bags or held + size > self.batch_patches
            if batches[-1] and full:
                batches.append([])
                held = 0
            batches[-1].append(number)
            held += size
        return [np.asarray(batch) for batch in batches if batch]

    def _size(self, number: int) -> int:
        size = int(self.source.sizes[number])
        return min(size, self.max_patches) if self.max_patches else size

    def _read(self, batch: Numbers, epoch: int) -> Bags:
        rows = self.source.frame.iloc[batch]
        features = [self._features(int(number), epoch) for number in batch]
        labels = [self.preprocessor.label(value) for value in rows["label"].tolist()]
        events: Sequence[bool] = rows["event"].tolist()
        bags = pack(features, labels, events, batch.tolist(), classes=self.classes)
        return Bags(*(part.pin_memory() for part in bags)) if self.pin_memory else bags

    def _features(self, number: int, epoch: int) -> torch.Tensor:
        rows = None
        size = int(self.source.sizes[number])
        if self.max_patches and size > self.max_patches:
            drawn = self._generator(epoch, 1 + number).choice(size, self.max_patches, replace=False)
            rows = np.sort(drawn).astype(np.int64)
        raw = self.source.read(number, rows)
        return self.preprocessor.features(raw, str(self.source.frame["id"].iloc[number]))
