import math

import numpy as np

from manyhead.mvpformer.events.delay import delays, event_delays
from manyhead.mvpformer.events.szcore import ScoreOptions
from manyhead.mvpformer.recording import Interval

START = np.arange(100) * 5.0
STOP = START + 5


def detected(*numbers: int) -> np.ndarray:
    return np.isin(np.arange(100), numbers)


def test_the_delay_ends_when_the_step_is_known() -> None:
    seizures = [Interval(102, 140), Interval(302, 340)]
    assert delays(seizures, START, STOP, detected(21, 22, 60)).tolist() == [8.0, 3.0]


def test_alarms_count_within_the_tolerance_only() -> None:
    seizure = [Interval(102, 140)]
    assert delays(seizure, START, STOP, detected(14)).tolist() == [-27.0]
    assert math.isnan(delays(seizure, START, STOP, detected(13))[0])
    assert delays(seizure, START, STOP, detected(39)).tolist() == [98.0]
    assert math.isnan(delays(seizure, START, STOP, detected(40))[0])
    none = ScoreOptions(before=0, after=0)
    assert math.isnan(delays(seizure, START, STOP, detected(19), none)[0])
    assert delays(seizure, START, STOP, detected(19, 20), none).tolist() == [3.0]
    assert math.isnan(delays(seizure, START, STOP, detected())[0])


def test_the_delay_of_events_without_their_steps() -> None:
    seizures = [Interval(102, 140), Interval(300, 340)]
    events = [Interval(110, 120), Interval(130, 150)]
    assert event_delays(seizures, events)[0] == 8
    assert event_delays(seizures, events, 5.0)[0] == 13
    assert math.isnan(event_delays(seizures, events)[1])
    assert event_delays(seizures[:1], [Interval(0, 500)]).tolist() == [-30]
