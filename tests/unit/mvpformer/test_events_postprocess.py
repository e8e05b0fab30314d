import numpy as np
import pytest

from manyhead.mvpformer.events.postprocess import (
    PostOptions,
    detect,
    marked,
    merged,
    runs,
    smoothed,
)
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError

PLAIN = PostOptions(median=1)


def steps(number: int, stride: float = 5.0, length: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    start = np.arange(number) * stride
    return start, start + length


def test_positive_steps_cover_their_newest_segments() -> None:
    start, stop = steps(8)
    probability = [0.1, 0.9, 0.8, 0.1, 0.1, 0.5, 0.6, 0.2]
    assert detect(probability, start, stop, PLAIN) == [(5.0, 15.0), (30.0, 35.0)]


def test_the_median_drops_lone_steps_and_fills_lone_gaps() -> None:
    start, stop = steps(9)
    probability = [0.1, 0.9, 0.1, 0.1, 0.9, 0.2, 0.9, 0.9, 0.9]
    assert detect(probability, start, stop, PostOptions()) == [(25.0, 45.0)]
    assert detect(probability[::-1], start, stop, PostOptions()) == [(0.0, 20.0)]


def test_the_median_does_not_look_across_a_gap_or_a_missing_decision() -> None:
    start, _ = steps(6)
    values = np.array([0.1, 0.1, 0.9, 0.9, 0.1, 0.1])
    apart = np.r_[start[:3], start[3:] + 100]
    assert smoothed(values, apart, 3).tolist() == values.tolist()
    values[1] = np.nan
    assert smoothed(values, start, 3)[[0, 2, 3]].tolist() == [0.1, 0.9, 0.9]
    assert np.isnan(smoothed(values, start, 3)[1])


@pytest.mark.parametrize("median", [3, 5, 9])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8, 30])
def test_the_window_of_the_median_shrinks_evenly_at_the_ends(median: int, number: int) -> None:
    values = np.random.default_rng(number).random(number)
    found = smoothed(values, np.arange(number) * 5.0, median)
    for k in range(number):
        side = min(median // 2, k, number - 1 - k)
        assert found[k] == np.median(values[k - side : k + side + 1])


def test_no_event_reaches_across_a_gap() -> None:
    start, stop = steps(6)
    shift = np.array([0, 0, 0, 60, 60, 60])
    found = detect(np.full(6, 0.9), start + shift, stop + shift, PLAIN)
    assert found == [(0.0, 15.0), (75.0, 90.0)]


def test_steps_with_and_without_overlap_are_one_event() -> None:
    probability = [0.1, 0.9, 0.9, 0.9, 0.1]
    assert detect(probability, *steps(5, stride=1.0), PLAIN) == [(1.0, 8.0)]
    assert detect(probability, *steps(5, stride=20.0), PLAIN) == [(20.0, 65.0)]


def test_near_events_merge_and_short_ones_go() -> None:
    start, stop = steps(12)
    probability = np.zeros(12)
    probability[[1, 3, 7, 8]] = 0.9
    gap = PostOptions(median=1, merge_s=5.0)
    assert len(detect(probability, start, stop, gap)) == 3
    wider = PostOptions(median=1, merge_s=5.1)
    assert detect(probability, start, stop, wider) == [(5.0, 20.0), (35.0, 45.0)]
    long = PostOptions(median=1, merge_s=5.1, min_s=15.0)
    assert detect(probability, start, stop, long) == [(5.0, 20.0)]


def test_a_probability_of_the_threshold_is_not_positive() -> None:
    start, stop = steps(2)
    assert detect([0.5, 1.0], start, stop, PLAIN) == [(5.0, 10.0)]
    assert detect([0.5, 1.0], start, stop, PostOptions(median=1, threshold=1.0)) == []
    assert detect([], [], [], PLAIN) == []


@pytest.mark.parametrize(("stride", "length"), [(5.0, 5.0), (1.0, 5.0), (12.5, 5.0)])
def test_marked_steps_give_the_events_again(stride: float, length: float) -> None:
    generator = np.random.default_rng(3)
    start, stop = steps(400, stride, length)
    late = start >= start[150]
    start, stop = start + 77 * late, stop + 77 * late
    options = PostOptions(merge_s=2 * stride, min_s=2 * length)
    events = detect(generator.random(400), start, stop, options)
    assert len(events) > 5
    assert runs(start, stop, marked(start, stop, events)) == events


def test_events_are_sorted_and_joined() -> None:
    events = [Interval(50, 60), Interval(0, 30), Interval(10, 20), Interval(31, 40)]
    assert merged(events, 0) == [(0, 30), (31, 40), (50, 60)]
    assert merged(events, 5) == [(0, 40), (50, 60)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"median": 4}, "median: 4 is not an odd number"),
        ({"median": -1}, "median: -1"),
        ({"threshold": 1.5}, r"threshold: 1.5 is no probability"),
        ({"merge_s": -1.0}, "merge_s: -1.0"),
        ({"min_s": float("nan")}, "min_s: nan"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PostOptions(**options)
