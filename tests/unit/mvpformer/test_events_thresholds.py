import math

import numpy as np
import pytest

from manyhead.mvpformer.events.postprocess import PostOptions, detect
from manyhead.mvpformer.events.szcore import score_events
from manyhead.mvpformer.events.thresholds import Scored, choose_threshold
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError, DataError

START = np.arange(720) * 5.0
STOP = START + 5
PLAIN = PostOptions(median=1)


def recording(levels: dict[float, float], seizures: list[Interval]) -> Scored:
    """Half an hour apart: a stretch of 20 s at each time with the probability given."""
    probability = np.full(720, 0.01)
    for time, level in levels.items():
        probability[int(time // 5) : int(time // 5) + 4] = level
    return Scored(
        probability=probability, start=START, stop=STOP, seizures=seizures, duration=3600.0
    )


SEIZURES = [Interval(300, 320), Interval(1500, 1520)]
# The false alarm at 0.5 lies between both seizures.
MIXED = recording({300: 0.8, 1500: 0.3, 2700: 0.5}, SEIZURES)
CLEAR = recording({300: 0.8, 1500: 0.6, 2700: 0.2}, SEIZURES)


def test_the_best_f1_is_in_the_middle_of_its_plateau() -> None:
    found = choose_threshold([CLEAR], PLAIN)
    assert found.score.f1 == 1
    assert 0.25 < found.threshold < 0.55
    assert "best event F1 on 1 validation recordings (30 s before" in found.reason


def test_of_equal_event_scores_the_better_seconds_win() -> None:
    """Within the tolerance before a seizure an early alarm costs no event, but seconds."""
    early = recording({280: 0.4, 300: 0.8, 1480: 0.4, 1500: 0.8}, SEIZURES)
    found = choose_threshold([early], PLAIN)
    assert found.score.f1 == 1
    assert 0.4 <= found.threshold < 0.8


def test_what_is_reported_is_what_the_threshold_gives() -> None:
    found = choose_threshold([MIXED, CLEAR], PLAIN)
    options = PostOptions(median=1, threshold=found.threshold)
    tallies = [
        score_events(r.seizures, detect(r.probability, r.start, r.stop, options), 3600).tally
        for r in (MIXED, CLEAR)
    ]
    assert [sum(values) for values in zip(*tallies, strict=True)] == list(found.score.tally)
    assert found.score.f1 == np.nanmax(found.tried[:, 1])


def test_the_limit_of_false_alarms_is_kept() -> None:
    strict = choose_threshold([MIXED], PLAIN, alarms_per_day=0)
    assert 0.5 <= strict.threshold < 0.8
    assert (strict.score.sensitivity, strict.score.alarms_per_day) == (0.5, 0)
    loose = choose_threshold([MIXED], PLAIN, alarms_per_day=24)
    assert loose.threshold < 0.3
    assert (loose.score.sensitivity, loose.score.alarms_per_day) == (1, 24)


def test_a_limit_that_nothing_meets_silences_the_detector() -> None:
    bad = recording({300: 0.2, 2700: 1.0}, SEIZURES[:1])
    found = choose_threshold([bad], PLAIN, alarms_per_day=1)
    assert found.score.tally.alarms == 0
    assert found.score.sensitivity == 0


def test_without_seizures_the_threshold_stays() -> None:
    found = choose_threshold([recording({300: 0.8}, [])], PostOptions(threshold=0.7))
    assert found.threshold == 0.7
    assert math.isnan(found.score.sensitivity)
    assert "no seizure" in found.reason


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match="alarms_per_day: -1"):
        choose_threshold([CLEAR], alarms_per_day=-1)
    with pytest.raises(DataError, match="no validation recordings"):
        choose_threshold([])
    empty = Scored(
        probability=np.full(3, np.nan), start=START[:3], stop=STOP[:3], seizures=SEIZURES,
        duration=15,
    )  # fmt: skip
    with pytest.raises(DataError, match="no decision"):
        choose_threshold([empty])
