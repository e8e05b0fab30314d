"""When things happen in a simulated recording: seizures, spikes, artefacts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manyhead.mvpformer.recording import Interval
from manyhead.mvpformer.simulate.patients import Profile

SHORTEST, LONGEST = 20.0, 90.0
# Least time between two seizures and between a seizure and an end of the recording, in s.
APART, MARGIN = 180.0, 45.0
# Times are whole numbers of these steps, in s: the model's gains change no more often. Those of
# seizures are coarser, so that tables in milliseconds hold them exactly.
GRID, SEIZURE_GRID = 1 / 32, 1 / 8
# No artefact and no run of spikes begins this close before a seizure, in s.
CLEAR = 10.0


@dataclass(frozen=True)
class Event:
    """Something that is no seizure.

    Args:
        onset: Start in s.
        duration: In s.
        channels: Channels that show it.
        size: How strong it is, as the kind of event understands it.
        kind: `spike`, `burst`, `movement`, `chewing` or `pop`.
    """

    onset: float
    duration: float
    channels: tuple[int, ...]
    size: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One recording before it is drawn.

    Args:
        patient: Whose it is.
        number: Number within the patient, from 0.
        seconds: Length in s.
        seed: Seed of the whole set.
        seizures: In order.
        events: Spikes and artefacts, in order.
    """

    patient: Profile
    number: int
    seconds: int
    seed: int
    seizures: tuple[Interval, ...]
    events: tuple[Event, ...]

    def rng(self, purpose: int) -> np.random.Generator:
        """Random numbers for one purpose, independent of all other draws."""
        return np.random.default_rng((self.seed, purpose, self.patient.number, self.number))


def least_seconds(seizures: int) -> float:
    """Length of a recording in s that holds so many seizures of any duration."""
    return seizures * LONGEST + max(seizures - 1, 0) * APART + 2 * MARGIN


def timeline(patient: Profile, number: int, seconds: int, seizures: int, seed: int) -> Timeline:
    """Recording `number` of a patient.

    Args:
        patient: Whose it is.
        number: From 0.
        seconds: Length in s, at least `least_seconds(seizures)`.
        seizures: How many.
        seed: Seed of the whole set.
    """
    rng = np.random.default_rng((seed, 2, patient.number, number))
    found = _seizures(rng, seconds, seizures)
    events = sorted(
        (event for event in _events(rng, patient, seconds) if _is_clear(event, found)),
        key=lambda event: event.onset,
    )
    return Timeline(
        patient=patient,
        number=number,
        seconds=seconds,
        seed=seed,
        seizures=found,
        events=tuple(events),
    )


def _seizures(rng: np.random.Generator, seconds: int, count: int) -> tuple[Interval, ...]:
    drawn = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), count))
    durations = _grid(drawn, SEIZURE_GRID)
    free = seconds - durations.sum() - max(count - 1, 0) * APART - 2 * MARGIN
    waits = np.sort(rng.uniform(0, max(free, 0), count))
    before = np.concatenate([[0], np.cumsum(durations + APART)[:-1]]) if count else np.zeros(0)
    onsets = _grid(MARGIN + waits + before, SEIZURE_GRID)
    pairs = zip(onsets.tolist(), durations.tolist(), strict=True)
    return tuple(Interval(onset, onset + duration) for onset, duration in pairs)


def _grid(seconds: np.ndarray, step: float) -> np.ndarray:
    return np.floor(seconds / step) * step


def _is_clear(event: Event, seizures: tuple[Interval, ...]) -> bool:
    """Whether an event leaves the seizures alone; pops and movements may fall into them."""
    if event.kind in ("pop", "movement"):
        return True
    end = event.onset + event.duration
    return all(end < s.onset - CLEAR or event.onset > s.offset + CLEAR for s in seizures)


def _events(rng: np.random.Generator, patient: Profile, seconds: int) -> list[Event]:
    hours = seconds / 3600
    channels = np.arange(len(patient.channels))
    reached = channels[np.isfinite(patient.delay)]
    found = []
    for _ in range(rng.poisson(patient.spikes * 60 * hours)):
        some = (*patient.focus, *rng.choice(reached, min(2, len(reached)), replace=False).tolist())
        found.append(_event(rng, seconds, (0.25, 0.5), some, rng.uniform(32, 38), "spike"))
    for _ in range(rng.poisson(patient.bursts * hours)):
        share = rng.choice(reached, rng.integers(1, max(2, len(reached) // 2)), replace=False)
        some = (*patient.focus, *share.tolist())
        found.append(_event(rng, seconds, (1.5, 6), some, rng.uniform(22, 38), "burst"))
    for _ in range(rng.poisson(patient.movements * hours)):
        kind, length = ("chewing", (5, 20)) if rng.random() < 0.3 else ("movement", (1, 8))
        size = float(rng.lognormal(np.log(120), 0.6))
        found.append(_event(rng, seconds, length, tuple(channels.tolist()), size, kind))
    for _ in range(rng.poisson(patient.pops * hours)):
        height = float(rng.lognormal(np.log(600), 0.5) * rng.choice([-1, 1]))
        found.append(_event(rng, seconds, (0.2, 0.8), (int(rng.choice(channels)),), height, "pop"))
    return found


def _event(
    rng: np.random.Generator,
    seconds: int,
    length: tuple[float, float],
    channels: tuple[int, ...],
    size: float,
    kind: str,
) -> Event:
    duration = rng.uniform(*length)
    begin = rng.uniform(0, seconds - duration)
    onset, duration = _grid(np.array([begin, duration]), GRID).tolist()
    return Event(onset, duration, tuple(sorted(set(channels))), float(size), kind)
