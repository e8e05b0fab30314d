"""The signal of a simulated recording, from the neural masses to the amplifier."""

from __future__ import annotations

from math import gcd

import numpy as np
from scipy import signal as filters

from manyhead.mvpformer.simulate.gains import gains
from manyhead.mvpformer.simulate.neural_mass import (
    DRIVE_DEVIATION,
    DRIVE_STEP,
    TICK,
    WARM_UP,
    Array,
    Potential,
    integrate,
)
from manyhead.mvpformer.simulate.patients import SHAFT
from manyhead.mvpformer.simulate.sensors import add_artefacts, add_line_noise, background
from manyhead.mvpformer.simulate.timeline import GRID, Timeline

# The neural masses run at this rate, Hz, whatever the rate of the recording.
MODEL_RATE = round(1 / DRIVE_STEP)
# What a contact sees of the neighbours on its shaft and of all others.
NEAR, FAR = 0.25, 0.02
# The amplifier: high-pass in Hz, range and resolution in µV (16 bit).
HIGH_PASS, RANGE, RESOLUTION = 0.5, 4096.0, 0.125
# Stretches of a recording that are computed side by side are at least this long, in s.
STRETCH = 60.0


def draw(plan: Timeline, rate: int) -> Potential:
    """Signal in µV, `(channels, seconds * rate)`, in steps of `RESOLUTION`.

    Args:
        plan: Recording.
        rate: Samples per second, Hz.
    """
    potential = _sources(plan)
    if rate != MODEL_RATE:
        common = gcd(rate, MODEL_RATE)
        potential = filters.resample_poly(
            potential, rate // common, MODEL_RATE // common, axis=1, padtype="line"
        )
    found = _mixed(potential, plan)
    high_pass = filters.butter(2, HIGH_PASS, "highpass", fs=rate, output="sos")
    passed = filters.sosfilt(high_pass, found, axis=1)
    found = background(plan, rate)
    found += passed
    add_line_noise(found, plan, rate)
    add_artefacts(found, plan, rate)
    if plan.patient.dead >= 0:
        found[plan.patient.dead] = 0
    found /= RESOLUTION
    np.rint(found, out=found)
    top = RANGE / RESOLUTION
    np.clip(found, -top, top - 1, out=found)
    found *= RESOLUTION
    return found


def _sources(plan: Timeline) -> Potential:
    """Potentials of the neural masses in mV, `(channels, samples)` at `MODEL_RATE`.

    Faster patients take longer steps of the same equations; the drive keeps its density.
    """
    channels, tempo = len(plan.patient.channels), plan.patient.tempo
    shape = (plan.seconds * MODEL_RATE, channels)
    drive = plan.rng(6).standard_normal(shape, dtype=np.float32)
    drive *= np.float32(DRIVE_DEVIATION / tempo**0.5)
    coupling = plan.patient.coupling * neighbours(channels)
    return integrate(gains(plan), drive, tempo * DRIVE_STEP, coupling, cuts(plan))


def neighbours(channels: int) -> Array:
    """1 where two contacts are next to each other on a shaft, else 0, `(channels, channels)`."""
    number = np.arange(channels)
    beside = np.abs(number[:, None] - number) == 1
    adjacent: Array = (beside & (number[:, None] // SHAFT == number // SHAFT)).astype(float)
    return adjacent


def cuts(plan: Timeline) -> list[int]:
    """Samples at which the neural masses may be computed anew: never in or just after a seizure.

    Args:
        plan: Recording.
    """
    found: list[int] = []
    at = STRETCH
    warm = 2 * WARM_UP / plan.patient.tempo
    while at < plan.seconds - STRETCH / 2:
        for seizure in plan.seizures:
            if seizure.onset < at < seizure.offset + warm:
                at = seizure.offset + warm
        found.append(round(at / GRID) * TICK)
        at += STRETCH
    return [cut for cut in found if cut < plan.seconds * MODEL_RATE]


def _mixed(potential: Potential, plan: Timeline) -> Potential:
    """Potentials as contacts see them in µV: also those of other populations."""
    channels = len(potential)
    seen = np.eye(channels) + NEAR * neighbours(channels)
    seen += FAR * (seen == 0)
    found = np.asarray(plan.patient.scale)[:, None] * seen
    rest = np.median(potential[:, :: MODEL_RATE // 4], axis=1, keepdims=True)
    mixed: Potential = found.astype(np.float32) @ (potential - rest)
    return mixed
