import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from manyhead.autoint import cache as caches
from manyhead.autoint.cache import built_once
from manyhead.autoint.data import TableData
from manyhead.autoint.feature_map import EncodedField, EncodedFields, write_map
from manyhead.autoint.parquet import EncodedWriter
from manyhead.autoint.rows import Rows
from manyhead.autoint.store import Block
from manyhead_core.errors import ConfigError, DataError

SCHEMA = """
label: click
group: user
time: day
segments: [device]
fields:
  - {name: city, kind: category}
  - {name: price, kind: number, scaling: none}
  - {name: tags, kind: list}
"""
ROWS = 400


def write_table(folder: Path, label: object = None) -> Path:
    draw = np.random.default_rng(0)
    price = np.arange(ROWS, dtype=float)
    frame = pd.DataFrame(
        {
            "click": draw.integers(0, 2, ROWS) if label is None else label,
            "user": draw.integers(0, 40, ROWS),
            "day": np.arange(ROWS) // 20,
            "device": draw.choice(["phone", "desk"], ROWS),
            "city": draw.choice(list("abcdef"), ROWS),
            "price": price,
            "tags": draw.choice(["x", "x|y", "", "z"], ROWS),
        }
    )
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "rows.csv", index=False)
    return folder


@pytest.fixture
def make(tmp_path):
    root = write_table(tmp_path / "raw")
    schema = tmp_path / "schema.yaml"
    schema.write_text(SCHEMA)

    def build(**options) -> TableData:
        given = {"root": root, "schema": schema, "cache": tmp_path / "cache", "batch_size": 64}
        return TableData(**(given | options))

    return build


def rows_of(data: TableData, part: str) -> list[int]:
    return torch.cat([block.row for block in data.cache.store(part).blocks()]).tolist()


def encoded_folder(folder: Path, labels: tuple[int, ...] = (0, 1, 0, 1)) -> Path:
    fields = EncodedFields("click", [EncodedField("a", "category", 0, 9)], 9)
    label = np.array(labels, np.float32)
    index = np.arange(len(labels), dtype=np.int32)[:, None]
    row = np.arange(len(labels))
    rows = Block(index, np.ones_like(index, np.float32), (), label, row, row)
    folder.mkdir(exist_ok=True)
    for part in ("train", "valid"):
        with EncodedWriter(folder / f"{part}.parquet", fields) as writer:
            writer.append(rows)
    write_map(folder, fields)
    return folder


def test_rows_reach_the_batches_with_their_values(make, tmp_path):
    data = make()
    data.setup("fit")
    assert data.net_overrides() == {
        "num_features": data.preprocessor.num_features,
        "num_fields": 3,
    }
    table = pd.read_csv(tmp_path / "raw" / "rows.csv")
    batches = list(data.train_dataloader())
    assert [len(batch.label) for batch in batches] == [64] * 5
    for batch in batches:
        rows = batch.row.numpy()
        np.testing.assert_array_equal(batch.value[:, 1].numpy(), table["price"][rows])
        np.testing.assert_array_equal(batch.label.numpy(), table["click"][rows])
    rows = [rows_of(data, part) for part in caches.PARTS]
    assert [len(part) for part in rows] == [320, 40, 40]
    assert sorted(row for part in rows for row in part) == list(range(ROWS))


def test_the_second_start_reads_the_cache(make, monkeypatch):
    first = make()
    first.prepare()
    first.prepare()
    monkeypatch.setattr(TableData, "_encode", None)
    second = make()
    second.prepare()
    assert second.cache.folder == first.cache.folder
    ours, theirs = first.preprocessor.state(), second.preprocessor.state()
    assert json.loads(json.dumps(ours[0])) == theirs[0]
    assert all(torch.equal(ours[1][name], theirs[1][name]) for name in ours[1])


def folder_of(data: TableData) -> Path:
    data.prepare()
    return data.cache.folder


def test_what_changes_the_rows_changes_the_cache(make, tmp_path):
    first = folder_of(make())
    assert folder_of(make(batch_size=3, seed=8, window_rows=10)) == first
    others = [{"split_seed": 1}, {"min_count": 5}, {"hash_buckets": 8}, {"split": "time"}]
    folders = {first, *(folder_of(make(**options)) for options in others)}
    write_table(tmp_path / "raw", label=np.arange(ROWS) % 2)
    assert len(folders | {folder_of(make())}) == 6


def test_the_raw_folder_is_left_alone(make, tmp_path):
    before = sorted((tmp_path / "raw").rglob("*"))
    make().prepare()
    assert sorted((tmp_path / "raw").rglob("*")) == before
    with pytest.raises(ConfigError, match=r"data\.cache: .* lies in the folder of the raw data"):
        make(cache=tmp_path / "raw" / "cache").prepare()


def test_test_rows_do_not_shape_the_encoding(make, tmp_path):
    data = make(split="time", min_count=1)
    data.prepare()
    table = pd.read_csv(tmp_path / "raw" / "rows.csv")
    table.loc[rows_of(data, "test"), "city"] = "only in test"
    table.to_csv(tmp_path / "raw" / "rows.csv", index=False)
    changed = make(split="time", min_count=1)
    changed.prepare()
    assert changed.net_overrides() == data.net_overrides()
    block = changed.cache.store("test").block(0)
    assert len(block.index[:, 0].unique()) == 1


def test_groups_stay_together(make):
    data = make(split="group")
    data.prepare()
    groups = [set(data.cache.store(part).block(0).group.tolist()) for part in caches.PARTS]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert -1 not in groups[0]


def test_segments_belong_to_the_rows(make, tmp_path):
    data = make()
    data.prepare()
    table = pd.read_csv(tmp_path / "raw" / "rows.csv")
    rows = rows_of(data, "test")
    assert data.segments("test").loc[rows, "device"].tolist() == table["device"][rows].tolist()


def test_the_written_split_can_be_used_again(make, tmp_path):
    data = make(split_seed=5)
    data.write_split(tmp_path)
    again = make(split=str(tmp_path / "split.csv"))
    again.prepare()
    assert [rows_of(again, part) for part in caches.PARTS] == [
        rows_of(data, part) for part in caches.PARTS
    ]


def test_a_large_split_is_written_as_its_recipe(make, tmp_path, monkeypatch):
    monkeypatch.setattr("manyhead.autoint.data.SPLIT_FILE_ROWS", 100)
    make(split_seed=5).write_split(tmp_path)
    recipe = json.loads((tmp_path / "split.json").read_text())
    assert recipe["split"]["seed"] == 5
    assert recipe["rows"] == {"train": 320, "validation": 40, "test": 40}
    assert not (tmp_path / "split.csv").exists()


def test_the_order_follows_the_seed_of_the_run(make, monkeypatch):
    def first(data: TableData) -> list[int]:
        return next(iter(data.train_dataloader())).row.tolist()

    plain = first(make())
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert first(make()) == first(make(seed=7))
    assert first(make()) != plain
    assert first(make(seed=0)) == plain


def test_encoded_parquet_is_taken_as_it_is(tmp_path):
    data = TableData(encoded_folder(tmp_path / "raw"), "encoded", cache=tmp_path / "cache")
    data.setup("fit")
    assert data.net_overrides() == {"num_features": 9, "num_fields": 1}
    assert data.preprocessor.field_names == ["a"]
    assert next(iter(data.val_dataloader())).index[:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"data\.split: the test part is empty"):
        data.setup("test")


def test_mistakes_are_named_in_one_line(make, tmp_path):
    cases = [
        ({"root": tmp_path / "nowhere"}, r"data\.root: .*nowhere does not exist"),
        ({"format": "encoded", "schema": None}, r"holds no feature_map\.json"),
        ({"format": "criteo", "schema": None}, "train"),
        ({"format": "sqlite"}, r"data\.format: 'sqlite' is not known"),
        ({"split": "missing.csv"}, r"data\.split: 'missing\.csv' is no file and none of auto"),
        ({"batch_size": 0}, r"data\.batch_size: must be at least 1"),
        ({"mode": "reference", "hash_buckets": 5}, r"data\.hash_buckets"),
        ({"device": "cuda"}, r"data\.device: is cuda, but the run is on the CPU"),
    ]
    for options, message in cases:
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            make(**options).train_dataloader()
        assert "\n" not in str(caught.value)


def test_training_labels_of_one_class_are_refused(tmp_path):
    root = encoded_folder(tmp_path / "raw", (1, 1, 1))
    data = TableData(root, "encoded", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="all 3 training labels are 1"):
        data.prepare()
    assert not list((tmp_path / "cache" / "autoint").iterdir())


def test_a_cache_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache: cannot write .*; pass another folder"):
        make(cache=tmp_path / "file").prepare()


def finish(folder: Path) -> None:
    (folder / caches.META).write_text("{}")


def test_an_interrupted_build_starts_clean(tmp_path, monkeypatch):
    def fail(folder: Path) -> None:
        (folder / "train.arrow").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_once(tmp_path, "x", fail)
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / "x.building-killed"
    killed.mkdir()
    built_once(tmp_path, "y", finish)
    assert killed.exists()  # may be alive
    monkeypatch.setattr(caches, "STALE_SECONDS", -1)
    built_once(tmp_path, "x", finish)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_of_two_builds_at_once_the_first_wins(tmp_path):
    def overtaken(folder: Path) -> None:
        built_once(tmp_path, "x", finish)
        (tmp_path / "x" / "first").touch()
        finish(folder)

    assert (built_once(tmp_path, "x", overtaken).folder / "first").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_processes_wait_for_the_first(tmp_path, monkeypatch):
    def never(folder: Path) -> None:
        raise AssertionError(folder)

    def arrive(_: float) -> None:
        built = tmp_path / "built"
        built.mkdir()
        finish(built)
        shutil.move(built, tmp_path / "x")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(caches.time, "sleep", arrive)
    assert built_once(tmp_path, "x", never).folder == tmp_path / "x"


class Recorder(LightningModule):
    """Trains one weight and notes the rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows: list[list[int]] = []

    def training_step(self, batch: Rows, _: int) -> torch.Tensor:
        self.rows.append(batch.row.tolist())
        return (self.weight - batch.label).square().mean()

    def validation_step(self, batch: Rows, _: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data: TableData, steps: int, folder: Path, resume: Path | None = None) -> list[list[int]]:
    net = Recorder()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(net, data, ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return net.rows


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_resumed_fit_meets_the_batches_that_would_have_come(make, tmp_path, stop):
    whole = fit(make(), 12, tmp_path)
    first = fit(make(), stop, tmp_path)
    rest = fit(make(), 12, tmp_path, tmp_path / f"{stop}.ckpt")
    assert first + rest == whole
