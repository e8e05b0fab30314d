"""Splits of recordings: whole patients, both kinds everywhere, duplicates refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.mvpformer.patients import canonical_patient
from manyhead.mvpformer.splits import SplitOptions, assign
from manyhead_core.errors import ConfigError, DataError


def frame_of(patients: list[str], seizures: list[float], format: str = "bids") -> pd.DataFrame:
    """Recordings named r0, r1 and so on."""
    return pd.DataFrame(
        {
            "id": [f"r{k}" for k in range(len(patients))],
            "folder": patients,
            "patient": [canonical_patient(name, format) for name in patients],
            "format": format,
            "part": "",
            "seizures": seizures,
        }
    )


@pytest.fixture
def frame() -> pd.DataFrame:
    """Twenty patients with two recordings each; every second patient has seizures."""
    names = [f"p{k // 2}" for k in range(40)]
    return frame_of(names, [float(k // 2 % 2 == 0) for k in range(40)])


def by_patient(frame: pd.DataFrame, codes: np.ndarray) -> dict[str, set[int]]:
    return {name: set(codes[rows]) for name, rows in frame.groupby("patient").indices.items()}


@pytest.mark.parametrize("options", [SplitOptions(), SplitOptions(by="fold", fold=2)])
def test_a_patient_is_in_one_part(frame: pd.DataFrame, options: SplitOptions) -> None:
    codes = assign(frame, options)
    assert set(codes) == {0, 1, 2}
    assert all(len(parts) == 1 for parts in by_patient(frame, codes).values())


def test_every_part_has_patients_with_seizures_and_without(frame: pd.DataFrame) -> None:
    codes = assign(frame, SplitOptions())
    table = pd.crosstab(frame["seizures"], codes) // 2
    assert table.sum(axis=0).tolist() == [14, 2, 4]
    assert table.loc[1.0].tolist() == [7, 1, 2]


def test_the_seed_decides(frame: pd.DataFrame) -> None:
    first, again = assign(frame, SplitOptions()), assign(frame, SplitOptions())
    np.testing.assert_array_equal(first, again)
    assert (first != assign(frame, SplitOptions(seed=1))).any()


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (5, [3, 1, 1]), (8, [5, 1, 2])]
)
def test_few_patients_leave_something_to_test(count: int, expected: list[int]) -> None:
    codes = assign(frame_of([f"p{k}" for k in range(count)], [1.0] * count), SplitOptions())
    assert np.bincount(codes, minlength=3).tolist() == expected


def test_every_patient_tests_in_one_fold(frame: pd.DataFrame) -> None:
    tested = np.zeros(len(frame), int)
    for fold in range(5):
        codes = assign(frame, SplitOptions(by="fold", fold=fold, validation_folds=2))
        tested += codes == 2
        assert pd.Series(frame["seizures"][codes == 2]).tolist().count(1.0) == 4
        assert np.bincount(codes).tolist() == [16, 16, 8]
    assert (tested == 1).all()


def test_the_published_division_of_the_swec_release_shares_18_patients() -> None:
    names = [f"ID{k:02d}" for k in range(1, 69)]
    frame = frame_of(names, [1.0] * 68, "swec")
    with pytest.raises(DataError, match=r"18 of 50 patients are in more than one part .*ID01 to"):
        assign(frame, SplitOptions(by="official"))
    dropped = assign(frame, SplitOptions(by="official", shared="drop"))
    assert np.bincount(dropped + 1).tolist() == [18, 18, 0, 32]
    kept = assign(frame, SplitOptions(by="official", shared="keep"))
    assert np.bincount(kept).tolist() == [18, 0, 50]


def test_parts_that_come_with_the_data() -> None:
    frame = frame_of(["a", "b", "c", "d"], [1.0, 0.0, 1.0, 0.0])
    frame["part"] = ["train", "validation", "test", ""]
    assert assign(frame, SplitOptions(by="official")).tolist() == [0, 1, 2, -1]
    frame["part"] = ""
    with pytest.raises(DataError, match="no official parts; use random, fold or a file"):
        assign(frame, SplitOptions(by="official"))


def test_files_name_recordings_or_patients(tmp_path: Path) -> None:
    frame = frame_of(["sub-a", "sub-b", "sub-c", "sub-c"], [1.0] * 4)
    table = tmp_path / "split.csv"
    table.write_text("id,split\nr0,train\nr1,val\nr2,test\n")
    assert assign(frame, SplitOptions(by=str(table))).tolist() == [0, 1, 2, -1]
    table.write_text("patient,split\na,train\nsub-b,Validation\nc,test\n")
    assert assign(frame, SplitOptions(by=str(table))).tolist() == [0, 1, 2, 2]
    listed = tmp_path / "split.json"
    listed.write_text(json.dumps({"train": ["sub-a"], "test": ["b", "c"]}))
    assert assign(frame, SplitOptions(by=str(listed))).tolist() == [0, 2, 2, 2]


def test_a_column_of_the_participants_table(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tfold\nsub-a\t30\ttrain\nsub-b\t40\ttest\nsub-c\t50\tn/a\n"
    )
    frame = frame_of(["sub-a", "sub-b", "sub-c"], [1.0] * 3)
    options = SplitOptions(by="column", column="fold")
    assert assign(frame, options, tmp_path).tolist() == [0, 2, -1]


def test_a_file_that_shares_patients_is_refused(tmp_path: Path) -> None:
    frame = frame_of(["a", "b", "b"], [1.0] * 3)
    table = tmp_path / "split.csv"
    table.write_text("id,split\nr0,train\nr1,train\nr2,test\n")
    with pytest.raises(DataError, match=r"1 of 2 patients .*--data.shared_patients drop"):
        assign(frame, SplitOptions(by=str(table)))
    assert assign(frame, SplitOptions(by=str(table), shared="drop")).tolist() == [0, 0, -1]
    assert assign(frame, SplitOptions(by=str(table), shared="keep")).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\nr0,train\nr0,test\n", "r0 is in two parts of split.csv, train and test"),
        ("id,split\nx,train\n", "names none of the 2 recordings; it names x, they are r0, r1"),
        ("id,split\nr0,learn\n", "'learn' in the column split is none of"),
        ("name,part\nr0,train\n", "its columns are name, part, not"),
        ("", "is no split file"),
    ],
)
def test_files_without_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "split.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        assign(frame_of(["a", "b"], [1.0, 1.0]), SplitOptions(by=str(table)))


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"learn": ["a"]}', '{"train": 3}', '"a"'])
def test_json_without_sense_is_refused(tmp_path: Path, text: str) -> None:
    listed = tmp_path / "split.json"
    listed.write_text(text)
    with pytest.raises(DataError, match=r"split\.json"):
        assign(frame_of(["a", "b"], [1.0, 1.0]), SplitOptions(by=str(listed)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SplitOptions(fractions=(0.5, 0.5, 0.5)), "data.fractions: .* sum to 1"),
        (SplitOptions(by="fold", fold=5), "data.fold: 5 is not one of 0 to folds - 1 = 4"),
        (SplitOptions(by="fold", validation_folds=4), "data.validation_folds"),
        (SplitOptions(by="nowhere.csv"), "'nowhere.csv' is no file and none of random"),
    ],
)
def test_options_without_sense_are_refused(
    frame: pd.DataFrame, options: SplitOptions, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(frame, options)


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(DataError, match="5 folds cannot be made of 2 patients; use 2 or fewer"):
        assign(frame_of(["a", "b"], [1.0, 1.0]), SplitOptions(by="fold"))
