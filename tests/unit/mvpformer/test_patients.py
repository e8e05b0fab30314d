"""Two folders of the SWEC release that hold one patient are one patient."""

from __future__ import annotations

import pytest

from manyhead.mvpformer.patients import SAME, canonical_patient, official_part

# Channels of the folders ID01 to ID68: the counts of two folders of one patient agree.
CHANNELS = (
    "88 66 64 32 128 32 75 61 48 32 32 56 64 24 98 34 60 42 29 88 66 64 32 32 128 34 32 75 61 48 "
    "32 32 104 56 64 24 98 34 60 42 33 63 126 60 47 86 32 57 60 64 89 69 22 54 24 62 40 92 54 74 "
    "76 60 64 56 49 39 63 32"
)


def test_eighteen_pairs_of_folders_are_the_same_patient() -> None:
    names = {canonical_patient(f"ID{k:02d}") for k in range(1, 69)}
    assert len(names) == 50
    assert names == {f"ID{k:02d}" for k in range(19, 69)}


def test_channel_counts_of_the_pairs_agree() -> None:
    count = [int(part) for part in CHANNELS.split()]
    assert len(SAME) == 18
    for first, again in SAME.items():
        assert count[int(first[2:]) - 1] == count[int(again[2:]) - 1]


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("ID01", "swec", "ID20"),
        ("id1", "swec", "ID20"),
        ("ID01", "swec_mat", "ID01"),
        ("ID20", "swec", "ID20"),
        ("ID19", "swec", "ID19"),
        ("ID01", "bids", "ID01"),
        ("pt01", "swec", "pt01"),
    ],
)
def test_names_of_other_data_sets_stay(name: str, format: str, expected: str) -> None:
    assert canonical_patient(name, format) == expected


def test_the_published_division() -> None:
    assert [official_part(f"ID{k:02d}") for k in (1, 18, 19, 68)] == ["train"] * 2 + ["test"] * 2
    assert official_part("pt01") == ""
