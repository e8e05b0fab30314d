"""Training of bags: the recipe, its selection, and every network and target."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from sklearn.metrics import f1_score, roc_auc_score

from manyhead.acmil.data import BagData
from manyhead.acmil.model import ACMILConfig
from manyhead.acmil.networks import NETWORKS
from manyhead.acmil.schedule import learning_rate
from manyhead.acmil.task import ACMILTask, concordance, selection
from manyhead_core.errors import ConfigError
from manyhead_core.training.checkpoints import BestCheckpoint

sys.path.insert(0, str(Path(__file__).parent))

from feature_folder import WIDTH, write_slides

SMALL = {"feature_dim": WIDTH, "dim": 8, "hidden_dim": 8, "num_branches": 2, "num_masked": 2}
NO_EVENTS = torch.zeros(0)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults = {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, **quiet | defaults | options)


def fitted(root: Path, data: dict[str, Any], **options: Any) -> tuple[ACMILTask, Trainer]:
    seed_everything(0, verbose=False)
    net = options.pop("net", {})
    epochs = options.pop("max_epochs", 2)
    module = BagData(root / "features", root / "labels.csv", **data)
    module.prepare()
    sizes = module.net_overrides()
    task = ACMILTask(ACMILConfig(**SMALL | sizes | net), **options)
    run = trainer(root, max_epochs=epochs)
    run.fit(task, datamodule=module)
    return task, run


# Lightning's advice on workers and intervals.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_and_tests(tmp_path, network):
    write_slides(tmp_path)
    task, run = fitted(tmp_path, {"batch_bags": 4}, network=network)
    run.test(task, datamodule=run.datamodule, verbose=False)
    table = task.table
    assert set(table) == {"id", "label", "group", "site", "score_0", "score_1"}
    np.testing.assert_allclose(table["score_0"] + table["score_1"], 1)
    expected = [run.datamodule.source.frame["id"].iloc[k] for k in run.datamodule.parts["test"]]
    assert table["id"].tolist() == expected


@pytest.mark.parametrize("target", ["ordinal", "regression", "survival"])
def test_every_target_trains_and_its_table_has_the_labels_of_the_file(tmp_path, target):
    labels = pd.read_csv(write_slides(tmp_path))
    labels["event"] = np.arange(len(labels)) % 2
    labels["label"] = labels["label"] * 30 + np.arange(len(labels)) // 4
    if target == "ordinal":
        labels["label"] = labels["label"] % 3
    labels.to_csv(tmp_path / "labels.csv", index=False)
    task, run = fitted(tmp_path, {"target": target, "batch_bags": 4})
    run.test(task, datamodule=run.datamodule, verbose=False)
    merged = task.table.merge(labels, left_on="id", right_on="slide_id")
    np.testing.assert_allclose(merged["label_x"], merged["label_y"], rtol=1e-5)
    if target == "survival":
        assert (merged["event_x"] == merged["event_y"]).all()
    scores = [name for name in task.table if name.startswith("score")]
    assert scores == (["score_0", "score_1", "score_2"] if target == "ordinal" else ["score"])


def test_it_learns_what_is_planted(tmp_path):
    write_slides(tmp_path, 48)
    task, run = fitted(tmp_path, {}, lr=0.02, max_epochs=5, net={"num_masked": 1})
    run.test(task, datamodule=run.datamodule, verbose=False)
    assert roc_auc_score(task.table["label"], task.table["score_1"]) > 0.9


def test_the_rate_is_that_of_the_authors_before_every_step(tmp_path):
    write_slides(tmp_path)
    rates: list[float] = []

    class Spy(ACMILTask):
        def training_step(self, bags, batch_index):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(bags, batch_index)

    module = BagData(tmp_path / "features", tmp_path / "labels.csv", batch_bags=5)
    task = Spy(ACMILConfig(**SMALL), lr=1e-2, min_lr=1e-3, warmup_epochs=0.5)
    trainer(tmp_path, max_epochs=3).fit(task, datamodule=module)
    steps = len(rates) // 3
    expected = [
        learning_rate(k / steps, peak=1e-2, floor=1e-3, warmup=0.5, epochs=3)
        for k in range(len(rates))
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_steps_without_a_number_of_epochs_span_one_cosine(tmp_path):
    write_slides(tmp_path)
    task = ACMILTask(ACMILConfig(**SMALL), lr=1e-2)
    run = trainer(tmp_path, max_epochs=-1, max_steps=10)
    run.fit(task, datamodule=BagData(tmp_path / "features", tmp_path / "labels.csv"))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_packed_batch_gives_the_mean_of_its_bags(tmp_path):
    write_slides(tmp_path)
    module = BagData(tmp_path / "features", tmp_path / "labels.csv")
    module.prepare()
    torch.manual_seed(0)
    task = ACMILTask(ACMILConfig(**SMALL), entropy_weight=0.1).eval()
    weights = torch.tensor([0.5, 1.5])

    def total(bags):
        return torch.stack(list(task._terms(task(bags), bags, weights).values())).sum()

    batches = list(module._loader("train", 1))
    alone = torch.stack([total(bags) for bags in batches]).mean()
    (packed,) = module._loader("train", len(batches))
    torch.testing.assert_close(total(packed), alone, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(total(packed), list(task.net.parameters()))
    each = [torch.autograd.grad(total(bags), list(task.net.parameters())) for bags in batches]
    for found, parts in zip(ours, zip(*each, strict=True), strict=True):
        expected = torch.stack(parts).mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_selection_is_the_sum_of_macro_f1_and_macro_auc():
    torch.manual_seed(0)
    logits, label = torch.randn(40, 3), torch.arange(40) % 3
    found = selection(logits, label, NO_EVENTS, ACMILConfig(num_classes=3))
    auc = roc_auc_score(label, logits.double().softmax(1), multi_class="ovr", average="macro")
    f1 = f1_score(label, logits.argmax(1), average="macro")
    assert found["auroc"].item() == pytest.approx(auc, abs=1e-6)
    assert found["f1"].item() == pytest.approx(f1, abs=1e-6)
    assert found["score"].item() == pytest.approx(auc + f1, abs=1e-6)


def test_a_class_that_validation_does_not_hold_stays_out_of_the_mean():
    logits, label = torch.randn(40, 3), torch.arange(40) % 2
    found = selection(logits, label, NO_EVENTS, ACMILConfig(num_classes=3))
    scores = logits.double().softmax(1)
    each = [roc_auc_score(label == k, scores[:, k]) for k in range(2)]
    assert found["auroc"].item() == pytest.approx(np.mean(each), abs=1e-6)
    alone = selection(logits, torch.zeros(40), NO_EVENTS, ACMILConfig(num_classes=3))
    assert alone["auroc"] == 0.5


def test_concordance_counts_pairs_that_can_be_compared():
    time = torch.tensor([1.0, 2.0, 3.0, 4.0])
    event = torch.tensor([True, False, True, True])
    # Comparable: 0 with 1, 2, 3; 2 with 3. Of these 0-1 is a tie and 2-3 is wrong.
    risk = torch.tensor([2.0, 2.0, 0.0, 1.0])
    assert concordance(risk, time, event) == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert concordance(risk, time, event & False) == 0.5


def test_unknown_class_weights():
    with pytest.raises(ConfigError, match="'equal' is unknown; use none or balanced"):
        ACMILTask(class_weights="equal")


def test_without_a_validation_part_the_last_epoch_is_the_best(tmp_path):
    write_slides(tmp_path)
    module = BagData(tmp_path / "features", tmp_path / "labels.csv", fractions=(0.8, 0, 0.2))
    best = BestCheckpoint(tmp_path / "checkpoints", "val/score", "max")
    run = trainer(tmp_path, callbacks=[best], enable_checkpointing=True, max_epochs=3)
    run.fit(ACMILTask(ACMILConfig(**SMALL)), datamodule=module)
    saved = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert saved["epoch"] == 2
    assert best.best_model_score is None


def test_stopping_early_needs_a_validation_part(tmp_path):
    write_slides(tmp_path)
    module = BagData(tmp_path / "features", tmp_path / "labels.csv", fractions=(0.8, 0, 0.2))
    callbacks = [
        BestCheckpoint(tmp_path / "checkpoints", "val/score", "max"),
        EarlyStopping("val/score", strict=False),
    ]
    run = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(ConfigError, match="early_stopping: needs a validation part"):
        run.fit(ACMILTask(ACMILConfig(**SMALL)), datamodule=module)
