from pathlib import Path

import pandas as pd
import pytest

from manyhead.mvpformer.events.tsv import read_events, recording_length, write_events, write_steps
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import DataError

HEADER = "onset\tduration\teventType\tconfidence\tchannels\tdateTime\trecordingDuration\n"


def write(folder: Path, text: str, name: str = "a_events.tsv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_events_are_written_as_szcore_has_them(tmp_path: Path) -> None:
    events = [Interval(12.5, 40.0), Interval(100.0, 101.25)]
    path = write_events(tmp_path / "out" / "x_events.tsv", events, 613.0, confidence=[0.9, None])
    assert path.read_text().splitlines() == [
        HEADER.strip(),
        "12.500\t27.500\tsz\t0.9000\tn/a\tn/a\t613.000",
        "100.000\t1.250\tsz\tn/a\tn/a\tn/a\t613.000",
    ]
    assert list(read_events(path, 613.0)) == events
    assert recording_length(path) == 613.0


def test_a_recording_without_seizures_is_background(tmp_path: Path) -> None:
    path = write_events(tmp_path / "x_events.tsv", [], 613.0)
    assert path.read_text().splitlines()[1].startswith("0.000\t613.000\tbckg\t")
    assert read_events(path, 613.0) == ()
    assert recording_length(path) == 613.0


def test_every_type_of_seizure_counts_and_nothing_else(tmp_path: Path) -> None:
    rows = ["5\t1\tsz_foc_ia\tn/a\tn/a\tn/a\tn/a", "1\t2\tSZ\tn/a\tn/a\tn/a\tn/a"]
    rows += ["20\tn/a\tbckg\tn/a\tn/a\tn/a\tn/a", "30\t1\tartefact\tn/a\tn/a\tn/a\tn/a"]
    rows += ["90\tn/a\tsz\tn/a\tn/a\tn/a\tn/a"]
    path = write(tmp_path, HEADER + "\n".join(rows))
    # A seizure without an end lasts until the recording does.
    assert read_events(path, 100.0) == ((1, 3), (5, 6), (90, 100))
    assert recording_length(path) is None


def test_trial_types_and_plain_tables_are_read(tmp_path: Path) -> None:
    bids = write(tmp_path, "onset\tduration\ttrial_type\n5\t2\tseizure\n9\t1\trest\n")
    assert read_events(bids, 100.0) == ((5, 7),)
    plain = write(tmp_path, "onset,offset\n5,7.5\n1,2\n", "a.csv")
    assert read_events(plain, 100.0) == ((1, 2), (5, 7.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset\teventType\n1\tsz\n", "needed are onset and duration or offset"),
        ("onset\tduration\teventType\n0\t1\tbckg\nx\t3\tsz\n", "has onset 'x'"),
        ("onset\tduration\n5\t-1\n", "from 5 s to 4 s is none"),
        ("onset\tduration\n500\t1\n", "lies outside the recording of 100.00 s"),
        ("", "is empty"),
    ],
)
def test_a_broken_table_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_events(write(tmp_path, text), 100.0)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_length_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "1\t1\tsz\tn/a\tn/a\tn/a\tlong\n")
    with pytest.raises(DataError, match="recordingDuration is 'long'"):
        recording_length(path)


def test_the_table_of_steps(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "p.tsv", [5.0, 10.0], [0.25, float("nan")], {"detected": [0, 1]})
    found = pd.read_csv(path, sep="\t")
    assert found["time"].tolist() == [5.0, 10.0]
    assert found["p"].tolist()[0] == 0.25
    assert found["p"].isna().tolist() == [False, True]
    assert found["detected"].tolist() == [0, 1]
