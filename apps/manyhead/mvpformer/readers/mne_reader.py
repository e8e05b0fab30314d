"""BrainVision, FIF and EEGLAB files, and the way mne reads samples of all its formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.readers.annotations import Found, Remark, from_remarks
from manyhead.mvpformer.readers.channels import Channel, choose, kind_of
from manyhead.mvpformer.readers.files import Block, FileRecording, merged
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import microvolts
from manyhead.mvpformer.recording import Interval, Recording, RecordingInfo
from manyhead_core.errors import DataError

LOADERS = {
    ".edf": mne.io.read_raw_edf,
    ".bdf": mne.io.read_raw_bdf,
    ".vhdr": mne.io.read_raw_brainvision,
    ".fif": mne.io.read_raw_fif,
    ".set": mne.io.read_raw_eeglab,
}
# Marks after which samples follow that were not taken right after those before.
CUTS = ("new segment", "boundary", "bad boundary", "edge boundary", "edge")
SKIPS = ("bad_acq_skip",)

# Seizures by the length of the recording in s, where something else than the file knows them.
Lookup = Callable[[float], Found]


@dataclass(frozen=True)
class MneFile:
    """How a file is opened.

    Args:
        path: File.
        exclude: Channels of EDF and BDF files that mne shall not see, by its names for them.
    """

    path: Path
    exclude: tuple[str, ...] = ()

    def load(self) -> mne.io.BaseRaw:
        """Open it without reading samples; what mne says about headers is dropped."""
        suffix = self.path.suffix.lower()
        settings: dict[str, Any] = {}
        if suffix in (".edf", ".bdf"):
            settings |= {"stim_channel": None, "infer_types": False}
            settings |= {"exclude": list(self.exclude), "exclude_after_unique": True}
        return LOADERS[suffix](self.path, preload=False, verbose="ERROR", **settings)


class MneRecording(FileRecording):
    """A recording whose samples mne decodes.

    Args:
        info: What is known of it.
        file: How it is opened.
        picks: Numbers of the channels in mne's order.
        factors: µV per unit of mne of each.
        blocks: Where the samples lie.
    """

    def __init__(
        self,
        info: RecordingInfo,
        file: MneFile,
        picks: Sequence[int],
        factors: Sequence[float],
        blocks: Sequence[Block] = (),
    ) -> None:
        super().__init__(info, blocks)
        self.file, self.picks = file, list(picks)
        self.factors = np.asarray(factors, np.float64)[:, None]

    def _open(self, file: int) -> Any:  # noqa: ARG002
        return self.file.load()

    def _stored(self, opened: Any, start: int, stop: int) -> npt.NDArray[Any]:
        with mne.use_log_level("ERROR"):
            return np.asarray(opened[self.picks, start:stop][0] * self.factors)


def pauses(remarks: Sequence[Remark], duration: float) -> tuple[Interval, ...]:
    """Stretches without signal, and cuts as stretches without length, that remarks tell of."""
    found = []
    for onset, length, text in remarks:
        said = text.lower().rstrip("/ ")
        if said.startswith(SKIPS) and length > 0:
            found.append(Interval(max(onset, 0.0), min(onset + length, duration)))
        elif said in CUTS and 0 < onset < duration:
            found.append(Interval(onset, onset))
    return merged(found)


def open_raw(
    source: Source,
    options: ReadOptions,
    table: Sequence[Channel] | None = None,
    lookup: Lookup | None = None,
) -> Recording:
    """A BrainVision, FIF or EEGLAB recording.

    Args:
        source: What was found.
        options: How to read it.
        table: Channels as `channels.tsv` describes them, in the order of the file.
        lookup: Seizures that are known elsewhere; otherwise remarks are searched.

    Raises:
        DataError: A format that is not read, or a damaged file.
    """
    if source.path.suffix.lower() not in LOADERS:
        raise DataError(
            f"{source.id}: files of type {source.path.suffix} are not read; convert it to EDF, "
            "BrainVision or FIF"
        )
    file = MneFile(source.path)
    raw = file.load()
    rate, samples = float(raw.info["sfreq"]), int(raw.n_times)
    chosen = choose(table or described(raw, options))
    remarks = remarks_of(raw)
    found = (
        lookup(samples / rate)
        if lookup
        else from_remarks(remarks, source.id, samples / rate, options.pattern)
    )
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=chosen.names,
        kinds=chosen.kinds,
        rate=rate,
        samples=samples,
        seizures=found.seizures,
        dropped=chosen.dropped,
        gaps=pauses(remarks, samples / rate),
        notes=found.notes,
    )
    factors = [_factor(raw, pick, options.units) for pick in chosen.picks]
    raw.close()
    return MneRecording(info, file, chosen.picks, factors)


def names_and_rate(path: Path) -> tuple[list[str], float]:
    """Channel names and rate of a file that mne reads."""
    raw = MneFile(path).load()
    return list(raw.ch_names), float(raw.info["sfreq"])


def described(raw: mne.io.BaseRaw, options: ReadOptions) -> list[Channel]:
    """Channels with the types that mne gives; those that it calls bad are left out."""
    channels = []
    kinds = raw.get_channel_types()
    for name, kind in zip(raw.ch_names, kinds, strict=True):
        why = "" if options.keep_bad or name not in raw.info["bads"] else "marked bad in the file"
        # Formats without types call everything EEG: the name may know better.
        guess = kind_of(name) if kind == "eeg" else kind.upper()
        channels.append(Channel(name=name, kind=guess, rate=raw.info["sfreq"], why=why))
    return channels


def remarks_of(raw: mne.io.BaseRaw) -> list[Remark]:
    """Annotations with times from the first sample; BrainVision's kinds of marks are cut off."""
    return [
        Remark(
            float(mark["onset"]) - float(raw.first_time),
            # A mark of at most one sample is a moment, not a stretch.
            float(mark["duration"]) if mark["duration"] > 1.5 / raw.info["sfreq"] else 0.0,
            str(mark["description"]).removeprefix("Comment/").strip(),
        )
        for mark in raw.annotations
    ]


def _factor(raw: mne.io.BaseRaw, pick: int, units: str) -> float:
    """µV per unit of mne, which believes in the unit that the file names."""
    if units == "auto":
        return 1e6
    own = microvolts(str(raw._orig_units.get(raw.ch_names[pick], "V") or "V")) or 1e6
    return 1e6 / own * (microvolts(units) or 1.0)
