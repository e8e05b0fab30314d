"""The command predict: what it writes, goes on after, and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from weights_folder import WINDOWS, network, save_recording, save_weights

from manyhead.__main__ import main
from manyhead.mvpformer.detector import Recordings
from manyhead.mvpformer.events.postprocess import PostOptions, detect
from manyhead.mvpformer.events.tsv import read_events
from manyhead.mvpformer.predict import Journal
from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.stream import Stream


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w", ("A1", "A2", "A3"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        save_recording(tmp_path / "data" / f"{name}.npz", seed=seed)
    return tmp_path / "data"


def predict(weights: Path, data: Path, out: Path, *more: object) -> int:
    words = ("--weights", weights, "--input", data, "--out", out, *more)
    return main(["mvpformer", "predict", *map(str, words)])


def report(out: Path) -> dict[str, dict[str, str]]:
    with (out / "report.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_writes_probabilities_and_events(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(weights, data, out) == 0
    steps = pd.read_csv(out / "a_steps.tsv", sep="\t")
    recordings = Recordings.find(data, "auto", ReadOptions(), PrepareOptions(rate=64.0))
    stream = Stream(net=network(), options=WINDOWS)
    with recordings.opened("a") as prepared:
        windows = stream.windows(prepared)
        expected = np.concatenate(list(stream.probabilities(prepared, windows)))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(steps["p"], expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(steps["time"], np.arange(1, 31))
    events = detect(expected, windows.step_start, windows.step_stop, PostOptions())
    assert list(read_events(out / "a_events.tsv", 30.0)) == events
    shown = capsys.readouterr()
    assert "sensitivity" in shown.out
    assert "research use only" in shown.out
    assert "annotated: 2 recordings" in shown.out
    assert {"a.png", "b.png", "manifest.json"} <= {path.name for path in out.iterdir()}
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    about = json.loads((out / "a.json").read_text())
    assert about["preparing"]["channels"] == ["A1", "A2", "A3"]
    assert about["warnings"] == []
    assert not list(out.glob(".*"))


def test_goes_on_after_a_failure_and_again(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (data / "broken.npz").write_bytes(b"no numbers")
    assert predict(weights, data, out, "--pictures", "false") == 0
    rows = report(out)
    assert [rows[name]["status"] for name in ("a", "b", "broken")] == ["ok", "ok", "failed"]
    assert rows["broken"]["error"]
    assert rows["a"]["annotated"] == "1"
    stamp = (out / "a_steps.tsv").stat().st_mtime_ns
    capsys.readouterr()
    assert predict(weights, data, out, "--pictures", "false", "--strict", "true") == 2
    assert "2 of 3 recordings are done already" in capsys.readouterr().err
    assert (out / "a_steps.tsv").stat().st_mtime_ns == stamp
    assert report(out)["a"]["status"] == "done before"


def test_nothing_usable_is_exit_code_2(weights: Path, tmp_path: Path) -> None:
    save_recording(tmp_path / "data" / "many.npz", channels=9)
    assert predict(weights, tmp_path / "data", tmp_path / "out") == 2
    assert "9 channels" in report(tmp_path / "out")["many"]["error"]


def test_refuses_another_setup_until_told(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    quiet = ("--pictures", "false")
    assert predict(weights, data, out, *quiet) == 0
    capsys.readouterr()
    assert predict(weights, data, out, "--threshold", 0.99, *quiet) == 2
    assert "was made with post.threshold 0.5, not 0.99" in capsys.readouterr().err
    assert predict(weights, data, out, "--threshold", 0.99, "--overwrite", "true", *quiet) == 0
    assert report(out)["a"]["status"] == "ok"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a_events.tsv").write_text("mine")
    assert predict(weights, data, tmp_path / "other") == 2
    assert "choose a new or empty folder" in capsys.readouterr().err
    assert (tmp_path / "other" / "a_events.tsv").read_text() == "mine"


def test_warns_once_of_other_channels(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recording(tmp_path / "data" / "few.npz", channels=2)
    assert predict(weights, tmp_path / "data", tmp_path / "out", "--pictures", "false") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "2 channels, the network was trained with 3" in notes[0]
    assert "lacks A3" in notes[0]


def test_a_cut_recording_goes_on(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert predict(weights, data, whole, "--pictures", "false") == 0
    add = Journal.add

    def stopping(self: Journal, values: np.ndarray) -> None:
        add(self, values)
        if len(self.values) >= 16:
            with self.path.open("a") as file:
                file.write("0.12")  # a line that the kill has cut
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stopping)
    assert predict(weights, data, cut, "--pictures", "false") == 130
    monkeypatch.setattr(Journal, "add", add)
    firsts: list[int] = []
    probabilities = Stream.probabilities

    def spied(self: Stream, recording: object, windows: object, first: int = 0) -> object:
        firsts.append(first)
        return probabilities(self, recording, windows, first)

    monkeypatch.setattr(Stream, "probabilities", spied)
    assert predict(weights, data, cut, "--pictures", "false") == 0
    assert firsts == [16, 0]
    for name in ("a_steps.tsv", "a_events.tsv"):
        assert (cut / name).read_text() == (whole / name).read_text()


def test_refuses_weights_without_seizures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_weights(tmp_path / "w", target="next_token")
    assert predict(weights, data, tmp_path / "out") == 2
    assert "were trained for next_token and know no seizures" in capsys.readouterr().err


def test_ranked_channels_are_those_of_the_first_recording(tmp_path: Path) -> None:
    for name, loud in (("p_1", 2), ("p_2", 0)):
        signal = np.random.default_rng(0).normal(0, 20, (3, 1920)).astype(np.float32)
        signal[loud] *= 5
        np.savez(tmp_path / f"{name}.npz", signal=signal, sfreq=64.0, channels=["x", "y", "z"])
    prepare = PrepareOptions(rate=64.0, channels="variance", max_channels=1)
    recordings = Recordings.find(tmp_path, "auto", ReadOptions(), prepare)
    for name in ("p_2", "p_1"):
        with recordings.opened(name) as prepared:
            assert prepared.channels == ("z",)


def test_another_file_of_the_same_name_is_not_taken_for_it(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert predict(weights, data / "a.npz", out) == 0
    before = (out / "a_steps.tsv").read_text()
    save_recording(other / "a.npz", seed=7)
    assert predict(weights, other, out) == 2
    assert "another file of this name; choose another folder" in capsys.readouterr().err
    assert (out / "a_steps.tsv").read_text() == before
    assert predict(weights, other, out, "--overwrite", "true") == 0
    assert (out / "a_steps.tsv").read_text() != before


def test_what_recordings_share_is_said_once(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        held = dict(np.load(data / f"{name}.npz"))
        held["signal"][2] = 0.0
        np.savez(data / f"{name}.npz", **held)
    assert predict(weights, data, tmp_path / "out", "--pictures", "false") == 0
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("flat where looked at: A3") == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("recording,begins\na,1\n", "has the columns recording, begins; needed are onset"),
        ("onset,offset\n1,2\n", "has no column recording, and there are 2 recordings"),
        ("id,onset,offset\nc,1,2\n", "names none of the 2 recordings; it has c, they are called a"),
    ],
)
def test_a_table_of_seizures_that_fits_nothing_stops(
    weights: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: str,
    message: str,
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(rows)
    assert predict(weights, data, tmp_path / "out", "--seizures", table) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
