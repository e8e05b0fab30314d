"""What a picture of a recording shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from array_recording import ArrayRecording, noise

from manyhead.mvpformer.pictures import envelope, nice, picture, time_unit, write_picture
from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.recording import Interval


def prepared(seconds: int = 100, channels: int = 12, **about: object) -> Prepared:
    recording = ArrayRecording(noise(channels, seconds * 64), 64.0, **about)
    return Prepared(recording, PrepareOptions(rate=64.0))


def test_envelope_holds_the_extremes() -> None:
    recording = prepared(50, 3)
    seen = envelope(recording, [0, 2], columns=7)
    signal = recording.read(0, recording.samples)[[0, 2]]
    edges = np.rint(seen.edges * 64).astype(int)
    for k in range(7):
        part = signal[:, edges[k] : edges[k + 1]]
        np.testing.assert_allclose(seen.low[:, k], part.min(1))
        np.testing.assert_allclose(seen.high[:, k], part.max(1))


def test_long_columns_are_read_in_part() -> None:
    recording = prepared(100, 2)
    seen = envelope(recording, [1], columns=4, longest=2.0)
    assert seen.looked == 2.0
    signal = recording.read(1600, 1728)[1]
    assert seen.high[0, 1] == pytest.approx(signal.max())


def test_axes_are_labelled(tmp_path: Path) -> None:
    recording = prepared(400, seizures=(Interval(30, 50),), gaps=(Interval(100, 120),))
    start = np.r_[np.arange(0.0, 100, 5), np.arange(120.0, 400, 5)]
    chance = np.linspace(0, 1, len(start))
    found = [Interval(200, 205), Interval(300, 320)]
    figure = picture(recording, start, start + 5, chance, 0.7, found)
    bars, curve, traces = figure.axes
    assert [text.get_text() for text in bars.get_yticklabels()] == ["detected (2)", "annotated (1)"]
    assert "(min)" in traces.get_xlabel()
    assert "8 of 12 channels" in traces.get_ylabel()
    assert traces.get_xlim() == pytest.approx((0, 400 / 60))
    # The line is broken in the gap.
    assert np.isnan(curve.lines[0].get_ydata()).sum() == 1
    path = write_picture(tmp_path / "r.png", recording, start, start + 5, chance, 0.7, found)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_draws_a_single_step_and_silence() -> None:
    recording = Prepared(ArrayRecording(np.zeros((1, 640)), 64.0), PrepareOptions(rate=64.0))
    figure = picture(recording, np.zeros(1), np.full(1, 10.0), np.ones(1), 0.5, [])
    assert "(s)" in figure.axes[2].get_xlabel()
    assert figure.axes[0].get_yticklabels()[1].get_text() == "not annotated"


def test_units_and_steps() -> None:
    assert [time_unit(s).name for s in (60, 1000, 90000)] == ["s", "min", "h"]
    assert [nice(v) for v in (0.11, 1.0, 3.0, 700.0)] == pytest.approx([0.2, 1, 5, 1000])
