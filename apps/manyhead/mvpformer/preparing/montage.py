"""What each channel is measured against."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.preparing.options import Montage
from manyhead.mvpformer.recording import Signal

# Vendors put the kind before a name and the reference behind it: `EEG A1-Ref`, `POL A'1`.
_DECORATION = re.compile(r"^(?:EEG|SEEG|ECOG|IEEG|POL)[\s_]+|[\s_-]*(?:REF|AVG)$", re.IGNORECASE)
_CONTACT = re.compile(r"^(?P<shaft>[^\W\d][\w' .]*?)(?P<between>[ _-]?)(?P<number>\d+)$")
# Prefixes of files that only number their channels: neighbours may be of different shafts.
_NUMBERED = {"CH", "CHAN", "CHANNEL", "ECOG", "EEG", "ELECTRODE", "IEEG", "SEEG"}
# Depth electrodes have at most 18 contacts; what has more is a grid.
LONGEST_SHAFT = 18


@dataclass(frozen=True)
class Derivation:
    """Channels after the montage.

    Args:
        kind: Of the montage.
        names: Of the channels.
        plus: Index of the channel of the file, `(channels,)`.
        minus: Index of the channel that is taken off in a bipolar montage, `(channels,)`.
        common: Channels whose average or median is taken off.
        flat: Whether a channel stays as it is because it is flat, `(channels,)`.
        dropped: Channels of the file that are left out, with the reason.
        grids: Shafts with so many contacts that they are grids.
    """

    kind: Montage
    names: tuple[str, ...]
    plus: npt.NDArray[np.int64]
    minus: npt.NDArray[np.int64]
    common: npt.NDArray[np.int64]
    flat: npt.NDArray[np.bool_]
    dropped: Mapping[str, str]
    grids: tuple[str, ...] = ()

    def chosen(self, index: Sequence[int]) -> Derivation:
        """Some of the channels; the reference stays that of all.

        Args:
            index: Of the channels, in the order wanted.
        """
        rows = np.asarray(index, np.int64)
        names = tuple(self.names[i] for i in rows)
        minus = self.minus[rows] if self.kind == "bipolar" else self.minus
        return replace(self, names=names, plus=self.plus[rows], minus=minus, flat=self.flat[rows])

    @property
    def needed(self) -> npt.NDArray[np.int64]:
        """Channels of the file that take part."""
        return np.unique(np.concatenate([self.plus, self.minus, self.common]))

    def __call__(self, signal: Signal) -> Signal:
        """Channels after the montage, `(channels, samples)`.

        Args:
            signal: All channels of the file, µV.
        """
        own = signal[self.plus]
        if self.kind == "none":
            return np.asarray(own, np.float32)
        if self.kind == "bipolar":
            return np.asarray(own - signal[self.minus], np.float32)
        middle = np.mean if self.kind == "average" else np.median
        reference = middle(signal[self.common].astype(np.float64), axis=0)
        return np.where(self.flat[:, None], own, own - reference).astype(np.float32)


def derive(
    kind: Montage,
    names: Sequence[str],
    use: npt.NDArray[np.bool_],
    flat: npt.NDArray[np.bool_],
) -> Derivation:
    """Set up a montage.

    A flat channel is no part of a reference, and none is taken off it: it would carry nothing but
    the reference.

    Args:
        kind: Of the montage.
        names: Of the channels of the file.
        use: Channels that are left, `(channels,)`.
        flat: Channels without signal, `(channels,)`.
    """
    rows = np.flatnonzero(use).astype(np.int64)
    none = np.zeros(0, np.int64)
    if kind == "bipolar":
        return _bipolar(names, rows, flat)
    common = np.flatnonzero(use & ~flat).astype(np.int64)
    if kind in ("average", "median") and not len(common):
        common = rows
    chosen = tuple(names[int(row)] for row in rows)
    return Derivation(kind, chosen, rows, none, common, flat[rows], {})


def contact(name: str) -> tuple[str, int] | None:
    """Shaft and number of a contact: `A'1` is contact 1 of `A'`; None if the name tells neither.

    Args:
        name: Of the channel, such as `A1`, `LA01` or `EEG A1-Ref`.
    """
    found = _CONTACT.match(plain_name(name))
    # `A1-2` is a difference already, `TP-4` a contact.
    if not found or (found["between"] == "-" and re.search(r"\d", found["shaft"])):
        return None
    shaft = found["shaft"].upper()
    return None if shaft in _NUMBERED else (shaft, int(found["number"]))


def plain_name(name: str) -> str:
    """A channel's name without the kind before it and the reference behind it."""
    return _DECORATION.sub("", name.strip()).strip()


def _bipolar(
    names: Sequence[str], rows: npt.NDArray[np.int64], flat: npt.NDArray[np.bool_]
) -> Derivation:
    dropped: dict[str, str] = {}
    shafts: dict[str, dict[int, int]] = defaultdict(dict)
    for row in rows.tolist():
        place = contact(names[row])
        if place is None:
            dropped[names[row]] = "bipolar: its name has no shaft and contact number"
        elif flat[row]:
            dropped[names[row]] = "bipolar: flat, it would show its neighbour"
        elif place[1] in shafts[place[0]]:
            dropped[names[row]] = "bipolar: a second contact of that number"
        else:
            shafts[place[0]][place[1]] = row
    pairs = [
        (row, contacts[number + 1])
        for contacts in shafts.values()
        for number, row in sorted(contacts.items())
        if number + 1 in contacts
    ]
    paired = {row for pair in pairs for row in pair}
    alone = (row for contacts in shafts.values() for row in contacts.values())
    dropped |= {
        names[row]: "bipolar: no neighbouring contact" for row in alone if row not in paired
    }
    plus, minus = np.array(pairs, np.int64).reshape(-1, 2).T
    labels = tuple(f"{plain_name(names[a])}-{plain_name(names[b])}" for a, b in pairs)
    grids = tuple(name for name, contacts in shafts.items() if len(contacts) > LONGEST_SHAFT)
    none, live = np.zeros(0, np.int64), np.zeros(len(pairs), bool)
    return Derivation("bipolar", labels, plus, minus, none, live, dropped, grids)
