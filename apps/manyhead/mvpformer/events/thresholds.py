"""The threshold that suits validation patients best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.events.postprocess import PostOptions, detect, smoothed
from manyhead.mvpformer.events.szcore import (
    SZCORE,
    EventScore,
    ScoreOptions,
    score_events,
    score_samples,
)
from manyhead.mvpformer.events.tallies import add
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError, DataError

Array = npt.NDArray[Any]

CANDIDATES = 60
DEFAULT = PostOptions()


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Probabilities of a validation recording and what is true.

    Args:
        probability: Of a seizure in each step, `(steps,)`.
        start: Start of the newest segment of each step in s, rising, `(steps,)`.
        stop: Its end in s, `(steps,)`.
        seizures: True seizures in s.
        duration: Length of the recording in s.
    """

    probability: Array
    start: Array
    stop: Array
    seizures: Sequence[Interval]
    duration: float


@dataclass(frozen=True)
class Chosen:
    """A threshold and what it gives on the recordings it was chosen on.

    Args:
        threshold: Steps above it are positive.
        score: Events of all recordings together at this threshold.
        reason: Why it was chosen, for the manifest.
        tried: Threshold, event F1, sensitivity and false alarms per day of each candidate, in
            rising order, `(candidates, 4)`.
    """

    threshold: float
    score: EventScore
    reason: str
    tried: Array


def choose_threshold(
    recordings: Sequence[Scored],
    options: PostOptions = DEFAULT,
    *,
    alarms_per_day: float | None = None,
    scoring: ScoreOptions = SZCORE,
    candidates: int = CANDIDATES,
) -> Chosen:
    """Threshold of the best event F1, or the most sensitive one with few enough false alarms.

    The counts of all recordings are added. The tolerance of events makes many candidates equally
    good, early ones too; of these the best by F1 of seconds is taken, and of neighbours that are
    still equal the middle one, since the edge of a plateau is what the next patient falls off.
    Without a true seizure the threshold of `options` stays: there is nothing to choose it by.

    Args:
        recordings: Of validation patients; never of those that are tested.
        options: Post-processing; its threshold is not used.
        alarms_per_day: Most false alarms in 24 h; None takes the best F1.
        scoring: When a detection counts.
        candidates: Thresholds that are tried.

    Raises:
        ConfigError: `alarms_per_day` is negative.
        DataError: There are no recordings.
    """
    if alarms_per_day is not None and not alarms_per_day >= 0:
        raise ConfigError(f"alarms_per_day: {alarms_per_day} is not 0 or more")
    if not recordings:
        raise DataError("threshold: no validation recordings to choose it on")
    if not any(recording.seizures for recording in recordings):
        return _kept(recordings, options, scoring)
    recordings = [_smooth(recording, options.median) for recording in recordings]
    options = dataclasses.replace(options, median=1)
    levels = _levels(recordings, candidates)
    scores = [_score(recordings, options, level, scoring) for level in levels]
    tried = np.array(
        [(t, s.f1, s.sensitivity, s.alarms_per_day) for t, s in zip(levels, scores, strict=True)]
    )
    good = _best_f1(tried) if alarms_per_day is None else _most_sensitive(tried, alarms_per_day)
    seconds = np.full(len(levels), -1.0)
    seconds[good] = [_seconds_f1(recordings, options, level) for level in levels[good]]
    best = _middle(seconds >= seconds.max() - 1e-12)
    wanted = (
        "best event F1"
        if alarms_per_day is None
        else (f"most sensitive with at most {alarms_per_day:g} false alarms a day")
    )
    reason = f"{wanted} on {len(recordings)} validation recordings ({scoring.describe()})"
    return Chosen(float(levels[best]), scores[best], reason, tried)


def _kept(recordings: Sequence[Scored], options: PostOptions, scoring: ScoreOptions) -> Chosen:
    score = _score(recordings, options, options.threshold, scoring)
    row = (options.threshold, score.f1, score.sensitivity, score.alarms_per_day)
    reason = "not chosen: the validation recordings have no seizure"
    return Chosen(options.threshold, score, reason, np.array([row]))


def _smooth(recording: Scored, median: int) -> Scored:
    start = np.asarray(recording.start, np.float64)
    return dataclasses.replace(
        recording, probability=smoothed(recording.probability, start, median)
    )


def _levels(recordings: Sequence[Scored], number: int) -> Array:
    """Thresholds spread over the smoothed probabilities, denser where seizures are, and 1."""
    values = np.concatenate([recording.probability for recording in recordings])
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError("threshold: the validation recordings have no decision")
    # Most steps hold no seizure: equal shares of them would leave the upper end empty.
    shares = 1 - np.geomspace(1 / max(len(values), 2), 1, max(number // 2, 2))
    spread = np.r_[np.quantile(values, shares), np.linspace(0, 1, max(number - number // 2, 2))]
    return np.unique(np.r_[np.clip(spread, 0, 1), 1.0])


def _score(
    recordings: Sequence[Scored], options: PostOptions, threshold: float, scoring: ScoreOptions
) -> EventScore:
    used = dataclasses.replace(options, threshold=float(threshold))
    return EventScore(
        add(
            score_events(
                r.seizures, detect(r.probability, r.start, r.stop, used), r.duration, scoring
            ).tally
            for r in recordings
        )
    )


def _seconds_f1(recordings: Sequence[Scored], options: PostOptions, threshold: float) -> float:
    used = dataclasses.replace(options, threshold=float(threshold))
    tallies = [
        score_samples(r.seizures, detect(r.probability, r.start, r.stop, used), r.duration).tally
        for r in recordings
    ]
    found = EventScore(add(tallies)).f1
    return 0.0 if np.isnan(found) else found


def _best_f1(tried: Array) -> npt.NDArray[np.bool_]:
    f1 = np.nan_to_num(tried[:, 1], nan=-1.0)
    best: npt.NDArray[np.bool_] = f1 >= f1.max() - 1e-12
    return best


def _most_sensitive(tried: Array, limit: float) -> npt.NDArray[np.bool_]:
    # At the threshold 1 nothing is positive, so one candidate always qualifies.
    allowed = tried[:, 3] <= limit + 1e-9
    sensitivity = np.where(allowed, tried[:, 2], -1.0)
    best: npt.NDArray[np.bool_] = sensitivity >= sensitivity.max() - 1e-12
    fewest = tried[best, 3].min()
    best &= tried[:, 3] <= fewest + 1e-9
    return best


def _middle(good: npt.NDArray[np.bool_]) -> int:
    """Middle of the longest run of good candidates; the later one of equals."""
    padded = np.diff(np.r_[0, good.astype(int), 0])
    begins, ends = np.flatnonzero(padded == 1), np.flatnonzero(padded == -1)
    longest = len(begins) - 1 - int(np.argmax((ends - begins)[::-1]))
    return int((begins[longest] + ends[longest] - 1) // 2)
