"""What a writer of simulated recordings does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from manyhead.mvpformer.simulate.neural_mass import Potential
from manyhead.mvpformer.simulate.timeline import Timeline

NAME = "Simulated intracranial EEG"
ABOUT = (
    "Simulated by `manyhead mvpformer simulate`: no person was recorded. A neural mass model "
    "(Wendling et al., Eur J Neurosci 15:1499-1508, 2002) with background, mains hum and "
    "artefacts. It says nothing about clinical performance."
)


class Layout(ABC):
    """Files of a data set in one format.

    Args:
        root: Folder of the data set.
        rate: Samples per second, Hz.
    """

    def __init__(self, root: Path, rate: int):
        self.root, self.rate = root, rate

    @abstractmethod
    def name(self, plan: Timeline) -> str:
        """Name of a recording without the folder and the end."""

    @abstractmethod
    def finished(self, plan: Timeline) -> bool:
        """Whether a recording has been written."""

    @abstractmethod
    def write(self, plan: Timeline, signal: Potential) -> None:
        """Write a recording; each file appears under its name only when it is whole.

        Args:
            plan: What the recording is.
            signal: In µV, `(channels, samples)`.
        """

    @abstractmethod
    def complete(self, plans: Sequence[Timeline]) -> None:
        """Write what belongs to the whole set, once all recordings are there.

        Args:
            plans: All recordings, those of a patient next to each other.
        """
