from __future__ import annotations

import itertools
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.mvpformer.preparing import Prepared, PrepareOptions, resampling, stretches
from manyhead.mvpformer.preparing.filters import ZeroPhase
from manyhead.mvpformer.recording import Interval
from manyhead_core.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parent))
from array_recording import ArrayRecording, noise

RATES = (173.61, 250.0, 256.0, 400.0, 499.907, 500.0, 512.0, 512.5, 1000.0, 1024.0, 2000.0, 5000.0)
VARIANTS = (
    {},
    {"mode": "reference"},
    {"band": (0.5, 150.0)},
    {"notch": 50.0, "montage": "average"},
    {"montage": "bipolar", "resample": "linear"},
)


@settings(deadline=None, max_examples=60)
@given(
    rate=st.sampled_from(RATES),
    variant=st.sampled_from(VARIANTS),
    samples=st.integers(20, 6000),
    share=st.lists(st.floats(0, 1), max_size=5),
    gap=st.booleans(),
)
def test_numbers_do_not_depend_on_the_pieces(rate, variant, samples, share, gap) -> None:
    middle = samples / rate / 2
    gaps = (Interval(middle, middle * 1.2),) if gap else ()
    recording = ArrayRecording(noise(3, samples), rate, gaps=gaps)
    prepared = Prepared(recording, PrepareOptions(**variant))
    whole = prepared.read(0, prepared.samples)
    cuts = [0, *sorted(round(s * prepared.samples) for s in share), prepared.samples]
    pieces = [prepared.read(a, b) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-4)
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("variant", [{}, {"band": (0.5, 150.0)}, {"montage": "median"}])
@pytest.mark.parametrize("rate", [499.907, 1024.0])
def test_inner_pieces_change_nothing(rate, variant, monkeypatch) -> None:
    recording = ArrayRecording(noise(3, 20_000), rate)
    prepared = Prepared(recording, PrepareOptions(**variant))
    whole = prepared.read(0, prepared.samples)
    monkeypatch.setattr(stretches, "RAW_VALUES", 3000)
    monkeypatch.setattr(stretches, "NEW_VALUES", 3000)
    monkeypatch.setattr(resampling, "WEIGHTS", 30_000)
    small = Prepared(recording, PrepareOptions(**variant))
    recording.asked.clear()
    np.testing.assert_allclose(small.read(0, small.samples), whole, rtol=0, atol=1e-4)
    assert max(stop - start for start, stop in recording.asked) < 2500


@pytest.mark.parametrize("rate", RATES)
def test_a_wave_keeps_its_place_for_a_day(rate) -> None:
    """A sine read far into a long recording is the sine at that time: nothing drifts."""
    seconds = 86_400

    class Wave(ArrayRecording):
        def read(self, start: int, stop: int) -> np.ndarray:
            # In whole periods of a second first: float64 of 17 * t would lose the phase.
            time = (np.arange(start, stop) % (rate * 1000)) / rate
            return (200 * np.sin(2 * np.pi * 17 * time))[None].astype(np.float32)

    recording = Wave(np.zeros((1, 1)), rate)
    recording.info = replace(recording.info, samples=int(seconds * rate))
    prepared = Prepared(recording)
    start = prepared.samples - 5000
    time = (np.arange(start, start + 3000) % 512_000) / 512
    wanted = 200 * np.sin(2 * np.pi * 17 * time)
    np.testing.assert_allclose(prepared.read(start, start + 3000)[0], wanted, rtol=0, atol=0.02)
    assert prepared.samples == pytest.approx(seconds * 512, abs=512 / rate + 1)


@pytest.mark.parametrize(("rate", "low"), [(1024.0, 512.0), (2000.0, 512.0), (256.0, 256.0)])
def test_band_limited_resampling_keeps_and_stops(rate, low) -> None:
    time = np.arange(int(8 * rate)) / rate
    kept = np.sin(2 * np.pi * 0.41 * low * time)
    signal = [kept] if rate <= 512 else [kept, np.sin(2 * np.pi * 0.52 * low * time)]
    prepared = Prepared(ArrayRecording(1000 * np.stack(signal), rate))
    out = prepared.read(1024, 3072)
    new_time = np.arange(1024, 3072) / 512
    wanted = 1000 * np.sin(2 * np.pi * 0.41 * low * new_time)
    np.testing.assert_allclose(out[0], wanted, rtol=0, atol=1.0)
    if rate > 512:
        assert np.abs(out[1]).max() < 0.3


@pytest.mark.parametrize("rate", [256.0, 400.0, 1024.0, 2000.0])
def test_reference_mode_interpolates_as_torch_does(rate) -> None:
    signal = noise(2, int(3 * rate))
    prepared = Prepared(ArrayRecording(signal, rate), PrepareOptions(mode="reference"))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(signal)[None], size=3 * 512, mode="linear", align_corners=False
    )[0]
    np.testing.assert_allclose(prepared.read(0, 3 * 512), wanted.numpy(), rtol=1e-6, atol=1e-4)


def test_a_constant_stays_constant_at_every_rate() -> None:
    for rate in RATES:
        prepared = Prepared(ArrayRecording(np.full((1, 900), 123.0), rate))
        np.testing.assert_allclose(prepared.read(0, prepared.samples), 123.0, rtol=1e-6)


def response(options: PrepareOptions, frequency: float) -> float:
    fir = ZeroPhase.build(options)
    assert fir is not None
    np.testing.assert_allclose(fir.kernel, fir.kernel[::-1], atol=1e-12)
    phase = 2 * np.pi * frequency * (np.arange(len(fir.kernel)) - fir.margin) / options.rate
    return float(fir.kernel @ np.cos(phase))


def test_filter_keeps_the_band_and_takes_mains_out() -> None:
    options = PrepareOptions(band=(0.5, 120.0), notch=50.0)
    for frequency in (1.0, 5.0, 40.0, 48.0, 52.0, 80.0, 98.0):
        assert response(options, frequency) == pytest.approx(1, abs=5e-3), frequency
    for frequency in (0.0, 0.1, 50.0, 100.0, 150.0, 180.0, 250.0):
        assert abs(response(options, frequency)) < 5e-3, frequency
    assert response(options, 0.5) == pytest.approx(0.5, abs=0.02)
    assert response(options, 120.0) == pytest.approx(0.5, abs=0.02)


def test_filter_at_another_rate_knows_its_half_rate() -> None:
    fir = ZeroPhase.build(PrepareOptions(rate=256.0, notch=60.0))
    assert fir is not None
    assert fir.about["notch_hz"] == [60.0, 120.0]
    assert ZeroPhase.build(PrepareOptions()) is None


def test_ends_are_mirrored_not_padded() -> None:
    signal = np.linspace(500, 700, 2000)[None]
    prepared = Prepared(ArrayRecording(signal, 1000.0))
    out = prepared.read(0, prepared.samples)[0]
    assert out[0] == pytest.approx(500, abs=2)
    assert out[-1] == pytest.approx(700, abs=2)


def test_nothing_crosses_a_gap() -> None:
    signal = noise(2, 4000)
    signal[:, 2000:2500] = np.nan
    gap = (Interval(2.0, 2.5),)
    options = PrepareOptions(band=(1.0, 0.0))
    prepared = Prepared(ArrayRecording(signal, 1000.0, gaps=gap), options)
    alone = Prepared(ArrayRecording(signal[:, :2000], 1000.0), options)
    out = prepared.read(0, prepared.samples)
    np.testing.assert_array_equal(out[:, :1024], alone.read(0, 1024))
    assert not out[:, 1024:1280].any()
    assert out[:, 1280:].all()


def test_values_that_are_no_numbers_name_channel_and_time() -> None:
    signal = noise(2, 8000)
    signal[1, 7000] = np.inf
    prepared = Prepared(ArrayRecording(signal, 1000.0))
    prepared.read(0, 3000)
    with pytest.raises(DataError, match=r"rec: channel A2 holds no number at 7\.000 s"):
        prepared.read(0, prepared.samples)


def test_a_channel_without_numbers_is_dropped_and_named() -> None:
    signal = noise(3, 3000)
    signal[1] = np.nan
    prepared = Prepared(ArrayRecording(signal, 512.0), PrepareOptions(montage="average"))
    assert prepared.channels == ("A1", "A3")
    assert prepared.dropped == {"A2": "holds no numbers"}
    assert "A2 (holds no numbers)" in prepared.notes[0]
    assert np.isfinite(prepared.read(0, 3000)).all()


def test_flat_channels_are_named_and_kept_or_dropped() -> None:
    signal = noise(3, 3000)
    signal[2] = 7
    recording = ArrayRecording(signal, 512.0)
    kept = Prepared(recording, PrepareOptions(montage="average"))
    # An average taken off a dead channel would look like a living one.
    assert np.ptp(kept.read(0, 3000)[2]) == 0
    half = (signal[0] - signal[1])[:3000] / 2
    np.testing.assert_allclose(kept.read(0, 3000)[0], half, atol=1e-3)
    assert "1 flat channels" in kept.notes[0]
    assert kept.manifest()["flat"] == ["A3"]
    left = Prepared(recording, PrepareOptions(flat="drop"))
    assert left.channels == ("A1", "A2")
    assert left.dropped["A3"].startswith("flat in ")
    with pytest.raises(DataError, match=r"none of its 1 channels \(A1\) is left: flat"):
        Prepared(ArrayRecording(signal[2:], 512.0), PrepareOptions(flat="drop"))


def test_a_channel_that_wakes_up_late_is_not_flat() -> None:
    signal = noise(2, 60_000)
    signal[1, :40_000] = 0
    assert Prepared(ArrayRecording(signal, 512.0)).manifest()["flat"] == []


def test_looking_at_a_recording_stays_bounded() -> None:
    recording = ArrayRecording(np.zeros((2, 2_000_000)) + np.arange(2_000_000) % 7, 512.0)
    Prepared(recording)
    assert sum(stop - start for start, stop in recording.asked) <= 16 * 1024


def test_manifest_is_json_and_says_what_was_done() -> None:
    options = PrepareOptions(notch=60.0, band=(0.5, 150.0), montage="bipolar")
    prepared = Prepared(ArrayRecording(noise(4, 3000), 1000.0), options)
    manifest = json.loads(json.dumps(prepared.manifest()))
    assert manifest["channels"] == ["A1-A2", "A2-A3", "A3-A4"]
    assert manifest["filter"]["notch_hz"] == [60.0, 120.0, 180.0, 240.0]
    assert manifest["resampling"]["stopped_from_hz"] == 256.0
    assert manifest["samples"] == prepared.samples == 1536
    assert prepared.duration == 3.0


def test_a_prepared_recording_goes_to_a_worker() -> None:
    prepared = Prepared(ArrayRecording(noise(2, 3000), 1024.0), PrepareOptions(band=(1.0, 0.0)))
    copy = pickle.loads(pickle.dumps(prepared))
    np.testing.assert_array_equal(copy.read(100, 900), prepared.read(100, 900))


def test_reading_outside_is_refused_and_nothing_gives_nothing() -> None:
    prepared = Prepared(ArrayRecording(noise(2, 3000), 1024.0))
    assert prepared.read(7, 7).shape == (2, 0)
    for start, stop in ((-1, 5), (0, 1501), (5, 4)):
        with pytest.raises(ValueError, match="of 1500 samples"):
            prepared.read(start, stop)


def test_a_recording_without_signal_is_refused() -> None:
    with pytest.raises(DataError, match="holds no signal"):
        Prepared(ArrayRecording(noise(1, 100), 100.0, gaps=(Interval(0, 1),)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate: 0 Hz"),
        ({"max_channels": 0}, "max_channels: 0"),
        ({"notch": 300.0}, "notch: 300 Hz is not between 0 and half of the rate, 256"),
        ({"band": (0.01, 0.0)}, "band: the lower edge is 0.01 Hz; use 0.1 or more"),
        ({"band": (5.0, 300.0)}, "upper edge 300 Hz is not between the lower edge 5 and"),
        ({"band": (50.0, 20.0)}, "upper edge 20 Hz is not between the lower edge 50"),
        ({"band": (400.0, 0.0)}, "lower edge 400 Hz is not below half of the rate, 256"),
        ({"channels": " , "}, "channels: ' , ' is empty"),
    ],
)
def test_options_that_cannot_be_used(options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        PrepareOptions(**options)
