"""False alarms per hour and per day."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from manyhead.mvpformer.events.steps import ratio

Array = npt.NDArray[Any]

HOUR, DAY = 3600.0, 86_400.0


def alarms_per_day(alarms: npt.ArrayLike, seconds: npt.ArrayLike) -> Array:
    """Detections without a match in 24 h, elementwise; NaN without a recording.

    All recorded time counts, that of seizures too.

    Args:
        alarms: Detections without a match.
        seconds: Recorded time, s.
    """
    return ratio(alarms, seconds) * DAY


def alarms_per_hour(alarms: npt.ArrayLike, seconds: npt.ArrayLike) -> Array:
    """The same in an hour."""
    return ratio(alarms, seconds) * HOUR
