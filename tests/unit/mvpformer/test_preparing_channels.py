from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.preparing.choice import peakedness, spread
from manyhead.mvpformer.preparing.montage import contact, derive
from manyhead_core.errors import DataError

sys.path.insert(0, str(Path(__file__).parent))
from array_recording import ArrayRecording, noise


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("A1", ("A", 1)),
        ("A'12", ("A'", 12)),
        ("LA01", ("LA", 1)),
        ("EEG LA02-Ref", ("LA", 2)),
        ("POL B'3", ("B'", 3)),
        ("TP 4", ("TP", 4)),
        ("TP-4", ("TP", 4)),
        ("G64", ("G", 64)),
        ("17", None),
        ("Cz", None),
        ("A1-A2", None),
        ("A1-2", None),
        ("iEEG01", None),
        ("Hip_2_10", ("HIP_2", 10)),
    ],
)
def test_contact(name, place) -> None:
    assert contact(name) == place


def test_bipolar_pairs_neighbours_of_a_shaft_and_names_the_rest() -> None:
    names = ("A1", "A2", "A4", "B'2", "B'1", "C1", "DC", "A2", "E1", "E2")
    flat = np.arange(len(names)) == 9
    montage = derive("bipolar", names, np.ones(len(names), bool), flat)
    assert montage.names == ("A1-A2", "B'1-B'2")
    signal = np.arange(10, dtype=np.float32)[:, None] ** 2
    assert montage(signal)[:, 0].tolist() == [-1.0, 16.0 - 9.0]
    assert montage.dropped == {
        "A4": "bipolar: no neighbouring contact",
        "C1": "bipolar: no neighbouring contact",
        "DC": "bipolar: its name has no shaft and contact number",
        "A2": "bipolar: a second contact of that number",
        "E2": "bipolar: flat, it would show its neighbour",
        "E1": "bipolar: no neighbouring contact",
    }


def test_bipolar_over_a_grid_says_that_rows_are_joined() -> None:
    names = [f"G{i}" for i in range(1, 33)]
    prepared = Prepared(
        ArrayRecording(noise(32, 600), 512.0, names), PrepareOptions(montage="bipolar")
    )
    assert len(prepared.channels) == 31
    assert prepared.notes[0].startswith("G: so many contacts are a grid")


def test_bipolar_without_pairs_names_the_channels_and_the_remedy() -> None:
    recording = ArrayRecording(noise(2, 600), 512.0, ("0", "1"), named=False)
    with pytest.raises(
        DataError, match=r"none of its 2 channels \(0, 1\) is left.*--montage average"
    ):
        Prepared(recording, PrepareOptions(montage="bipolar"))


@pytest.mark.parametrize(("montage", "middle"), [("average", np.mean), ("median", np.median)])
def test_the_reference_is_that_of_all_channels(montage, middle) -> None:
    signal = noise(5, 600)
    options = PrepareOptions(montage=montage, channels="A4,a2")
    prepared = Prepared(ArrayRecording(signal, 512.0), options)
    wanted = signal[[3, 1]] - middle(signal.astype(np.float32), axis=0)
    np.testing.assert_allclose(prepared.read(0, 600), wanted, atol=1e-3)
    assert prepared.channels == ("A4", "A2")


def choose(signal: np.ndarray, **options: object) -> tuple[str, ...]:
    return Prepared(ArrayRecording(signal, 512.0), PrepareOptions(**options)).channels  # type: ignore[arg-type]


def test_rules_choose_and_keep_the_order() -> None:
    signal = noise(6, 20_000)
    signal *= np.array([1, 9, 2, 0, 8, 3])[:, None]
    assert choose(signal, channels="first", max_channels=3) == ("A1", "A2", "A3")
    assert choose(signal, channels="even", max_channels=3) == ("A1", "A3", "A6")
    assert choose(signal, channels="variance", max_channels=3) == ("A2", "A5", "A6")
    # The dead channel comes only when no other is left.
    assert "A4" not in choose(signal, channels="first", max_channels=5)
    assert "A4" in choose(signal, channels="kurtosis", max_channels=6)


def test_kurtosis_finds_the_spiky_channel() -> None:
    signal = noise(4, 20_000)
    signal[2, ::300] += 2000
    assert choose(signal, channels="kurtosis", max_channels=1) == ("A3",)


def test_an_offset_or_one_artefact_is_no_variance() -> None:
    signal = noise(3, 40_000)
    signal[1] *= 2
    signal[0] += np.linspace(0, 5e3, 40_000)
    signal[2, 15_000:15_400] += 1e5
    assert choose(signal, channels="variance", max_channels=1) == ("A2",)


def test_scores_against_numpy() -> None:
    signal = noise(3, 5000)
    np.testing.assert_allclose(spread([signal]), signal.var(axis=1))
    z = (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)
    np.testing.assert_allclose(peakedness([signal]), (z**4).mean(1) - 3, atol=1e-9)
    assert peakedness([np.ones((1, 9))]).tolist() == [0]


def test_the_seed_settles_where_is_looked() -> None:
    signal = noise(12, 200_000)
    first = choose(signal, channels="variance", max_channels=4, seed=1)
    assert first == choose(signal, channels="variance", max_channels=4, seed=1)
    found = {choose(signal, channels="variance", max_channels=4, seed=s) for s in range(5)}
    assert len(found) > 1


def test_the_choice_is_recorded() -> None:
    recording = ArrayRecording(noise(4, 4000), 512.0)
    prepared = Prepared(recording, PrepareOptions(channels="even", max_channels=2, seed=3))
    manifest = prepared.manifest()
    assert manifest["choice"]["rule"] == "even"
    assert manifest["choice"]["of"] == 4
    assert manifest["seed"] == 3
    assert set(manifest["dropped"]) == {"A2", "A3"}
    # What a rule leaves out is what was asked for: no remark on it.
    assert prepared.notes == ()


def test_more_channels_than_the_table_has_rows() -> None:
    signal = noise(140, 300)
    words = r"rec: 140 channels are more than the 128 rows of the model's channel table; choose 128"
    with pytest.raises(DataError, match=words):
        choose(signal)
    with pytest.raises(DataError, match="rec: 3 channels are more than the 2 rows"):
        choose(signal, channels="A1,A2,A3", max_channels=2)
    assert len(choose(signal, channels="even")) == 128


def test_names_that_do_not_exist_or_come_twice() -> None:
    signal = noise(3, 300)
    with pytest.raises(DataError, match=r"names A9, which is not among its 3 channels; did you"):
        choose(signal, channels="A1,A9")
    with pytest.raises(DataError, match="names A1 twice"):
        choose(signal, channels="A1,a1")


def test_channels_of_one_recording_for_another() -> None:
    first = choose(noise(4, 4000), channels="variance", max_channels=2)
    options = PrepareOptions(channels="variance", max_channels=2).with_names(first)
    assert Prepared(ArrayRecording(noise(4, 4000, seed=5), 512.0), options).channels == first
