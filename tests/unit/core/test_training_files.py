"""Run folders, metrics tables, results and plain values, without a training run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pandas as pd
import pytest

from manyhead_core.errors import UserError
from manyhead_core.training import results, run_folder
from manyhead_core.training.plain import from_plain, to_plain


def test_claims_take_the_next_number(tmp_path):
    first = run_folder.claim(tmp_path, "app", "config")
    (tmp_path / "app/config/10").mkdir()
    assert (first.name, run_folder.claim(tmp_path, "app", "config").name) == ("0", "11")


def test_other_processes_name_a_folder_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "global_rank", lambda: 1)
    folder = run_folder.claim(tmp_path, "app", "config")
    assert folder.name == "0"
    assert not folder.exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "app").touch()
    with pytest.raises(UserError, match="--runs: cannot write"):
        run_folder.claim(tmp_path, "app", "config")


def test_the_owner_of_a_checkpoint():
    assert run_folder.owner(Path("runs/a/b/0/checkpoints/best.ckpt")) == Path("runs/a/b/0")
    assert run_folder.owner(Path("downloads/best.ckpt")) is None


def table(folder):
    (logger,) = (
        item for item in run_folder.loggers(folder) if isinstance(item, run_folder.MetricsTable)
    )
    return logger


def rows(folder):
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(lines)]


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    folder = tmp_path / "app/config/0"
    table(folder).log_metrics({"loss": 0.5}, step=9)
    assert rows(folder) == [{"loss": "0.5", "step": "9"}]


def test_a_second_start_goes_on_with_the_table(tmp_path):
    folder = tmp_path / "app/config/0"
    first = table(folder)
    for step in (9, 19, 29):
        first.log_metrics({"loss": step / 100}, step=step)
    second = table(folder)
    second.experiment.keep(before_step=20)
    second.log_metrics({"loss": 0.0, "rate": 0.1}, step=29)
    assert rows(folder) == [
        {"loss": "0.09", "step": "9"},
        {"loss": "0.19", "step": "19"},
        {"loss": "0.0", "rate": "0.1", "step": "29"},
    ]


def test_groups_are_hashed_and_missing_columns_filled():
    frame = results.completed(
        pd.DataFrame({"score": [0.1, 0.2, 0.3], "label": [0, 1, 0], "group": [7, -1, 7]})
    )
    assert list(frame) == ["id", "group", "site", "label", "status", "score"]
    first, none, again = frame["group"]
    assert first == again != none == ""
    assert len(first) == 12
    assert first == results.hashed(7)
    assert list(frame["id"]) == [0, 1, 2]


@pytest.mark.parametrize("identity", [{"config_hash": "b"}, {"config_hash": "a", "more": "c"}])
def test_earlier_results_of_another_identity_are_moved(tmp_path, identity):
    for number in range(2):
        (tmp_path / "metrics.json").write_text(json.dumps({"config_hash": "a"}), encoding="utf-8")
        (tmp_path / "predictions.csv").write_text(str(number), encoding="utf-8")
        results.keep_earlier(tmp_path, identity)
        assert not (tmp_path / "predictions.csv").exists()
        kept = tmp_path / f"previous-{number}/predictions.csv"
        assert kept.read_text(encoding="utf-8") == str(number)


def test_results_of_the_same_identity_stay(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"config_hash": "a"}), encoding="utf-8")
    results.keep_earlier(tmp_path, {"config_hash": "a"})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.5


def build(outer: Outer, name: str = "x") -> None:
    """A function with a config."""


def test_plain_values_and_back():
    values = {"outer": Outer(Inner((3, 4)), 0.1), "name": "y"}
    plain = to_plain(values)
    assert plain == {"outer": {"inner": {"widths": [3, 4]}, "rate": 0.1}, "name": "y"}
    assert json.loads(json.dumps(plain)) == plain
    assert from_plain(build, plain) == values
    assert to_plain({"path": Path("a"), "colour": Colour.RED}) == {"path": "a", "colour": "red"}
