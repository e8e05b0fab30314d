"""Neural mass model of Wendling et al. that makes background, spikes, fast and rhythmic activity.

F. Wendling, F. Bartolomei, J.J. Bellanger, P. Chauvel, Epileptic fast activity can be explained by
a model of impaired GABAergic dendritic inhibition, Eur J Neurosci 15:1499-1508 (2002). Pyramidal
cells with excitatory, slow (dendritic) and fast (somatic) inhibitory interneurons. The synaptic
gains A, B and G move a population between the kinds of activity seen before and during a seizure.

Of its ten equations (states y0 to y9) eight remain: y2 and y4 filter the same firing rate and
differ by the factor C4 (M. Desroches, O. Faugeras, M. Krupa, Slow-fast transitions to seizure
states in the Wendling-Chauvel neural mass model, Opera Med Physiol 2015).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Potential = npt.NDArray[np.float32]

# Standard values of the paper: rates of the synapses and e0 in 1/s, potentials in mV.
EXCITATORY_RATE, SLOW_RATE, FAST_RATE = 100.0, 50.0, 500.0
CONTACTS = 135.0
HALF_MAXIMUM, MIDDLE, STEEPNESS = 2.5, 6.0, 0.56
# Firing rate that arrives from elsewhere, in 1/s: mean, and deviation of steps of `DRIVE_STEP` s.
DRIVE_MEAN, DRIVE_DEVIATION, DRIVE_STEP = 90.0, 30.0, 1 / 512
# Steps between two values of the gains.
TICK = 16
# What a population needs to forget how it began, in s.
WARM_UP = 4.0

_C1, _C2, _C3, _C4, _C5, _C6, _C7 = CONTACTS * np.array([1, 0.8, 0.25, 0.25, 0.3, 0.1, 0.8])
# The four synapses, in this order: pyramidal cells onto interneurons (y0), excitatory ones onto
# pyramidal cells (y1), slow inhibition (y4 of the paper, y2 = C4 y4), fast inhibition (y3).
_RATES = np.array([EXCITATORY_RATE, EXCITATORY_RATE, SLOW_RATE, FAST_RATE])
# Potentials that the four firing rates follow, made of the four synaptic potentials.
_INPUT = np.array([[0, 1, -_C4, -1], [_C1, 0, 0, 0], [_C3, 0, 0, 0], [_C5, 0, -_C6, 0]])
_STRENGTH = np.array([[1.0], [_C2], [1.0], [_C7]])
_GAIN = (0, 0, 1, 2)


def propagator(step: float) -> Array:
    """Exact step of `y'' = -2 a y' - a² y + u` while `u` stays the same, `(2, 3, 4, 1)`.

    First axis: new y, new y'. Second: what to multiply with y, y' and u. Third: synapse.

    Args:
        step: Length of the step in s.
    """
    a = _RATES[:, None]
    decay = np.exp(-a * step)
    new = (decay * (1 + a * step), decay * step, (1 - decay * (1 + a * step)) / a**2)
    slope = (-decay * a**2 * step, decay * (1 - a * step), decay * step)
    return np.array([new, slope])


def integrate(
    gains: Array, drive: Potential, step: float, coupling: Array, cuts: list[int] | None = None
) -> Potential:
    """Potential of the pyramidal cells in mV, `(channels, samples)`.

    The firing rates in the middle of a step are extrapolated from the last two (Adams-Bashforth)
    and held, and the synapses are then solved exactly. Stretches between cuts are computed side
    by side, each from `WARM_UP` seconds before it: driven by the same input a population forgets
    its beginning, so that cuts outside seizures do not show.

    Args:
        gains: A, B and G in mV, one row for every `TICK` samples, `(ticks, 3, channels)`.
        drive: Deviation of the arriving firing rate from its mean in 1/s, `(samples, channels)`.
        step: Time between samples in s.
        coupling: Contacts of the pyramidal cells of channel j onto those of channel i, `[i, j]`.
        cuts: Samples where a stretch begins, without the first; none for one stretch.
    """
    samples, channels = drive.shape
    edges = [0, *(cuts or []), samples]
    warm = -(-round(WARM_UP / step) // TICK) * TICK
    begins = np.array(edges[:-1]) - warm
    steps = max(np.diff(edges)) + warm
    found = np.empty((channels, samples), np.float32)
    stretches = _run(gains, drive, propagator(step), coupling, begins, steps)
    for done, block in stretches:
        _place(block, done, found, begins, edges)
    return found


def _place(block: Array, done: int, found: Potential, begins: Array, edges: list[int]) -> None:
    """Copy the part of a tick `(TICK, stretches, channels)` that belongs to each stretch."""
    for k, begin in enumerate(begins):
        first = max(begin + done, edges[k])
        last = min(begin + done + len(block), edges[k + 1])
        if first < last:
            at = first - begin - done
            found[:, first:last] = block[at : at + last - first, k].T


def _run(
    gains: Array, drive: Potential, solve: Array, coupling: Array, begins: Array, steps: int
) -> Iterator[tuple[int, Array]]:
    """Potentials tick by tick for all stretches: step of the first, `(TICK, stretches, channels)`.

    The state has one row for each synapse and one column for each channel of each stretch.
    """
    stretches, channels = len(begins), drive.shape[1]
    y, slope, rate, before, arriving, work, more = np.zeros((7, 4, stretches * channels))
    sent = rate[0].reshape(stretches, channels)
    contacts = np.ascontiguousarray(coupling.T)
    (from_y, from_slope, from_input), (slope_y, slope_slope, slope_input) = solve
    for done in range(0, steps, TICK):
        now = gains[np.clip((begins + done) // TICK, 0, len(gains) - 1)]
        gain = now.transpose(1, 0, 2)[list(_GAIN)].reshape(4, -1) * _RATES[:, None]
        rows = np.clip(begins + done + np.arange(TICK)[:, None], 0, len(drive) - 1)
        outside = drive[rows].reshape(TICK, -1) + DRIVE_MEAN
        block = np.empty((TICK, stretches, channels))
        for k in range(TICK):
            np.matmul(_INPUT, y, out=rate)
            block[k] = sent
            np.subtract(MIDDLE, rate, out=rate)
            rate *= STEEPNESS
            np.exp(rate, out=rate)
            rate += 1
            np.divide(2 * HALF_MAXIMUM, rate, out=rate)
            # The rates of the middle of the step: held ones come late and feed fast rhythms.
            np.multiply(rate, 0.5, out=work)
            rate += work
            rate -= before
            before, work = work, before
            np.multiply(rate, _STRENGTH, out=arriving)
            arriving[1] += outside[k]
            arriving[1] += (sent @ contacts).ravel()
            arriving *= gain
            np.multiply(slope_y, y, out=work)
            np.multiply(slope_slope, slope, out=more)
            work += more
            y *= from_y
            slope *= from_slope
            y += slope
            np.multiply(from_input, arriving, out=more)
            y += more
            arriving *= slope_input
            np.add(work, arriving, out=slope)
        yield done, block
