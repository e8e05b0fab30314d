"""A recording as the network takes it, read by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manyhead.mvpformer.preparing.choice import choose
from manyhead.mvpformer.preparing.filters import ZeroPhase
from manyhead.mvpformer.preparing.montage import Derivation, derive
from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.preparing.probe import Probe, look
from manyhead.mvpformer.preparing.resampling import (
    CROSSINGS,
    CUTOFF,
    BandLimited,
    Linear,
    Resampler,
    ratio,
)
from manyhead.mvpformer.preparing.stretches import Stretch, find_stretches
from manyhead.mvpformer.recording import Recording, RecordingInfo, Signal
from manyhead_core.errors import DataError

# Names in a message; the rest is counted.
SHOWN = 8


class Prepared:
    """A recording after montage, choice of channels, resampling and filters, in this order.

    A sample comes out the same in whatever pieces the recording is read. Memory grows with the
    piece, not with the recording. At both ends, and at gaps, the signal is continued by its mirror
    image. Samples in a gap are 0.

    Attributes:
        info: Of the recording in the file.
        options: What was asked for.
        channels: Names after the montage, in order.
        rate: Samples per second, Hz.
        samples: Samples of each channel at that rate.
        notes: What the user should be told, one line each.

    Args:
        recording: The recording.
        options: What is done to it.

    Raises:
        DataError: No channel or no signal is left, or more channels than the network takes.
    """

    def __init__(self, recording: Recording, options: PrepareOptions | None = None) -> None:
        self._recording = recording
        self.info: RecordingInfo = recording.info
        self.options = options or PrepareOptions()
        self.rate = self.options.rate
        step = ratio(self.info.rate, self.rate)
        self.samples = int(self.info.samples / step)
        bounds = find_stretches(self.info, step)
        if not bounds or not self.info.channels:
            raise DataError(f"{self.info.id}: holds no signal; leave the recording out")
        probe = look(recording, bounds, self.options.seed)
        self._derivation, self._choice = self._decide(probe)
        self.channels = self._derivation.names
        self._filter = ZeroPhase.build(self.options)
        self._resampler: Resampler | None = None
        if step != 1:
            self._resampler = Linear(step) if self.options.linear else BandLimited(step)
        self._stretches = [
            Stretch(self._source, len(self.channels), b, self._resampler, self._filter)
            for b in bounds
        ]

    @property
    def duration(self) -> float:
        """Length in s."""
        return self.samples / self.rate

    @property
    def dropped(self) -> Mapping[str, str]:
        """Channels of the file that are not given to the network, with the reason."""
        return self._dropped

    def read(self, start: int, stop: int) -> Signal:
        """Samples `start` to `stop` at the new rate in µV, `(channels, stop - start)`.

        Args:
            start: First sample, 0 or more.
            stop: Sample after the last, at most `samples`.

        Raises:
            DataError: The file holds something that is no number.
        """
        if not 0 <= start <= stop <= self.samples:
            raise ValueError(f"read {start} to {stop} of {self.samples} samples")
        out = np.zeros((len(self.channels), stop - start), np.float32)
        for stretch in self._stretches:
            lo, hi = max(start, stretch.bounds.start), min(stop, stretch.bounds.stop)
            if lo < hi:
                out[:, lo - start : hi - start] = stretch.read(lo, hi)
        return out

    def close(self) -> None:
        """Let go of the file."""
        self._recording.close()

    def manifest(self) -> dict[str, Any]:
        """Everything that was done, as JSON knows it."""
        return {
            "rate_file_hz": self.info.rate,
            "rate_hz": self.rate,
            "samples": self.samples,
            "resampling": self._resampling(),
            "filter": self._filter.about if self._filter else None,
            "montage": self.options.montage,
            "channels": list(self.channels),
            "choice": self._choice,
            "dropped": dict(self.dropped),
            "flat": list(self._flat),
            "ends": "mirrored",
            "gaps_s": [list(gap) for gap in self.info.gaps],
            "seed": self.options.seed,
            "notes": list(self.notes),
        }

    def _resampling(self) -> dict[str, Any] | None:
        if self._resampler is None:
            return None
        if isinstance(self._resampler, Linear):
            return {"method": "linear"}
        low = min(self.rate, self.info.rate)
        kept = (2 * CUTOFF - 0.5) * low
        about = {"method": "band_limited", "kept_below_hz": kept, "stopped_from_hz": low / 2}
        return about | {"half_length_s": CROSSINGS / low}

    def _decide(self, probe: Probe) -> tuple[Derivation, dict[str, Any]]:
        """Channels that are left, and how they were chosen."""
        names, options = self.info.channels, self.options
        dropped = dict(self.info.dropped)
        use = probe.numbers.copy()
        dropped |= {names[i]: "holds no numbers" for i in np.flatnonzero(~probe.numbers)}
        flat = probe.flat & probe.numbers
        if options.flat == "drop":
            use &= ~flat
            dropped |= {names[i]: f"flat in {probe.about}" for i in np.flatnonzero(flat)}
        montage = derive(options.montage, names, use, flat)
        dropped |= montage.dropped
        self._refuse_nothing(montage.names, dropped)
        pieces = [montage(piece) for piece in probe.pieces]
        chosen, how = choose(self.info.id, montage.names, montage.flat, pieces, options)
        left_out = set(range(len(montage.names))) - set(chosen)
        dropped |= {montage.names[i]: f"not chosen by {options.channels}" for i in sorted(left_out)}
        derivation = montage.chosen(chosen)
        self._dropped = dropped
        self._flat = tuple(np.array(derivation.names)[derivation.flat].tolist())
        self._grids = derivation.grids
        self.notes = (*self.info.notes, *self._remarks(probe))
        return derivation, how | {"looked_at": probe.about}

    def _refuse_nothing(self, left: tuple[str, ...], dropped: Mapping[str, str]) -> None:
        if left:
            return
        reasons = "; ".join(sorted(set(dropped.values())))
        remedy = "leave the recording out"
        if "bipolar" in reasons:
            remedy = "set --montage average, which needs no neighbours"
        elif "flat" in reasons:
            remedy = "set --flat keep or leave the recording out"
        raise DataError(
            f"{self.info.id}: none of its {len(self.info.channels)} channels "
            f"({_list(self.info.channels)}) is left: {reasons}; {remedy}"
        )

    def _remarks(self, probe: Probe) -> list[str]:
        notes = []
        if self._flat:
            notes.append(
                f"{len(self._flat)} flat channels in {probe.about} are kept and say nothing: "
                f"{_list(self._flat)}; --flat drop leaves them out"
            )
        lost = {k: v for k, v in self._dropped.items() if not v.startswith("not chosen")}
        lost = {k: v for k, v in lost.items() if k not in self.info.dropped}
        if lost:
            named = [f"{name} ({reason})" for name, reason in lost.items()]
            notes.append(f"{len(lost)} channels are left out: {_list(named)}")
        if self._grids:
            notes.append(
                f"{_list(self._grids)}: so many contacts are a grid; bipolar pairs "
                "follow the numbers, also from the end of a row to the start of the next"
            )
        return notes

    def _source(self, start: int, stop: int) -> Signal:
        """Samples of the file after the montage."""
        signal = self._recording.read(start, stop)
        for row in self._derivation.needed:
            if not np.isfinite(signal[row]).all():
                sample = start + int(np.flatnonzero(~np.isfinite(signal[row]))[0])
                raise DataError(
                    f"{self.info.id}: channel {self.info.channels[row]} holds no number at "
                    f"{sample / self.info.rate:.3f} s; mark the stretch as a gap or leave the "
                    "channel out with --channels"
                )
        return self._derivation(signal)


def _list(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
