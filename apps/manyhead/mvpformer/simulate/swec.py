"""Simulated recordings in the HDF5 layout of the long-term SWEC release."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np

from manyhead.mvpformer.patients import REPEATED
from manyhead.mvpformer.recording import Interval
from manyhead.mvpformer.simulate.layout import Layout
from manyhead.mvpformer.simulate.neural_mass import Potential
from manyhead.mvpformer.simulate.timeline import Timeline
from manyhead_core.evaluate.files import replace

# Two digits; folders that would count as a second recording of an earlier patient are left out.
FOLDERS = [number for number in range(1, 100) if number not in REPEATED]
SEIZURE = np.dtype([("onsets", "<f8"), ("offsets", "<f8")])
CHUNK_S = 10


class SwecLayout(Layout):
    """One folder and one file for each patient; several recordings are parts of it.

    Args:
        root: Folder of the data set.
        rate: Samples per second, Hz.
        recordings: Recordings of a patient. With more than one the file is virtual over the parts.
    """

    def __init__(self, root: Path, rate: int, recordings: int):
        super().__init__(root, rate)
        self.recordings = recordings

    def name(self, plan: Timeline) -> str:
        """Folder, with the part if there are several."""
        folder = f"ID{FOLDERS[plan.patient.number]:02d}"
        return f"{folder}_part_{plan.number + 1}" if self.recordings > 1 else folder

    def _file(self, plan: Timeline) -> Path:
        if self.recordings > 1:
            return self._total(plan).with_name(f"{self.name(plan)}.h5")
        return self._total(plan)

    def _total(self, plan: Timeline) -> Path:
        folder = f"ID{FOLDERS[plan.patient.number]:02d}"
        return self.root / folder / f"{folder}_total.h5"

    def finished(self, plan: Timeline) -> bool:
        """Whether the file is there."""
        return self._file(plan).is_file()

    def write(self, plan: Timeline, signal: Potential) -> None:
        """Write a recording, with its seizures unless it is a part."""
        chunk = (len(signal), min(signal.shape[1], CHUNK_S * self.rate))

        def fill(path: Path) -> None:
            with h5py.File(path, "w") as file:
                file.attrs["sampling_rate"] = float(self.rate)
                file.create_dataset(
                    "data/ieeg", data=signal, chunks=chunk, compression="gzip",
                    compression_opts=1, shuffle=True,
                )  # fmt: skip
                # Times in a part would be taken for times in the whole.
                if self.recordings == 1:
                    file["data/seizures"] = seizure_table([plan])

        replace(self._file(plan), fill)

    def complete(self, plans: Sequence[Timeline]) -> None:
        """Write the virtual files."""
        if self.recordings == 1:
            return
        for _, group in groupby(plans, key=lambda plan: plan.patient.number):
            parts = list(group)
            replace(self._total(parts[0]), partial(self._index, parts))

    def _index(self, parts: Sequence[Timeline], path: Path) -> None:
        channels = len(parts[0].patient.channels)
        ends = np.cumsum([0, *(part.seconds * self.rate for part in parts)])
        whole = h5py.VirtualLayout((channels, int(ends[-1])), np.float32)
        for part, start, stop in zip(parts, ends, ends[1:], strict=False):
            shape = (channels, int(stop - start))
            source = h5py.VirtualSource(self._file(part).name, "data/ieeg", shape, np.float32)
            whole[:, int(start) : int(stop)] = source
        with h5py.File(path, "w") as file:
            file.attrs["sampling_rate"] = float(self.rate)
            file.create_virtual_dataset("data/ieeg", whole, fillvalue=0)
            file["data/seizures"] = seizure_table(parts)


def seizure_table(parts: Sequence[Timeline]) -> np.ndarray:
    """Seizures of recordings that follow each other, in s from the start of the first.

    Args:
        parts: Recordings in order.
    """
    starts = np.cumsum([0, *(part.seconds for part in parts)]).tolist()
    found = [
        Interval(start + seizure.onset, start + seizure.offset)
        for start, part in zip(starts, parts, strict=False)
        for seizure in part.seizures
    ]
    return np.array(found, dtype=SEIZURE) if found else np.zeros(0, SEIZURE)
