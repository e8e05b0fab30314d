"""Which windows make a batch: of one patient, evenly or balanced, by seed and epoch alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from manyhead.mvpformer.tracks import Numbers
from manyhead_core.errors import ConfigError

# Streams of random numbers of an epoch.
ORDER, CHANNELS = 0, 1


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How training batches are drawn.

    Args:
        batch_windows: Windows of a batch.
        patients_per_batch: Patients of a batch, each with as many windows.
        balanced: Draw as many windows with seizures as without, with replacement.
        batches_per_epoch: Batches of an epoch; 0 takes as many as the windows fill.

    Raises:
        ConfigError: A number is too small, or they do not fit each other.
    """

    batch_windows: int = 8
    patients_per_batch: int = 1
    balanced: bool = False
    batches_per_epoch: int = 0

    def __post_init__(self) -> None:
        least = {"batch_windows": 1, "patients_per_batch": 1, "batches_per_epoch": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(
                    f"data.{name}: must be at least {bound}, got {getattr(self, name)}"
                )
        if self.batch_windows % self.patients_per_batch:
            raise ConfigError(
                f"data.patients_per_batch: {self.patients_per_batch} does not divide "
                f"data.batch_windows {self.batch_windows}; change one of them"
            )


class Sampler:
    """Training batches of an epoch; every epoch has as many.

    Args:
        numbers: Windows to draw from.
        label: Of each, `(windows,)`.
        patient: Number of the patient of each, `(windows,)`.
        options: How.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        numbers: Numbers,
        label: Numbers,
        patient: Numbers,
        options: SamplingOptions,
        seed: int = 0,
    ) -> None:
        self.numbers, self.patient, self.options, self.seed = numbers, patient, options, seed
        _, code, count = np.unique(label, return_inverse=True, return_counts=True)
        chance = 1.0 / count[code]
        self.chance = chance / chance.sum()
        self.count = options.batches_per_epoch or len(self._pass(0, 0))

    def epoch(self, epoch: int) -> list[Numbers]:
        """Batches of an epoch, in order.

        Args:
            epoch: Its number.
        """
        found: list[Numbers] = []
        turn = 0
        while len(found) < self.count:
            found += self._pass(epoch, turn)
            turn += 1
        return found[: self.count]

    def _pass(self, epoch: int, turn: int) -> list[Numbers]:
        """Once as many windows as there are."""
        generator = np.random.default_rng((self.seed, epoch, ORDER, turn))
        total = len(self.numbers)
        if self.options.balanced:
            drawn = generator.choice(total, total, p=self.chance)
        else:
            drawn = generator.permutation(total)
        batches = self._mixed(self._by_patient(drawn), generator)
        return [self.numbers[batches[k]] for k in generator.permutation(len(batches))]

    def _by_patient(self, drawn: Numbers) -> list[list[Numbers]]:
        """What each patient adds to its batches, in shares as even as can be."""
        share = self.options.batch_windows // self.options.patients_per_batch
        own = self.patient[drawn]
        pools = [drawn[own == code] for code in np.unique(own)]
        return [np.array_split(pool, math.ceil(len(pool) / share)) for pool in pools]

    def _mixed(self, pools: list[list[Numbers]], generator: np.random.Generator) -> list[Numbers]:
        """Batches with as many patients as wanted while so many have windows left."""
        many = self.options.patients_per_batch
        batches: list[Numbers] = []
        while pools:
            order = generator.permutation(len(pools)).tolist()
            for place in range(0, len(order), many):
                chosen = [pools[k].pop() for k in order[place : place + many]]
                batches.append(np.concatenate(chosen))
            pools = [pool for pool in pools if pool]
        return batches


def in_order(numbers: Numbers, track: Numbers, size: int) -> list[Numbers]:
    """Batches for evaluation: neighbouring windows of one recording each.

    Args:
        numbers: Windows, rising.
        track: Number of the recording of each, `(windows,)`.
        size: Most windows of a batch.
    """
    pools = np.split(numbers, np.flatnonzero(np.diff(track)) + 1)
    cut = [np.split(pool, np.arange(size, len(pool), size)) for pool in pools if len(pool)]
    return [batch for batches in cut for batch in batches]
