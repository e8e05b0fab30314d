"""Simulated patients: what stays the same in all recordings of one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PATTERNS = ("fast", "spikes", "rhythmic")
SITES = {"site-a": 50.0, "site-b": 60.0, "site-c": 50.0}
SHAFT = 8
# Share of the patients with a disconnected channel.
DEAD_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One patient.

    Args:
        number: Number from 0.
        site: Hospital.
        kind: `SEEG` or `ECOG`.
        channels: Names in order.
        pattern: How seizures begin: `fast` (low-voltage fast activity), `spikes` or `rhythmic`.
        tempo: How much faster than in the published model everything is.
        focus: Channels of the seizure onset zone.
        delay: Time from onset until a channel is recruited in s; infinite if never, by channel.
        scale: µV recorded for a mV of potential, by channel.
        coupling: Contacts onto the neighbour on the same shaft.
        background: Amplitude of the background in µV (root mean square), by channel.
        exponent: The power of the background falls as 1 / frequency to this.
        rhythm: Frequency of the background rhythm in Hz.
        rhythm_share: Its share of the background's power.
        line: Mains frequency in Hz.
        line_noise: Its amplitude in µV, by channel.
        spikes: Interictal spikes per minute.
        bursts: Interictal runs of spikes per hour.
        movements: Movement artefacts per hour.
        pops: Electrode pops per hour.
        dead: Channel that is disconnected; -1 if none.
    """

    number: int
    site: str
    kind: str
    channels: tuple[str, ...]
    pattern: str
    tempo: float
    focus: tuple[int, ...]
    delay: tuple[float, ...]
    scale: tuple[float, ...]
    coupling: float
    background: tuple[float, ...]
    exponent: float
    rhythm: float
    rhythm_share: float
    line: float
    line_noise: tuple[float, ...]
    spikes: float
    bursts: float
    movements: float
    pops: float
    dead: int


def profile(number: int, channels: int, seed: int) -> Profile:
    """Patient `number`, the same whatever the number of patients.

    Args:
        number: From 0.
        channels: Number of channels.
        seed: Seed of the whole set.
    """
    rng = np.random.default_rng((seed, 1, number))
    kind = str(rng.choice(["SEEG", "ECOG"], p=[0.7, 0.3]))
    focus, delay = _spread(rng, channels)
    site = list(SITES)[number // len(PATTERNS) % len(SITES)]
    dead = int(rng.integers(channels)) if rng.random() < DEAD_SHARE else -1
    return Profile(
        number=number,
        site=site,
        kind=kind,
        channels=names(channels, "G" if kind == "ECOG" else ""),
        # Every three patients have all patterns, so that few of them do not miss one.
        pattern=PATTERNS[(number + seed) % len(PATTERNS)],
        tempo=float(rng.uniform(0.85, 1.2)),
        focus=focus,
        delay=delay,
        scale=_about(rng, rng.lognormal(np.log(15), 0.25), 0.25, channels),
        coupling=float(rng.uniform(2, 8)),
        background=_about(rng, rng.lognormal(np.log(35), 0.25), 0.2, channels),
        exponent=float(rng.uniform(1.2, 2.2)),
        rhythm=float(rng.uniform(5.5, 11)),
        rhythm_share=float(rng.uniform(0.05, 0.35)),
        line=SITES[site],
        line_noise=_about(rng, rng.lognormal(np.log(1.5), 0.6), 0.6, channels),
        spikes=float(rng.lognormal(np.log(5), 0.6)),
        bursts=float(rng.uniform(6, 40)),
        movements=float(rng.uniform(4, 24)),
        pops=float(rng.uniform(2, 20)),
        # A disconnected focus would leave seizures without a visible onset.
        dead=dead if dead not in focus else -1,
    )


def names(channels: int, prefix: str = "") -> tuple[str, ...]:
    """Names of contacts, eight on each shaft or row: `A1` to `A8`, `B1` ...

    Args:
        channels: Number of channels.
        prefix: What comes before the letter.
    """
    letters = [chr(ord("A") + k) for k in range(26)]
    shafts = [*letters, *(a + b for a in letters for b in letters)]
    return tuple(f"{prefix}{shafts[k // SHAFT]}{k % SHAFT + 1}" for k in range(channels))


def _spread(rng: np.random.Generator, channels: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Channels of the onset zone, and how long it takes to reach each channel in s."""
    size = max(1, min(channels, round(float(rng.uniform(0.08, 0.25)) * channels)))
    first = int(rng.integers(channels - size + 1))
    focus = tuple(range(first, first + size))
    reach = max(size, round(float(rng.uniform(0.35, 0.9)) * channels))
    near = np.abs(np.arange(channels) - (first + (size - 1) / 2)) + rng.uniform(0, 4, channels)
    near[list(focus)] = -1
    order = np.argsort(near, kind="stable")
    delay = np.full(channels, np.inf)
    delay[order[size:reach]] = np.sort(rng.uniform(1.5, 20, reach - size))
    delay[list(focus)] = rng.uniform(0, 0.8, size)
    delay[first + int(rng.integers(size))] = 0
    return focus, tuple(delay.tolist())


def _about(rng: np.random.Generator, middle: float, spread: float, count: int) -> tuple[float, ...]:
    """Values around `middle`, one for each channel."""
    return tuple((middle * rng.lognormal(0, spread, count)).tolist())
