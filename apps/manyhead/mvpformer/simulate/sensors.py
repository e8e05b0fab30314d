"""What an electrode records beside the neural masses: background, mains, artefacts."""

from __future__ import annotations

import numpy as np
from scipy import fft

from manyhead.mvpformer.simulate.neural_mass import Array, Potential
from manyhead.mvpformer.simulate.timeline import Event, Timeline

# Power below this frequency in Hz does not grow further: the amplifier takes it away.
LOWEST = 0.7
# Width of the background rhythm's peak in Hz.
RHYTHM_WIDTH = 1.2
# How much of the background all channels share.
SHARED = 0.4
# Background after a seizure, as a share, and how long it takes to come back, in s.
SUPPRESSED, RETURN = 0.45, 40.0
# Amplitude of muscle activity for 1 µV of the slow part of a movement.
MUSCLE = 0.25


def background(plan: Timeline, rate: int) -> Potential:
    """Coloured noise with a rhythm, slow drift and suppression after seizures, in µV.

    Args:
        plan: Recording.
        rate: Samples per second, Hz.

    Returns:
        `(channels, samples)`.
    """
    patient, rng = plan.patient, plan.rng(3)
    samples = plan.seconds * rate
    size = fft.next_fast_len(samples, real=True)
    shape = _spectrum(fft.rfftfreq(size, 1 / rate), plan)
    found = np.empty((len(patient.channels), samples), np.float32)
    common = rng.standard_normal(size, dtype=np.float32)
    drift = _drift(plan, rng, rate)
    for channel, amplitude in enumerate(patient.background):
        own = rng.standard_normal(size, dtype=np.float32)
        mixed = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
        made = fft.irfft(fft.rfft(mixed) * shape, size)[:samples]
        np.multiply(made, drift * np.float32(amplitude), out=found[channel])
    _suppress(found, plan, rate)
    return found


def _spectrum(frequency: Array, plan: Timeline) -> Potential:
    """Amplitude by frequency that turns white noise of variance 1 into background of variance 1."""
    patient = plan.patient
    slope = np.maximum(frequency, LOWEST) ** -patient.exponent
    slope[frequency < LOWEST] *= (frequency[frequency < LOWEST] / LOWEST) ** 2
    peak = np.exp(-0.5 * ((frequency - patient.rhythm) / RHYTHM_WIDTH) ** 2)
    share = patient.rhythm_share
    power = (1 - share) * slope / slope.mean() + share * peak / peak.mean()
    amplitude: Potential = np.sqrt(power).astype(np.float32)
    return amplitude


def _drift(plan: Timeline, rng: np.random.Generator, rate: int) -> Potential:
    """Slow change of the amplitude of the background, as with vigilance."""
    knots = np.arange(-30, plan.seconds + 61, 30)
    level = np.exp(0.25 * rng.standard_normal(len(knots)))
    return np.interp(np.arange(plan.seconds * rate) / rate, knots, level).astype(np.float32)


def _suppress(found: Potential, plan: Timeline, rate: int) -> None:
    reached = [k for k, delay in enumerate(plan.patient.delay) if np.isfinite(delay)]
    for seizure in plan.seizures:
        first = round(seizure.offset * rate)
        last = min(found.shape[1], first + round(RETURN * rate))
        level = np.linspace(SUPPRESSED, 1, round(RETURN * rate), dtype=np.float32)
        found[reached, first:last] *= level[: last - first]


def add_line_noise(signal: Potential, plan: Timeline, rate: int) -> None:
    """Add mains hum with a third harmonic and a frequency that wanders a little.

    Args:
        signal: In µV, `(channels, samples)`; changed in place.
        plan: Recording.
        rate: Samples per second, Hz.
    """
    rng = plan.rng(4)
    time = np.arange(signal.shape[1]) / rate
    wander = 0.02 * np.sin(2 * np.pi * time / 47)
    turn = 2 * np.pi * plan.patient.line * (time + wander / plan.patient.line)
    for harmonic, share in ((1, 1.0), (3, 0.3)):
        if harmonic * plan.patient.line >= rate / 2:
            continue
        sine = np.sin(harmonic * turn).astype(np.float32)
        cosine = np.cos(harmonic * turn).astype(np.float32)
        for channel, amplitude in enumerate(plan.patient.line_noise):
            angle = rng.uniform(0, 2 * np.pi)
            signal[channel] += np.float32(share * amplitude * np.cos(angle)) * sine
            signal[channel] += np.float32(share * amplitude * np.sin(angle)) * cosine


def add_artefacts(signal: Potential, plan: Timeline, rate: int) -> None:
    """Add movements, chewing and electrode pops.

    Args:
        signal: In µV, `(channels, samples)`; changed in place.
        plan: Recording.
        rate: Samples per second, Hz.
    """
    rng = plan.rng(5)
    for event in plan.events:
        first = round(event.onset * rate)
        if event.kind == "pop":
            _pop(signal[event.channels[0], first:], event, rate)
        elif event.kind in ("movement", "chewing"):
            piece = signal[:, first : first + round(event.duration * rate)]
            piece += _movement(rng, event, piece.shape, rate)


def _pop(rest: Potential, event: Event, rate: int) -> None:
    """A jump that decays; it lasts five time constants."""
    length = min(len(rest), round(5 * event.duration * rate))
    decay = np.exp(-np.arange(length) / (event.duration * rate))
    rest[:length] += (event.size * decay).astype(np.float32)


def _movement(
    rng: np.random.Generator, event: Event, shape: tuple[int, ...], rate: int
) -> Potential:
    """Slow swings and muscle activity that all channels see, each in its own strength."""
    channels, samples = shape
    time = np.arange(samples) / rate
    window = np.sin(np.pi * (np.arange(samples) + 0.5) / samples) ** 0.5
    swing = sum(np.sin(2 * np.pi * (f * time + rng.random())) for f in rng.uniform(0.6, 3.5, 4))
    slow = event.size * window * swing / 2**0.5
    muscle = MUSCLE * event.size * window
    if event.kind == "chewing":
        beat = np.maximum(np.sin(2 * np.pi * rng.uniform(1.2, 2.2) * time), 0) ** 2
        slow, muscle = 0.3 * slow * beat, 2 * muscle * beat
    noise = rng.standard_normal((channels + 1, samples))
    # The difference of neighbouring samples leaves little below 20 Hz, as in muscle.
    noise = np.diff(noise, axis=1, prepend=0) / 2**0.5
    strength = rng.lognormal(-0.4, 0.5, (channels, 1))
    found: Potential = strength * (slow + muscle * (noise[:1] + noise[1:]) / 2**0.5)
    return found.astype(np.float32)
