"""EDF files as hospitals write them: pauses, double names, mixed rates, remarks, odd units."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mne", reason="needs the extra ieeg")

from edf_bytes import Signal, noise, write_edf

from manyhead.mvpformer.readers import ReadOptions, find_recordings, open_recording
from manyhead.mvpformer.recording import Interval, Recording
from manyhead_core.errors import ConfigError, DataError


def opened(path: Path, **options: object) -> Recording:
    (source,) = find_recordings(path)
    return open_recording(source, ReadOptions(**options))


def test_signal_is_in_microvolts_and_independent_of_the_piece(tmp_path: Path) -> None:
    values = [noise(1000, 1), noise(1000, 2)]
    path = write_edf(tmp_path / "p1_a.edf", [Signal("A1", v, 100) for v in values])
    recording = opened(path)
    assert recording.info.rate == 100
    assert recording.info.samples == 1000
    assert recording.info.patient == "p1"
    assert recording.info.seizures is None
    whole = recording.read(0, 1000)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, values, atol=1e-3)
    pieces = [recording.read(a, min(a + 137, 1000)) for a in range(0, 1000, 137)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_a_pause_keeps_the_clock(tmp_path: Path) -> None:
    values = noise(400)
    path = write_edf(
        tmp_path / "a.edf",
        [Signal("A1", values, 100)],
        starts=[0.5, 1.5, 7.5, 8.5],
        remarks=["+8\x151\x14seizure"],
    )
    recording = opened(path)
    assert recording.info.samples == 900
    assert recording.info.gaps == (Interval(2.0, 7.0),)
    # Remarks count from the same clock as the records, whose first begins at 0.5 s.
    assert recording.info.seizures == (Interval(7.5, 8.5),)
    signal = recording.read(0, 900)[0]
    np.testing.assert_allclose(signal[:200], values[:200], atol=1e-3)
    assert not signal[200:700].any()
    np.testing.assert_allclose(signal[700:], values[200:], atol=1e-3)
    np.testing.assert_array_equal(recording.read(150, 750)[0], signal[150:750])


def test_a_clock_that_runs_backwards_is_refused(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", [Signal("A1", noise(200), 100)], starts=[5.0, 0.0])
    with pytest.raises(DataError, match="a: the clock of the file runs backwards"):
        opened(path)


@pytest.mark.parametrize(
    ("remarks", "expected"),
    [
        (["+2\x14SZ onset", "+5\x14sz end"], (Interval(2, 5),)),
        (["+2\x153\x14Seizure 1"], (Interval(2, 5),)),
        (["+2\x14seizure start", "+3\x14ictal rhythm", "+5\x14seizure offset"], (Interval(2, 5),)),
        (["+2\x14seizure"], (Interval(2, 10),)),
        (["+2\x14interictal", "+3\x14post-ictal", "+4\x14pre-ictal", "+5\x14visz"], None),
    ],
)
def test_seizures_in_remarks(
    tmp_path: Path, remarks: list[str], expected: tuple[Interval, ...] | None
) -> None:
    path = write_edf(tmp_path / "a.edf", [Signal("A1", noise(1000), 100)], remarks=remarks)
    assert opened(path).info.seizures == expected


def test_the_pattern_is_the_users(tmp_path: Path) -> None:
    path = write_edf(
        tmp_path / "a.edf", [Signal("A1", noise(1000), 100)], remarks=["+2\x151\x14Anfall"]
    )
    assert opened(path).info.seizures is None
    assert opened(path, pattern="(?i)anfall").info.seizures == (Interval(2, 3),)
    with pytest.raises(ConfigError, match="pattern"):
        ReadOptions(pattern="(")


def test_a_remark_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = write_edf(
        tmp_path / "a.edf", [Signal("A1", noise(500), 100)], remarks=["+12\x152\x14seizure"]
    )
    with pytest.raises(DataError, match=r"a: the seizure from 12 s to 14 s lies outside"):
        opened(path)


def test_double_names_are_told_apart(tmp_path: Path) -> None:
    signals = [Signal("A1", noise(300, seed), 100) for seed in range(3)]
    recording = opened(write_edf(tmp_path / "a.edf", [*signals, Signal("A2", noise(300, 3), 100)]))
    assert recording.info.channels == ("A1", "A1 (2)", "A1 (3)", "A2")
    np.testing.assert_allclose(recording.read(0, 300)[2], signals[2].values, atol=1e-3)


def test_other_rates_and_other_signals_are_left_out(tmp_path: Path) -> None:
    values = [noise(500, 1), noise(500, 2)]
    signals = [
        Signal("ECG", noise(2000), 400),
        Signal("A1", values[0], 100),
        Signal("SLOW", noise(50), 10),
        Signal("A1", values[1], 100),
        Signal("SpO2", noise(5), 1, "%"),
        Signal("X1", noise(500), 100, "degC"),
    ]
    recording = opened(write_edf(tmp_path / "a.edf", signals))
    assert recording.info.channels == ("A1", "A1 (2)")
    assert recording.info.dropped == {
        "ECG": "type MISC, no brain signal",
        "SLOW": "sampled at 10 Hz, the others at 100 Hz",
        "SpO2": "unit % is no voltage",
        "X1": "unit degC is no voltage",
    }
    # Beside the ECG of 400 Hz the signals must not be resampled.
    assert recording.info.rate == 100
    np.testing.assert_allclose(recording.read(123, 321), np.stack(values)[:, 123:321], atol=1e-3)


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1), ("\u00b5V", 1), ("mV", 1e3), ("", 1)])
def test_units_of_the_header(tmp_path: Path, unit: str, factor: float) -> None:
    values = noise(300) if factor == 1 else np.tile(np.int16([-1, 0, 2]), 100)
    recording = opened(write_edf(tmp_path / "a.edf", [Signal("A1", values, 100, unit)]))
    np.testing.assert_allclose(recording.read(0, 300)[0], values * factor, rtol=1e-5, atol=1e-3)


def test_nanovolts_are_not_taken_for_volts(tmp_path: Path) -> None:
    values = noise(300) * 100
    recording = opened(write_edf(tmp_path / "a.edf", [Signal("A1", values, 100, "nV")]))
    np.testing.assert_allclose(recording.read(0, 300)[0], values * 1e-3, rtol=1e-5, atol=1e-4)


def test_implausible_amplitudes_name_the_unit(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", [Signal("A1", noise(300), 100, "V")])
    with pytest.raises(DataError, match=r"a: .* too large .* units=nV, or units=uV"):
        opened(path)
    np.testing.assert_allclose(
        opened(path, units="uV").read(0, 300)[0], noise(300), rtol=1e-5, atol=1e-3
    )


def test_a_cut_file_says_so_and_can_be_read(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", [Signal("A1", noise(500), 100)], declared=9)
    info = opened(path).info
    assert info.samples == 500
    assert info.notes == ("the header promises 9 records, the file holds 5",)


def test_pauses_that_the_file_denies_are_told(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", [Signal("A1", noise(300), 100)], starts=[0, 1, 90])
    path.write_bytes(path.read_bytes().replace(b"EDF+D", b"EDF+C", 1))
    info = opened(path).info
    assert info.samples == 300
    assert info.notes == ("the file says it has no pauses, but its clock is off by up to 88.0 s",)


def test_a_damaged_file_is_one_line_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "Jane Doe"
    folder.mkdir()
    (folder / "x.edf").write_bytes(b"0       nonsense")
    with pytest.raises(DataError) as caught:
        opened(folder)
    text = str(caught.value)
    assert text.startswith("x: ")
    assert "Doe" not in text
    assert "\n" not in text


def test_the_name_in_the_header_reaches_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_edf(
        tmp_path / "a.edf", [Signal("A1", noise(500), 100)], patient="123 F 01-JAN-1970 Jane_Doe"
    )
    recording = opened(path)
    recording.read(0, 100)
    assert "Doe" not in repr(recording.info)
    assert capfd.readouterr() == ("", "")


def test_a_recording_travels_to_another_process(tmp_path: Path) -> None:
    recording = opened(write_edf(tmp_path / "a.edf", [Signal("A1", noise(500), 100)]))
    before = recording.read(10, 60)
    again = pickle.loads(pickle.dumps(recording))
    np.testing.assert_array_equal(again.read(10, 60), before)
    recording.close()
    np.testing.assert_array_equal(recording.read(10, 60), before)


def test_a_file_without_brain_signal_is_refused(tmp_path: Path) -> None:
    path = write_edf(tmp_path / "a.edf", [Signal("ECG", noise(500), 100)])
    with pytest.raises(DataError, match=r"a: no channel is left .ECG: type MISC"):
        opened(path)


def test_flat_channels_are_named(tmp_path: Path) -> None:
    signals = [Signal("A1", noise(500), 100), Signal("A2", np.zeros(500, int), 100)]
    assert opened(write_edf(tmp_path / "a.edf", signals)).info.notes == (
        "flat where looked at: A2",
    )


def test_files_that_are_no_edf_say_so(tmp_path: Path) -> None:
    for name, held, message in (
        ("empty", b"", "it is empty"),
        ("text", b"hello" * 100, "it does not begin as EDF or BDF"),
    ):
        path = tmp_path / f"{name}.edf"
        path.write_bytes(held)
        with pytest.raises(DataError, match=message):
            open_recording(find_recordings(path)[0])
