"""The command that writes split files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from manyhead.mvpformer.data import RecordingData
from manyhead.mvpformer.split import split
from manyhead_core.errors import ConfigError, DataError

RATE = 64.0


def write(root: Path, name: str, seizures: int) -> None:
    """60 s of two channels."""
    root.mkdir(exist_ok=True)
    values = 50 * np.random.default_rng(len(name)).standard_normal((2, 3840)).astype(np.float32)
    times = np.array([(10.0 * k + 5, 10.0 * k + 10) for k in range(seizures)]).reshape(-1, 2)
    np.savez(root / f"{name}.npz", signal=values, sfreq=RATE, seizures=times)


def write_swec(root: Path, folder: str) -> None:
    (root / folder).mkdir(parents=True)
    with h5py.File(root / folder / f"{folder}_total.h5", "w") as file:
        file.attrs["sampling_rate"] = RATE
        generator = np.random.default_rng(0)
        file["data/ieeg"] = 50 * generator.standard_normal((2, 1920)).astype(np.float32)
        file["data/seizures"] = np.array([(5.0, 9.0)], [("onsets", float), ("offsets", float)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six patients with two recordings each; seizures in four of them."""
    for patient in range(6):
        for run in range(2):
            write(tmp_path / "data", f"p{patient}_{run}", int(patient < 4))
    return tmp_path / "data"


def test_a_run_takes_the_parts_and_patients_stay_together(root, tmp_path, capsys):
    out = tmp_path / "new/split.csv"
    split(None, out, root, fractions=(0.5, 0.25, 0.25))
    table = pd.read_csv(out)
    assert len(table) == 12
    patient = table["id"].str.partition("_")[0]
    assert (table.groupby(patient)["split"].nunique() == 1).all()
    shown = capsys.readouterr().out
    assert "with seizures" in shown
    assert "p0" not in shown
    data = RecordingData(root, split=str(out), rate=RATE, num_segments=2)
    data.prepare()
    for part, members in data.parts.items():
        assert set(data.frame["id"].iloc[members]) == set(table["id"][table["split"] == part])


def test_every_patient_is_in_one_test_fold(root, tmp_path):
    tested = []
    for fold in range(3):
        split(None, tmp_path / f"{fold}.csv", root, by="fold", folds=3, fold=fold)
        table = pd.read_csv(tmp_path / f"{fold}.csv")
        tested += table["id"][table["split"] == "test"].tolist()
    assert sorted(tested) == sorted(path.stem for path in root.glob("*.npz"))


def test_what_cannot_be_read_is_in_no_part(root, tmp_path, capsys):
    (root / "p0_0.npz").write_bytes(b"nothing")
    split(None, tmp_path / "split.csv", root)
    assert "p0_0" not in set(pd.read_csv(tmp_path / "split.csv")["id"])
    assert "1 recordings are left out, first p0_0" in capsys.readouterr().err


def test_official_parts_with_shared_patients_are_refused_with_this_command_s_option(tmp_path):
    for folder in ("ID01", "ID02", "ID20", "ID30"):
        write_swec(tmp_path / "swec", folder)
    out = tmp_path / "split.csv"
    with pytest.raises(DataError, match="ID01 to ID18") as caught:
        split(None, out, tmp_path / "swec", by="official")
    assert "pass --shared_patients drop" in str(caught.value)
    assert "data." not in str(caught.value)
    assert not out.exists()
    split(None, out, tmp_path / "swec", by="official", shared_patients="drop")
    assert dict(pd.read_csv(out).to_numpy()) == {"ID01": "train", "ID02": "train", "ID30": "test"}
    out.unlink()
    split(None, out, tmp_path / "swec")
    parts = dict(pd.read_csv(out).to_numpy())
    assert parts["ID01"] == parts["ID20"]


def test_a_file_that_exists_stays(root, tmp_path):
    (tmp_path / "split.csv").write_text("mine")
    with pytest.raises(DataError, match="exists already; name a new file"):
        split(None, tmp_path / "split.csv", root)
    assert (tmp_path / "split.csv").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"^--fractions: "):
        split(None, tmp_path / "other.csv", root, fractions=(0.5, 0.5, 0.5))
