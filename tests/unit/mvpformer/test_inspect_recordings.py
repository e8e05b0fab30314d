"""The report on recordings."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from manyhead.mvpformer.inspect import inspect
from manyhead_core.errors import DataError

RATE = 64.0


def signal(channels: int, seconds: float, seed: int = 0) -> np.ndarray:
    """Noise of 50 µV."""
    shape = (channels, round(seconds * RATE))
    return 50 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_npz(path: Path, values: np.ndarray, seizures: object = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {} if seizures is None else {"seizures": np.asarray(seizures, float).reshape(-1, 2)}
    np.savez(path, signal=values, sfreq=RATE, **more)


def write_swec(root: Path, folder: str, seed: int, seizures: list[tuple[float, float]]) -> None:
    path = root / folder / f"{folder}_total.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file.attrs["sampling_rate"] = RATE
        file["data/ieeg"] = signal(3, 60, seed)
        kind = [("onsets", float), ("offsets", float)]
        file["data/seizures"] = np.array(seizures, dtype=kind)


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "recordings.csv", keep_default_na=False).set_index("recording")


def test_what_each_recording_is_and_why_a_run_leaves_it_out(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    write_npz(root / "ann_1.npz", signal(4, 60), [(20, 30)])
    write_npz(root / "ann_2.npz", signal(6, 30, 1), [])
    write_npz(root / "ben_1.npz", signal(4, 60, 2))
    write_npz(root / "ben_2.npz", signal(4, 3, 3), [])
    write_npz(root / "cem_1.npz", signal(130, 20, 4), [])
    write_npz(root / "cem_2.npz", signal(4, 60, 5) * 1e-6, [])
    (root / "cem_3.npz").write_bytes(b"nothing")
    assert inspect(None, root, rate=RATE, out=out) == 0
    table = rows_of(out)
    problems = table["problem"][table["problem"] != ""].to_dict()
    assert problems.pop("cem_1").startswith("130 channels")
    assert "pass units=V" in problems.pop("cem_2")
    assert problems.pop("cem_3")
    assert problems == {
        "ben_1": "nobody annotated its seizures",
        "ben_2": "3.0 s without a stretch of 5 s",
    }
    one = table.loc["ann_1"]
    assert one[["channels", "used", "seizures", "steps"]].astype(int).tolist() == [4, 4, 1, 12]
    # A step of 5 s that only touches the seizure from 20 to 30 s counts, as in training.
    assert one["seizure_steps"] == 4
    assert one["seizure_seconds"] == "10"
    assert table.loc["cem_3", "channels"] == 0
    numbers = json.loads((out / "summary.json").read_text())["numbers"]
    assert numbers["recordings"] == "5 of 7 readable"
    assert numbers["patients"] == "3"
    assert numbers["annotated recordings"] == "4 of 5"
    assert numbers["seizures"] == "1 of 1 patients"
    shown = capsys.readouterr().out
    assert "Recordings that a run leaves out" in shown


def test_no_annotation_is_no_reason_in_pre_training(tmp_path):
    write_npz(tmp_path / "data/a_1.npz", signal(2, 30))
    assert inspect(None, tmp_path / "data", rate=RATE) == 2
    assert inspect(None, tmp_path / "data", rate=RATE, target="next_token") == 0


def test_a_table_of_seizures_takes_the_place_of_annotations(tmp_path):
    write_npz(tmp_path / "data/a_1.npz", signal(2, 30))
    (tmp_path / "times.csv").write_text("recording,onset,offset\na_1,5,9\nother,1,2\n")
    out = tmp_path / "out"
    options = {"rate": RATE, "seizures": tmp_path / "times.csv", "out": out}
    assert inspect(None, tmp_path / "data", **options) == 0
    assert rows_of(out).loc["a_1", "seizure_seconds"] == 4


def test_folders_of_one_patient_and_the_same_signal_twice(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    write_swec(root, "ID01", 1, [(10.0, 20.0)])
    write_swec(root, "ID20", 1, [(10.0, 20.0)])
    write_swec(root, "ID21", 2, [])
    assert inspect(None, root, rate=RATE, out=out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["one_patient"] == {"ID20": ["ID01", "ID20"]}
    assert summary["same_signal"] == [["ID01", "ID20"]]
    assert summary["numbers"]["patients"] == "2"
    assert list(rows_of(out)["patient"]) == [1, 1, 2]
    shown = capsys.readouterr()
    assert "One patient under several names" in shown.out
    assert "ID20 to ID40 again" in shown.err


def test_flat_channels_are_named_and_dropped_on_demand(tmp_path, capsys):
    values = signal(4, 30)
    values[2] = 3.0
    write_npz(tmp_path / "data/a_1.npz", values, [(5, 10)])
    out = tmp_path / "out"
    assert inspect(None, tmp_path / "data", rate=RATE, out=out) == 0
    assert json.loads((out / "summary.json").read_text())["flat_channels"] == {"a_1": ["3"]}
    assert "Flat where looked at" in capsys.readouterr().out
    inspect(None, tmp_path / "data", rate=RATE, flat="drop", out=out)
    row = rows_of(out).loc["a_1"]
    assert row["used"] == 3
    assert row["dropped"].startswith("3: flat")


def test_long_zeros_become_gaps_when_told_so(tmp_path):
    values = signal(3, 200)
    values[:, 4000:10000] = 0
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    (root / "ID05").mkdir()
    with h5py.File(root / "ID05/ID05_total.h5", "w") as file:
        file.attrs["sampling_rate"] = RATE
        file["data/ieeg"] = values
        file["data/seizures"] = np.array([(10.0, 20.0)], [("onsets", float), ("offsets", float)])
    assert inspect(None, root, rate=RATE) == 2
    assert inspect(None, root, rate=RATE, zeros="keep", out=out) == 0
    row = rows_of(out).loc["ID05"]
    assert row["gaps"] == 1
    assert row["gap_seconds"] == pytest.approx(6000 / RATE, abs=1.0)
    assert row["steps"] == 12 + 8


def test_a_folder_without_recordings(tmp_path):
    with pytest.raises(DataError, match="holds no recordings"):
        inspect(None, tmp_path)
