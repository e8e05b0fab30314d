"""Which channels of a file are brain signals, and why the others are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("SEEG", "ECOG", "EEG", "DBS")
# Names that hospital systems give to what is not brain signal, where no table says it.
OTHERS = re.compile(
    r"(?i)^\W*(ecg|ekg|emg|eog|loc|roc|resp|airflow|thor|abdo|spo2|sao2|pleth|pulse|pr|hr|"
    r"etco2|temp|gsr|photic|dc\d*|trig(ger)?|status|stim?|event|mark(er)?|mic|bp\d*|osat|tal|"
    r"annotations?|\$.*|-+)(?![a-z])"
)
PREFIX = re.compile(r"(?i)^(seeg|ecog|eeg|dbs)[\s_-]")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A channel as the file or its table describes it.

    Args:
        name: As written.
        kind: Type as in BIDS, or empty where nobody says.
        unit: Physical unit, or empty.
        rate: Samples per second, Hz.
        why: Reason to leave it out that is known already, or empty.
    """

    name: str
    kind: str = ""
    unit: str = ""
    rate: float = 0.0
    why: str = ""


class Chosen(NamedTuple):
    """Channels that are kept.

    Args:
        picks: Their numbers in the file.
        names: Unique names.
        kinds: Types, or empty where no type is known.
        rate: Of all of them, Hz.
        dropped: Others, with reasons.
    """

    picks: list[int]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    rate: float
    dropped: dict[str, str]


def kind_of(name: str) -> str:
    """Type that a name betrays, or empty: `MISC` for what is surely no brain signal."""
    prefix = PREFIX.match(name)
    if prefix:
        rest = name[prefix.end() :]
        return "MISC" if OTHERS.match(rest) else prefix[1].upper()
    return "MISC" if OTHERS.match(name) else ""


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names; the second of a name gets ` (2)` and so on, an empty one its number."""
    taken, found = set(names), list[str]()
    for number, name in enumerate(names, start=1):
        candidate, copy = name or str(number), 1
        while candidate in found or (copy > 1 and candidate in taken):
            copy += 1
            candidate = f"{name or number} ({copy})"
        found.append(candidate)
    return tuple(found)


def choose(channels: Sequence[Channel], names: Sequence[str] | None = None) -> Chosen:
    """Keep brain signals of one rate.

    Args:
        channels: All of the file.
        names: Unique names in place of those in the file.
    """
    names = names or unique([channel.name for channel in channels])
    dropped: dict[str, str] = {}
    kept: list[int] = []
    for number, channel in enumerate(channels):
        why = channel.why or _foreign(channel)
        if why:
            dropped[names[number]] = why
        else:
            kept.append(number)
    rates = Counter(round(channels[number].rate, 6) for number in kept)
    # Of equally frequent rates the higher one.
    rate = max(rates, key=lambda rate: (rates[rate], rate), default=0.0)
    for number in kept:
        if round(channels[number].rate, 6) != rate:
            own = channels[number].rate
            dropped[names[number]] = f"sampled at {own:g} Hz, the others at {rate:g} Hz"
    kept = [number for number in kept if names[number] not in dropped]
    kinds = tuple(channels[number].kind.upper() for number in kept)
    exact = channels[kept[0]].rate if kept else 0.0
    named = tuple(names[number] for number in kept)
    return Chosen(kept, named, kinds if any(kinds) else (), exact, dropped)


def _foreign(channel: Channel) -> str:
    kind = (channel.kind or kind_of(channel.name)).upper()
    return "" if not kind or kind in KINDS else f"type {kind}, no brain signal"
