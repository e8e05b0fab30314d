"""How the synaptic gains of the neural mass model move through a recording.

The kinds of activity are those of Wendling et al. (2002): background, sporadic spikes, sustained
spikes, rhythmic activity near 10 Hz, and low-voltage fast activity, which comes when slow
inhibition is lost while the fast one is not. The values were found by running the model.
"""

from __future__ import annotations

import numpy as np

from manyhead.mvpformer.recording import Interval
from manyhead.mvpformer.simulate.neural_mass import Array
from manyhead.mvpformer.simulate.timeline import GRID, Timeline

# A, B, G in mV.
BACKGROUND = (5.0, 50.0, 15.0)
AFTER = (5.0, 62.0, 15.0)
FAST = (5.0, 2.0, 46.0)
RHYTHMIC = (5.0, 15.0, 3.0)
SLOWING = (5.0, 19.0, 10.0)
SUSTAINED = (5.0, 27.0, 15.0)
SPARSE = (5.0, 36.0, 15.0)
# What a seizure goes through: share of its duration at which a stage is reached, gains.
COURSES = {
    "fast": ((0, FAST), (0.28, FAST), (0.36, RHYTHMIC), (0.62, SLOWING), (1, SUSTAINED)),
    "spikes": ((0, SPARSE), (0.2, SUSTAINED), (0.55, SLOWING), (0.75, RHYTHMIC), (1, SUSTAINED)),
    "rhythmic": ((0, RHYTHMIC), (0.4, RHYTHMIC), (0.6, SLOWING), (0.85, SUSTAINED), (1, SPARSE)),
}
# How long a channel takes into a seizure and out of it, and until inhibition is back, in s.
RISE, FALL, RECOVERY = 1.0, 0.25, 25.0
# A channel that would be recruited later than this before the end stays out, in s.
LATEST = 5.0


def gains(plan: Timeline) -> Array:
    """Gains in mV, `(ticks, 3, channels)`, a tick being `GRID` seconds.

    Args:
        plan: Recording.
    """
    ticks, channels = round(plan.seconds / GRID), len(plan.patient.channels)
    found = np.empty((ticks, 3, channels))
    found[:] = np.array(BACKGROUND)[:, None]
    for event in plan.events:
        if event.kind in ("spike", "burst"):
            rows = slice(round(event.onset / GRID), round((event.onset + event.duration) / GRID))
            found[rows, 1, list(event.channels)] = event.size
    for number, seizure in enumerate(plan.seizures):
        rng = plan.rng(100 + number)
        for channel, start in enumerate(recruited(plan, seizure)):
            varied = rng.lognormal(0, [0.0, 0.06, 0.06])
            if np.isfinite(start):
                _seize(found[:, :, channel], plan, seizure, start, varied)
    return found


def recruited(plan: Timeline, seizure: Interval) -> list[float]:
    """When each channel joins a seizure, in s from the start; infinite for those that do not.

    Args:
        plan: Recording.
        seizure: One of its seizures.
    """
    starts = [seizure.onset + delay for delay in plan.patient.delay]
    return [s if s <= seizure.offset - LATEST else float("inf") for s in starts]


def _seize(channel: Array, plan: Timeline, seizure: Interval, start: float, varied: Array) -> None:
    """Put a seizure into the gains `(ticks, 3)` of a channel."""
    first, last = round(start / GRID), round(seizure.offset / GRID)
    end = min(len(channel), round((seizure.offset + RECOVERY) / GRID))
    time = np.arange(first, last) * GRID
    share = (time - seizure.onset) / (seizure.offset - seizure.onset)
    course = COURSES[plan.patient.pattern]
    # Recruited channels begin as the focus did; they do not skip its first stage.
    late = (start - seizure.onset) / (seizure.offset - seizure.onset)
    share = (share - late) / (1 - late)
    blend = np.minimum((time - start + GRID) / RISE, 1)
    after = np.arange(last, end) * GRID - seizure.offset
    for k in range(3):
        stage = varied[k] * np.interp(share, [s for s, _ in course], [g[k] for _, g in course])
        channel[first:last, k] = blend * stage + (1 - blend) * channel[first:last, k]
        levels = [channel[last - 1, k], AFTER[k], BACKGROUND[k]]
        channel[last:end, k] = np.interp(after, [0, FALL, RECOVERY], levels)
