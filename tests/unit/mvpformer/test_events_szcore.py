import math

import numpy as np
import pytest
from timescoring.annotations import Annotation
from timescoring.scoring import EventScoring, SampleScoring

from manyhead.mvpformer.events.szcore import (
    ScoreOptions,
    pieces,
    sample_mask,
    score_events,
    score_samples,
    tidy,
)
from manyhead_core.errors import ConfigError, DataError

HOUR = 3600.0


def test_a_long_seizure_counts_as_its_pieces() -> None:
    assert pieces([(100, 900)], HOUR) == [(100, 400), (400, 700), (700, 900)]
    found = score_events([(100, 900)], [(420, 430)], HOUR)
    # Extended by the tolerance, the first piece reaches to 460 s.
    assert found.tally[:3] == (3, 2, 0)


def test_events_merge_below_the_gap_and_before_they_are_split() -> None:
    assert pieces([(0, 100), (189.9, 250)], HOUR) == [(0, 250)]
    assert pieces([(0, 100), (190, 250)], HOUR) == [(0, 100), (190, 250)]
    assert pieces([(0, 250), (300, 400)], HOUR) == [(0, 300), (300, 400)]


@pytest.mark.parametrize(
    ("alarm", "hits", "alarms"),
    [
        ((960, 970), 0, 1),
        ((960, 971), 1, 0),
        ((1159, 1170), 1, 0),
        ((1160, 1170), 0, 1),
        ((1000, 1100), 1, 0),
    ],
)
def test_the_tolerance_ends_where_it_should(
    alarm: tuple[float, float], hits: int, alarms: int
) -> None:
    found = score_events([(1000, 1100)], [alarm], HOUR)
    assert found.tally == (1, hits, alarms, HOUR)


def test_without_tolerance_a_detection_has_to_overlap() -> None:
    strict = ScoreOptions(before=0, after=0)
    assert score_events([(1000, 1100)], [(985, 999)], HOUR, strict).tally.hits == 0
    assert score_events([(1000, 1100)], [(985, 1001)], HOUR, strict).tally.hits == 1


def test_the_share_that_has_to_be_covered() -> None:
    half = ScoreOptions(before=0, after=0, overlap=0.5)
    assert score_events([(0, 100)], [(0, 50)], HOUR, half).tally[1:3] == (0, 1)
    assert score_events([(0, 100)], [(0, 51)], HOUR, half).tally[1:3] == (1, 0)


def test_metrics_of_a_mixed_recording() -> None:
    found = score_events([(100, 160), (1000, 1060)], [(110, 150), (2000, 2030)], 2 * HOUR)
    assert found.tally == (2, 1, 1, 2 * HOUR)
    assert (found.sensitivity, found.precision, found.f1) == (0.5, 0.5, 0.5)
    assert (found.alarms_per_hour, found.alarms_per_day) == (0.5, 12.0)


def test_undefined_metrics_are_nan_and_never_0() -> None:
    silent = score_events([], [], HOUR)
    assert all(map(math.isnan, (silent.sensitivity, silent.precision, silent.f1)))
    assert silent.alarms_per_day == 0
    alarm = score_events([], [(10, 20)], HOUR)
    assert math.isnan(alarm.sensitivity)
    assert (alarm.precision, alarm.f1, alarm.alarms_per_day) == (0, 0, 24)
    missed = score_events([(10, 20)], [], HOUR)
    assert (missed.sensitivity, missed.f1) == (0, 0)
    assert math.isnan(missed.precision)


def test_seconds_are_compared_without_tolerance() -> None:
    found = score_samples([(10, 20)], [(15, 30)], 100)
    assert found.tally == (10, 5, 10, 100)
    assert score_samples([], [], 100).tally == (0, 0, 0, 100)
    assert sample_mask([(10, 20)], 100).sum() == 10


def test_events_outside_of_the_recording_are_cut() -> None:
    assert tidy([(-20, -10), (-5, 5), (95, 120), (200, 210)], 100) == [(0, 5), (95, 100)]
    # A negative time would count from the end of the package's mask.
    assert score_events([(-20, -10)], [], 100).tally.true == 0
    assert score_events([], [(-20, -10), (150, 160)], 100).tally.alarms == 0


def test_events_come_in_any_order_and_may_overlap() -> None:
    plain = ScoreOptions(merge=0)
    assert pieces([(50, 80), (0, 30), (20, 40)], 100, plain) == [(0, 40), (50, 80)]


@pytest.mark.parametrize("at", [0.0, 50.0, 50.04, 99.99, 100.0 - 1e-9])
def test_an_event_too_short_for_the_grid_is_no_false_alarm_in_a_seizure(at: float) -> None:
    found = score_events([(40, 100)], [(at, at + 0.01)], 100, ScoreOptions(before=0, after=0))
    inside = at > 40
    assert found.tally[1:3] == (int(inside), int(not inside))
    alone = score_events([(at, at)], [], 100, ScoreOptions(before=0, after=0))
    assert alone.tally.true == 1


def test_times_are_rounded_to_a_tenth_of_a_second() -> None:
    none = ScoreOptions(before=0, after=0)
    assert score_events([(10, 20)], [(20.04, 25)], 100, none).tally.hits == 0
    assert score_events([(10, 20)], [(19.94, 25)], 100, none).tally.hits == 1
    assert score_events([(10, 20)], [(19.96, 25)], 100, none).tally.hits == 0


def test_impossible_input_is_refused() -> None:
    with pytest.raises(DataError, match="30 s to 20 s is no stretch of time"):
        score_events([(30, 20)], [], 100)
    with pytest.raises(DataError, match="nan"):
        score_events([(np.nan, 20)], [], 100)
    with pytest.raises(DataError, match=r"duration: 0.01 s is too short"):
        score_samples([], [], 0.01)
    with pytest.raises(ConfigError, match="before: -1"):
        ScoreOptions(before=-1)
    with pytest.raises(ConfigError, match=r"overlap: 1"):
        ScoreOptions(overlap=1)
    with pytest.raises(ConfigError, match="longest: 0"):
        ScoreOptions(longest=0)


def test_the_tolerance_is_told_in_words() -> None:
    assert "30 s before to 60 s after a seizure, any overlap" in ScoreOptions().describe()
    assert "more than 20% of it covered" in ScoreOptions(overlap=0.2).describe()


def events(generator: np.random.Generator, number: int) -> list[tuple[float, float]]:
    times = np.sort(np.round(generator.random(2 * number) * HOUR, 1))
    return [(float(a), float(b)) for a, b in times.reshape(-1, 2) if b > a]


@pytest.mark.parametrize("seed", range(12))
def test_scores_are_those_of_the_package_on_tidy_events(seed: int) -> None:
    generator = np.random.default_rng(seed)
    true, found = events(generator, seed), events(generator, 2 * seed)
    pair = [Annotation(list(part), 10, 36_000) for part in (true, found)]
    for theirs, ours in (
        (EventScoring(*pair), score_events(true, found, HOUR)),
        (SampleScoring(*pair), score_samples(true, found, HOUR)),
    ):
        assert ours.tally == (theirs.refTrue, theirs.tp, theirs.fp, HOUR)
        for name in ("sensitivity", "precision", "f1"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), nan_ok=True)
        assert ours.alarms_per_day == pytest.approx(theirs.fpRate)
