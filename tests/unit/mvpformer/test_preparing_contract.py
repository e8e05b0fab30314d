from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from manyhead.mvpformer.preparing import ChannelContract, Prepared, PrepareOptions, compare
from manyhead_core.errors import DataError, WeightsError

sys.path.insert(0, str(Path(__file__).parent))
from array_recording import ArrayRecording, noise


def prepared(names: str, named: bool = True, **options: object) -> Prepared:
    parts = names.split()
    recording = ArrayRecording(noise(len(parts), 300), 512.0, parts, named=named)
    return Prepared(recording, PrepareOptions(**options))  # type: ignore[arg-type]


TRAINED = ChannelContract.of([prepared("A1 A2 A3"), prepared("A1 A2 A3")], rows=4)


def test_equal_recordings_agree_in_both_directions() -> None:
    assert TRAINED.names == ("A1", "A2", "A3")
    assert compare(TRAINED, prepared("A1 A2 A3")) == []
    assert compare(TRAINED, prepared("A3 A2 A1")) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (prepared("A2 A1 A3"), "stand in another order"),
        (prepared("A1 A2 B3"), "lacks A3 and has B3 in addition"),
        (prepared("A1 A2"), "2 channels, the network was trained with 3"),
        (prepared("A1 A2 A3", montage="average"), "set --montage none"),
        (prepared("A1 A2 A3", rate=256.0), "prepared at 256 Hz, the network was trained at 512"),
        (prepared("1 2 3", named=False), "order may be arbitrary"),
    ],
)
def test_every_difference_is_one_line(other, words) -> None:
    found = compare(TRAINED, other)
    assert words in "".join(found)
    assert all(line.startswith("rec: ") and "\n" not in line for line in found)


def test_too_many_channels_name_both_numbers() -> None:
    with pytest.raises(DataError, match=r"5 channels are more than the 4 rows.*--channels"):
        compare(TRAINED, prepared("A1 A2 A3 A4 A5"))
    with pytest.raises(DataError, match=r"3 channels are more than the 2 rows"):
        ChannelContract.of([prepared("A1 A2 A3")], rows=2)


def test_patients_with_their_own_channels_have_no_common_names() -> None:
    contract = ChannelContract.of([prepared("A1 A2 A3"), prepared("B1 B2")])
    assert (contract.names, contract.count, contract.named) == ((), (2, 3), True)
    assert compare(contract, prepared("C1 C2")) == []
    assert "trained with 2 to 3" in compare(contract, prepared("C1"))[0]
    numbers = ChannelContract.of([prepared("1 2", named=False)] * 2)
    assert (numbers.names, numbers.named) == ((), False)


def test_contract_through_json() -> None:
    state = json.loads(json.dumps(TRAINED.state()))
    assert ChannelContract.from_state(state) == TRAINED
    assert replace(TRAINED, rows=9) != TRAINED
    del state["count"]
    with pytest.raises(WeightsError, match="the channel contract is damaged"):
        ChannelContract.from_state(state)
