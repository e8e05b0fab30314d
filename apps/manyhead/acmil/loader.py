"""Packed batches: bags are read by threads ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch

from manyhead.acmil.bags import Bags, pack
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.sources import BagSource
from manyhead_core.data.ahead import AheadLoader, Reading

Numbers = npt.NDArray[np.int64]
# Epochs that the number of batches is taken from where nobody says how many there will be.
MANY_EPOCHS = 100


class BagLoader(AheadLoader[Bags]):
    """Batches of some bags of a source; iterating again gives the next epoch.

    What is drawn follows from seed and epoch alone. While training, iterating goes on where the
    last iteration was cut off, which is how a resumed run meets the batches it would have met.

    Args:
        source: The bags.
        numbers: Which of them.
        preprocessor: Scales.
        batch_bags: Bags of a batch.
        shuffle: Draw the order anew for each epoch.
        balanced: Draw as many bags of each class, with replacement.
        max_patches: Patches of a bag, drawn anew for each epoch; 0 takes all.
        batch_patches: End a batch before it holds more patches than this; 0 does not look.
        epochs: How many there will be; with `batch_patches` it decides on the number of batches.
        **reading: Seed, processes and threads; see `AheadLoader`.

    Raises:
        DataError: There are fewer training batches than processes.
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
        epochs: int = MANY_EPOCHS,
        **reading: Unpack[Reading],
    ) -> None:
        super().__init__(training=shuffle, **reading)
        self.source, self.numbers, self.preprocessor = source, numbers, preprocessor
        self.batch_bags, self.shuffle, self.balanced = batch_bags, shuffle, balanced
        self.max_patches, self.batch_patches = max_patches, batch_patches
        self.classes = preprocessor.target in ("classes", "ordinal")
        # Lightning asks once for the length of all epochs, so it must be the same for all.
        count = max(len(self._cut(self._order(epoch))) for epoch in self._sampled(epochs))
        self.plan(count, "data.batch_bags")

    def _sampled(self, epochs: int) -> range:
        return range(max(1, epochs) if self.shuffle and self.batch_patches else 1)

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, stream))

    def _order(self, epoch: int) -> Numbers:
        if not self.shuffle:
            return self.numbers
        generator = self._generator(epoch, 0)
        if not self.balanced:
            return generator.permutation(self.numbers)
        label = self.source.frame["label"].to_numpy()[self.numbers]
        _, code, count = np.unique(label, return_inverse=True, return_counts=True)
        chance = 1 / count[code]
        return generator.choice(self.numbers, len(self.numbers), p=chance / chance.sum())

    def batches(self, epoch: int) -> list[Numbers]:
        """Bags of each batch of an epoch, over all processes.

        Args:
            epoch: From 0.
        """
        batches = self._cut(self._order(epoch))
        while len(batches) < self.count:
            self._split_largest(batches)
        return batches

    def _cut(self, order: Numbers) -> list[Numbers]:
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

    @staticmethod
    def _split_largest(batches: list[Numbers]) -> None:
        """Make two batches of the one with the most bags."""
        place = max(range(len(batches)), key=lambda k: len(batches[k]))
        batches[place : place + 1] = np.array_split(batches[place], 2)

    def _size(self, number: int) -> int:
        size = int(self.source.sizes[number])
        return min(size, self.max_patches) if self.max_patches else size

    def read(self, batch: Numbers, epoch: int, place: int) -> Bags:  # noqa: ARG002
        """Bags, packed.

        Args:
            batch: Their numbers.
            epoch: From 0; it decides on the patches.
            place: Number of the batch in the epoch.
        """
        rows = self.source.frame.iloc[batch]
        features = [self._features(int(number), epoch) for number in batch]
        labels = [self.preprocessor.label(value) for value in rows["label"].tolist()]
        events: Sequence[bool] = rows["event"].tolist()
        return pack(features, labels, events, batch.tolist(), classes=self.classes)

    def _features(self, number: int, epoch: int) -> torch.Tensor:
        rows = None
        size = int(self.source.sizes[number])
        if self.max_patches and size > self.max_patches:
            drawn = self._generator(epoch, 1 + number).choice(size, self.max_patches, replace=False)
            rows = np.sort(drawn).astype(np.int64)
        raw = self.source.read(number, rows)
        return self.preprocessor.features(raw, str(self.source.frame["id"].iloc[number]))
