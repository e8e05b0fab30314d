"""Windows: all that fit, none across a gap, labels of the newest segment."""

from __future__ import annotations

import numpy as np
import pytest

from manyhead.mvpformer.recording import Interval
from manyhead.mvpformer.windows import WindowOptions, index_windows, stretches
from manyhead_core.errors import ConfigError

SMALL = WindowOptions(num_segments=4, segment_seconds=5, stride_seconds=5, padding="none")
PADDED = WindowOptions(num_segments=4, segment_seconds=5, stride_seconds=5)
SEIZURE = [Interval(31.0, 42.0)]


def test_every_window_that_fits_is_yielded() -> None:
    assert len(index_windows(589.99, [], [], WindowOptions(padding="none"))) == 93
    assert index_windows(40.0, [], [], SMALL).start.tolist() == [0, 5, 10, 15, 20]
    assert index_windows(39.99, [], [], SMALL).start.tolist() == [0, 5, 10, 15]
    assert len(index_windows(19.9, [], [], SMALL)) == 0


def test_a_length_that_rounding_made_too_short_still_holds_its_window() -> None:
    options = WindowOptions(num_segments=3, segment_seconds=0.1, stride_seconds=0.1, padding="none")
    assert len(index_windows(0.3, [], [], options)) == 1
    assert len(index_windows(0.7, [], [], options)) == 5


def test_the_label_is_of_the_newest_segment_alone() -> None:
    windows = index_windows(60.0, SEIZURE, [], SMALL)
    assert windows.step_start.tolist() == [15, 20, 25, 30, 35, 40, 45, 50, 55]
    assert windows.step_stop.tolist() == [20, 25, 30, 35, 40, 45, 50, 55, 60]
    assert windows.label.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(windows.event_start[3:6], [31, 35, 40])
    np.testing.assert_array_equal(windows.event_stop[3:6], [35, 40, 42])
    assert np.isnan(windows.event_start[[0, 1, 2, 6, 7, 8]]).all()


def test_a_seizure_that_ends_where_a_segment_begins_belongs_to_both() -> None:
    windows = index_windows(60.0, [Interval(30.0, 40.0)], [], SMALL)
    assert windows.label.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]
    joined = windows.event_start[2:6], windows.event_stop[2:6]
    assert joined[0].min() == 30.0
    assert joined[1].max() == 40.0


def test_padding_gives_the_first_segments_a_decision() -> None:
    windows = index_windows(40.0, [Interval(1.0, 2.0)], [], PADDED)
    assert windows.start.tolist() == [-15, -10, -5, 0, 5, 10, 15, 20]
    assert windows.padded.tolist() == [3, 2, 1, 0, 0, 0, 0, 0]
    assert windows.step_start[0] == 0.0
    assert windows.label.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_a_padded_window_of_another_stride_holds_one_real_segment_at_least() -> None:
    options = WindowOptions(num_segments=4, segment_seconds=5, stride_seconds=4)
    windows = index_windows(30.0, [], [], options)
    assert windows.start.tolist() == [-12, -8, -4, 0, 4, 8]
    assert windows.padded.tolist() == [3, 2, 1, 0, 0, 0]
    begins = windows.start + windows.padded * 5
    assert (begins >= 0).all()


def test_a_recording_shorter_than_a_window_is_padded() -> None:
    windows = index_windows(7.0, [], [], PADDED)
    assert windows.start.tolist() == [-15]
    assert windows.padded.tolist() == [3]
    assert len(index_windows(4.0, [], [], PADDED)) == 0


def test_no_window_reaches_across_a_gap() -> None:
    gaps = [Interval(33.0, 40.0)]
    windows = index_windows(70.0, [], gaps, SMALL)
    assert windows.start.tolist() == [0, 5, 10, 40, 45, 50]
    padded = index_windows(70.0, [], gaps, PADDED)
    assert padded.start.tolist() == [-15, -10, -5, 0, 5, 10, 25, 30, 35, 40, 45, 50]
    assert padded.padded.tolist() == [3, 2, 1, 0, 0, 0] * 2
    # What is read of them lies on one side of the gap.
    read_from = padded.start + padded.padded * 5
    assert ((padded.step_stop <= 33) | (read_from >= 40)).all()


def test_gaps_at_the_ends_and_on_top_of_each_other() -> None:
    gaps = [Interval(50.0, 90.0), Interval(0.0, 10.0), Interval(5.0, 12.0), Interval(6.0, 7.0)]
    assert stretches(80.0, gaps) == [Interval(12.0, 50.0)]
    assert stretches(80.0, [Interval(0.0, 80.0)]) == []
    assert len(index_windows(80.0, [], [Interval(0.0, 80.0)], PADDED)) == 0


def test_the_reference_loses_the_last_windows_and_looks_over_gaps() -> None:
    options = WindowOptions(mode="reference")
    ours = index_windows(589.99, SEIZURE, [], WindowOptions(padding="none"))
    theirs = index_windows(589.99, SEIZURE, [Interval(100.0, 200.0)], options)
    assert len(theirs) == 68
    np.testing.assert_array_equal(theirs.start, ours.start[:68])
    np.testing.assert_array_equal(theirs.label, ours.label[:68])


def test_the_reference_labels_a_segment_in_whole_seconds() -> None:
    seizure = [Interval(0.0, 7.7)]
    sizes = {"num_segments": 4, "segment_seconds": 2.5, "stride_seconds": 2.5}
    theirs = index_windows(60.0, seizure, [], WindowOptions(**sizes, mode="reference"))
    ours = index_windows(60.0, seizure, [], WindowOptions(**sizes, padding="none"))
    # The newest segment is 7.5 to 10 s, the reference looks at 8 to 10 s.
    assert (theirs.label[0], ours.label[0]) == (0, 1)


def test_slowing_down_adds_windows_around_seizures_only() -> None:
    plain = index_windows(400.0, [Interval(200.0, 210.0)], [], SMALL)
    dense = index_windows(400.0, [Interval(200.0, 210.0)], [], SMALL, slow_down=True)
    assert set(plain.start) <= set(dense.start)
    near = (dense.start >= 200 - 60) & (dense.start <= 210 + 40)
    np.testing.assert_allclose(np.diff(dense.start[near]), 1.25)
    np.testing.assert_allclose(np.diff(dense.start[dense.start > 255]), 5.0)
    assert index_windows(400.0, [], [], SMALL, slow_down=True).start.tolist() == list(plain.start)


def test_samples_of_a_segment_are_a_whole_number() -> None:
    assert WindowOptions().segment_samples(512.0) == 2560
    assert WindowOptions(segment_seconds=2.5).segment_samples(173.6) == 434
    with pytest.raises(ConfigError, match=r"data.segment_seconds: 5.0 s are 868.05 .* use 4.99971"):
        WindowOptions().segment_samples(173.61)
    assert WindowOptions(segment_seconds=868 / 173.61).segment_samples(173.61) == 868


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_segments": 0}, "data.num_segments: must be at least 1"),
        ({"stride_seconds": 0.0}, "data.stride_seconds: must be more than 0"),
        ({"segment_seconds": float("nan")}, "data.segment_seconds"),
        ({"padding": "zeros"}, "data.padding: 'zeros' is unknown; use repeat or none"),
        ({"mode": "paper"}, "data.mode"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WindowOptions(**options)  # type: ignore[arg-type]


def test_windows_can_be_chosen() -> None:
    windows = index_windows(60.0, SEIZURE, [], SMALL)
    assert windows[windows.label == 1].start.tolist() == [15, 20, 25]
    assert len(windows[2:4]) == 2
