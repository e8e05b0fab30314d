"""The data module: parts, scales, what training gets, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from manyhead.acmil.data import BagData
from manyhead_core.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parent))

from feature_folder import write_features, write_slides


def data(root: Path, **options: Any) -> BagData:
    if not (root / "labels.csv").exists():
        write_slides(root)
    return BagData(root / "features", root / "labels.csv", **options)


def test_sizes_of_the_network_follow_from_the_data(tmp_path):
    expected = {"feature_dim": 6, "num_classes": 2, "target": "classes"}
    assert data(tmp_path).net_overrides() == expected


def test_scales_see_the_training_part_alone(tmp_path):
    found = data(tmp_path, normalise="train")
    found.prepare()
    train = np.concatenate([found.source.read(int(k)) for k in found.parts["train"]])
    np.testing.assert_allclose(found.preprocessor.mean, train.astype(float).mean(0), rtol=1e-5)
    batch = next(iter(found.test_dataloader()))
    raw = found.source.read(int(batch.number))
    expected = (raw - found.preprocessor.mean) / found.preprocessor.scale
    np.testing.assert_allclose(batch.features.numpy(), expected, rtol=1e-5)


def test_the_written_split_gives_the_same_split(tmp_path):
    first = data(tmp_path, split_seed=5)
    first.prepare()
    first.write_split(tmp_path / "run")
    assert not (tmp_path / "run/left_out.csv").exists()
    again = data(tmp_path, split=str(tmp_path / "run/split.csv"))
    again.prepare()
    for name, numbers in first.parts.items():
        np.testing.assert_array_equal(again.parts[name], numbers)


def test_slides_that_were_left_out_are_written(tmp_path):
    write_slides(tmp_path)
    (tmp_path / "features/s07.h5").unlink()
    found = data(tmp_path)
    found.prepare()
    found.write_split(tmp_path / "run")
    table = pd.read_csv(tmp_path / "run/left_out.csv")
    assert table.to_dict("records") == [{"slide_id": "s07", "reason": "no features"}]
    assert "s07" not in set(pd.read_csv(tmp_path / "run/split.csv")["id"])


def test_the_seed_of_the_run_splits_where_none_is_given(tmp_path, monkeypatch):
    parts = []
    for seed in (1, 2, 1):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        found = data(tmp_path, split_seed=None)
        found.prepare()
        parts.append(found.parts["test"].tolist())
    assert parts[0] == parts[2] != parts[1]


def test_without_a_validation_part_there_is_no_loader(tmp_path):
    found = data(tmp_path, split="fold", validation_folds=0)
    assert found.val_dataloader() == []
    with pytest.raises(DataError, match="the validation part is empty"):
        found.setup("validate")


def test_weights_of_the_classes_average_to_one_over_training(tmp_path):
    found = data(tmp_path)
    weights = found.class_weights()
    label = found.source.frame["label"].to_numpy()[found.parts["train"]]
    assert weights[label].mean().item() == pytest.approx(1)


def test_numbers_are_standardised_over_training(tmp_path):
    write_slides(tmp_path)
    table = pd.read_csv(tmp_path / "labels.csv")
    table["label"] = np.arange(len(table)) * 10.0
    table.to_csv(tmp_path / "labels.csv", index=False)
    found = data(tmp_path, target="regression")
    labels = np.concatenate([batch.label for batch in found.train_dataloader()])
    assert labels.mean() == pytest.approx(0, abs=1e-6)
    assert labels.std() == pytest.approx(1, abs=1e-6)
    assert found.net_overrides()["target"] == "regression"


@pytest.mark.parametrize("target", ["classes", "ordinal", "regression", "survival"])
def test_every_target_gives_batches(tmp_path, target):
    write_slides(tmp_path)
    table = pd.read_csv(tmp_path / "labels.csv")
    table["event"] = 1
    table.to_csv(tmp_path / "labels.csv", index=False)
    found = data(tmp_path, target=target, batch_bags=4)
    batch = next(iter(found.train_dataloader()))
    assert len(batch.label) == len(batch.event) == 4
    assert batch.label.dtype.is_floating_point == (target in ("regression", "survival"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_bags": 0}, "data.batch_bags: must be at least 1, got 0"),
        ({"max_patches": -1}, "data.max_patches: must be at least 0"),
        ({"sampling": "balanced", "target": "survival"}, "balanced needs classes"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        data(tmp_path, **options)


def test_a_training_part_of_one_class(tmp_path):
    write_slides(tmp_path)
    split = pd.DataFrame({"id": ["s00", "s01", "s02"], "split": ["train", "train", "test"]})
    split.to_csv(tmp_path / "split.csv", index=False)
    with pytest.raises(DataError, match="all 2 training bags are of the class 0"):
        data(tmp_path, split=str(tmp_path / "split.csv")).prepare()
    split["split"] = "test"
    split.to_csv(tmp_path / "split.csv", index=False)
    with pytest.raises(DataError, match="no bag of 24 trains"):
        data(tmp_path, split=str(tmp_path / "split.csv")).prepare()


def test_a_slide_that_is_not_finite_ends_training_with_its_name(tmp_path):
    write_slides(tmp_path)
    write_features(tmp_path / "features/s03.h5", np.full((3, 6), np.inf, np.float32))
    found = data(tmp_path, fractions=(1, 0, 0))
    with pytest.raises(DataError, match="s03: 3 of 3 features"):
        list(found.train_dataloader())
