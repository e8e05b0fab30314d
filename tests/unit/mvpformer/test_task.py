"""Training: losses, rate, threshold, selection, what learns, where it starts, and repeats."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted_seizures import NET, SEIZURES, data_of, serve_planted, task_of, trainer_of
from pytorch_lightning import Callback, seed_everything

from manyhead.mvpformer import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.events.postprocess import PostOptions, detect, runs
from manyhead.mvpformer.events.thresholds import choose_threshold
from manyhead.mvpformer.gathered import Gathered
from manyhead.mvpformer.initial import load_initial
from manyhead.mvpformer.losses import contrastive_loss, draw_negatives
from manyhead.mvpformer.series_windows import SeriesBatch
from manyhead.mvpformer.task import MVPFormerTask, augmented, learning_rate, scored
from manyhead.mvpformer.tracks import WindowBatch
from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.training.checkpoints import BestCheckpoint

# Lightning's advice on workers and intervals.
pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0}


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_planted(monkeypatch)


def state_of(task: MVPFormerTask) -> dict[str, torch.Tensor]:
    return copy.deepcopy(task.net.state_dict())


def windows(number: int = 4, seed: int = 0) -> WindowBatch:
    generator = torch.Generator().manual_seed(seed)
    signal = 50 * torch.randn(number, 3, 2, 32, generator=generator)
    return WindowBatch(signal, torch.arange(number) % 2, torch.arange(number))


def test_the_loss_of_classes_is_the_weighted_cross_entropy() -> None:
    task, batch = task_of(PLAIN).eval(), windows()
    weights = torch.tensor([0.3, 1.7])
    loss, _ = task._loss(batch, weights=weights)
    chance = task.net(batch.signal).logits.log_softmax(-1)[torch.arange(4), batch.label]
    own = weights[batch.label]
    torch.testing.assert_close(loss, -(own * chance).sum() / own.sum())


def test_the_loss_of_next_tokens_is_contrastive_with_the_options_given() -> None:
    options: dict[str, Any] = {"num_negatives": 5, "temperature": 0.3, "negatives": "mixed"}
    task, batch = task_of(PLAIN | {"target": "next_token"}, **options), windows()
    found, _ = task._loss(batch, generator=torch.Generator().manual_seed(3))
    rows = draw_negatives((4, 3, 2), 5, "mixed", generator=torch.Generator().manual_seed(3))
    output = task.net(batch.signal)
    expected = contrastive_loss(output.prediction, output.tokens, rows, 0.3)
    torch.testing.assert_close(found, expected.loss)


def test_the_loss_of_a_forecast_is_the_squared_error() -> None:
    task = task_of(PLAIN | {"target": "forecast", "horizon": 5})
    signal, future = windows().signal, torch.randn(4, 2, 5)
    empty = torch.zeros(4, dtype=torch.long)
    batch = SeriesBatch(signal, future, empty, empty, torch.zeros(4, 2), torch.ones(4, 2))
    loss, found = task._loss(batch)
    torch.testing.assert_close(loss, (found.prediction - future).square().mean())


def test_the_rate_rises_and_falls_along_half_a_cosine() -> None:
    factors = [learning_rate(step, 100, 0.1) for step in (0, 5, 10, 55, 100, 120)]
    np.testing.assert_allclose(factors, [0, 0.5, 1, 0.5, 0, 0], atol=1e-12)
    assert learning_rate(0, 100, 0.0) == 1


class Rates(Callback):
    """The rate that each step is taken with."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.found.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 2}, 24),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 3, "accumulate_grad_batches": 5}, 9),
    ],
    ids=["epochs", "steps alone", "accumulated"],
)
def test_the_schedule_spans_the_steps_of_the_run(
    recordings: None, tmp_path: Path, options: dict[str, Any], steps: int
) -> None:
    rates = Rates()
    trainer_of(tmp_path, callbacks=[rates], **options).fit(
        task_of(lr=1e-2, warmup=0.2), datamodule=data_of()
    )
    expected = [1e-2 * learning_rate(step, steps, 0.2) for step in range(steps)]
    np.testing.assert_allclose(rates.found, expected, rtol=1e-6)


def test_training_without_an_end_is_refused(recordings: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs: -1 without trainer\.max_steps"):
        trainer_of(tmp_path, max_epochs=-1).fit(task_of(), datamodule=data_of())


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    task, batch = task_of(PLAIN), windows(8)
    whole, _ = task._loss(batch)
    half = [task._loss(WindowBatch(*(part[k : k + 4] for part in batch)))[0] for k in (0, 4)]
    ours, theirs = (
        torch.autograd.grad(loss, list(task.net.head.parameters()))
        for loss in (whole, (half[0] + half[1]) / 2)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_few_windows_are_learned_by_heart() -> None:
    task, batch = task_of(PLAIN), windows(6)
    optimiser = torch.optim.AdamW(task.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = task._loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.01
    assert (task.net(batch.signal).logits.argmax(-1) == batch.label).all()


def test_what_is_planted_is_found_in_other_patients(recordings: None, tmp_path: Path) -> None:
    task, data = task_of(lr=1e-2), data_of()
    trainer = trainer_of(tmp_path, max_epochs=8)
    trainer.fit(task, datamodule=data)
    before = state_of(task)
    trainer.test(task, datamodule=data, verbose=False)
    table = task.table
    assert table is not None
    assert set(table["recording"]) == set(data.frame["id"].iloc[data.parts["test"]])
    assert (table["detected"] == table["label"]).mean() > 0.85
    torch.testing.assert_close(state_of(task), before, rtol=0, atol=0)


def test_detected_steps_are_the_events_of_the_post_processing(
    recordings: None, tmp_path: Path
) -> None:
    task, data = task_of(), data_of(min_s=4.0, merge_s=3.0)
    trainer = trainer_of(tmp_path)
    trainer.test(task, datamodule=data, verbose=False)
    table = task.table.sample(frac=1, random_state=0)
    # The network has learned nothing: shares that rise and fall take its place.
    table["score"] = np.random.default_rng(0).random(len(table))
    task.net.threshold.fill_(0.4)
    done = task.complete(table)
    assert done.index.equals(table.index)
    assert (done["threshold"] == np.float32(0.4)).all()
    options = PostOptions(median=3, threshold=float(np.float32(0.4)), merge_s=3.0, min_s=4.0)
    for _, rows in done.groupby("recording"):
        rows = rows.sort_values("start")
        start, stop, score = (rows[name].to_numpy() for name in ("start", "stop", "score"))
        found = detect(score, start, stop, options)
        assert runs(start, stop, rows["detected"].to_numpy() > 0) == found
    assert 0 < done["detected"].mean() < 1


@pytest.mark.parametrize("rule", ["f1", "false_alarms"])
def test_the_threshold_is_chosen_on_validation_and_kept_in_the_checkpoint(
    recordings: None, tmp_path: Path, rule: Any
) -> None:
    best = BestCheckpoint(tmp_path / "checkpoints", "val/score", "max")
    task, data = task_of(lr=1e-2, threshold=rule, max_false_alarms=0), data_of()
    trainer = trainer_of(tmp_path, callbacks=[best], enable_checkpointing=True)
    trainer.fit(task, datamodule=data)
    kept = MVPFormerTask.load_from_checkpoint(best.best_model_path)
    trainer_of(tmp_path).validate(kept, datamodule=data, verbose=False)
    assert set(kept.table["recording"]) == set(data.frame["id"].iloc[data.parts["validation"]])
    limit = 0 if rule == "false_alarms" else None
    chosen = choose_threshold(scored(kept.table), kept.post, alarms_per_day=limit)
    assert kept.net.threshold.item() == pytest.approx(chosen.threshold, abs=1e-5)
    assert kept.net.threshold.item() != 0.5


def test_validate_and_test_keep_the_threshold(recordings: None, tmp_path: Path) -> None:
    task, data = task_of(), data_of()
    task.net.threshold.fill_(0.123)
    trainer = trainer_of(tmp_path)
    trainer.validate(task, datamodule=data, verbose=False)
    trainer.test(task, datamodule=data, verbose=False)
    assert task.net.threshold.item() == pytest.approx(0.123)
    assert (task.table["threshold"] == np.float32(0.123)).all()


def test_a_threshold_that_is_given_holds_with_and_without_validation(
    recordings: None, tmp_path: Path
) -> None:
    for fractions in ((0.5, 0.25, 0.25), (0.75, 0.0, 0.25)):
        task = task_of(threshold=0.7)
        trainer = trainer_of(tmp_path, max_epochs=1)
        trainer.fit(task, datamodule=data_of(fractions=fractions))
        assert task.net.threshold.item() == pytest.approx(0.7)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    other = MVPFormerTask.load_from_checkpoint(tmp_path / "kept.ckpt", threshold=0.2)
    trainer_of(tmp_path).test(other, datamodule=data_of(), verbose=False)
    assert (other.table["threshold"] == np.float32(0.2)).all()


class Logged(Callback):
    """What every validation has logged."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            values = trainer.callback_metrics.items()
            self.found.append({k: float(v) for k, v in values if k.startswith("val/")})


@pytest.mark.parametrize("select", ["best", "last"])
def test_a_validation_part_without_seizures_selects_by_the_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, select: Any
) -> None:
    serve_planted(monkeypatch)
    first = data_of()
    first.prepare()
    names = first.frame["id"].iloc[first.parts["validation"]]
    serve_planted(monkeypatch, without=[int(name[1:]) for name in names])
    data, logged = data_of(), Logged()
    monkeypatch.setattr("manyhead.mvpformer.data.assign", lambda *_: codes_of(first))
    best = BestCheckpoint(tmp_path / "checkpoints", "val/score", "max")
    task = task_of(select=select)
    trainer_of(tmp_path, max_epochs=3, callbacks=[best, logged], enable_checkpointing=True).fit(
        task, datamodule=data
    )
    assert [set(found) for found in logged.found] == [{"val/loss", "val/score"}] * 3
    scores = [found["val/score"] for found in logged.found]
    losses = [found["val/loss"] for found in logged.found]
    assert scores == ([-x for x in losses] if select == "best" else sorted(scores))
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["epoch"] == int(np.argmax(scores))
    assert task.net.threshold == 0.5


def codes_of(data: Any) -> Any:
    codes = np.zeros(len(data.frame), np.int64)
    for code, rows in enumerate(data.parts.values()):
        codes[rows] = code
    return codes


def test_the_last_of_several_validations_of_an_epoch_is_kept(
    recordings: None, tmp_path: Path
) -> None:
    best = BestCheckpoint(tmp_path / "checkpoints", "val/score", "max")
    options = {"max_epochs": 1, "val_check_interval": 4, "callbacks": [best]}
    trainer_of(tmp_path, enable_checkpointing=True, **options).fit(
        task_of(select="last"), datamodule=data_of()
    )
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] == 12


def test_the_best_epoch_ranks_steps_and_the_loss_decides_ties(
    recordings: None, tmp_path: Path
) -> None:
    logged = Logged()
    trainer_of(tmp_path, max_epochs=1, callbacks=[logged]).fit(task_of(), datamodule=data_of())
    [found] = logged.found
    names = ("loss", "score", "average_precision", "threshold", "event_f1", "false_alarms_per_day")
    assert set(found) >= {f"val/{name}" for name in names[:4]}
    expected = found["val/average_precision"] - 1e-3 * min(1.0, found["val/loss"])
    assert found["val/score"] == pytest.approx(expected, abs=1e-6)


def test_epochs_of_pre_training_are_compared_on_the_same_negatives(
    recordings: None, tmp_path: Path
) -> None:
    task, data = task_of({"target": "next_token"}), data_of(target="next_token")
    runner, losses = trainer_of(tmp_path), []
    for seed in (1, 2):
        seed_everything(seed, verbose=False)
        [found] = runner.validate(task, datamodule=data, verbose=False)
        losses.append(found["val/loss"])
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="test: the target next_token has no seizures"):
        runner.test(task, datamodule=data, verbose=False)


def test_augmentation_turns_and_scales_whole_windows() -> None:
    torch.manual_seed(0)
    signal = torch.randn(400, 2, 3, 4)
    ratio = augmented(signal, flip=True, jitter=0.5) / signal
    each = ratio[:, :1, :1, :1]
    torch.testing.assert_close(ratio, each.expand_as(ratio), rtol=1e-4, atol=1e-5)
    assert 0.4 < (each > 0).float().mean() < 0.6
    assert each.abs().log().std() == pytest.approx(0.5, abs=0.06)
    turned = augmented(signal, flip=True, jitter=0.0) / signal
    torch.testing.assert_close(turned.abs(), torch.ones_like(turned))
    assert torch.equal(augmented(signal, flip=False, jitter=0.0), signal)


def test_only_training_is_augmented(recordings: None, tmp_path: Path) -> None:
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    data = data_of(cache="none")
    data.prepare()

    class Spy(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            def look(module: Any, given: Any) -> None:
                number = batches[-1].number
                track, local = data.windows.track[number], data.windows.local[number]
                count = given[0].shape[2]
                drawn = data.windows.read(np.asarray(number), count)
                assert len(track) == len(local)
                seen[module.training].add(torch.equal(drawn.signal, given[0]))

            pl_module.net.register_forward_pre_hook(look)

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            batches.append(batch)

        def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
            batches.append(batch)

    batches: list[WindowBatch] = []
    task = task_of(scale_jitter=0.5, flip=True)
    trainer_of(tmp_path, max_epochs=1, callbacks=[Spy()]).fit(task, datamodule=data)
    assert seen == {True: {False}, False: {True}}


def test_balanced_weights_come_from_the_training_part(recordings: None, tmp_path: Path) -> None:
    task, data = task_of(class_weights="balanced"), data_of()
    trainer_of(tmp_path, max_epochs=1, limit_train_batches=1).fit(task, datamodule=data)
    torch.testing.assert_close(task.class_weights, data.class_weights())
    assert task.class_weights[1] > 1 > task.class_weights[0]
    share = data.windows.label[data.windows.of(data.parts["train"])].mean()
    assert task.class_weights[1].item() == pytest.approx(0.5 / share)


@pytest.mark.parametrize("amplitude", ["none", "rms"])
def test_adapters_learn_and_the_trunk_stays_to_the_bit(
    recordings: None, tmp_path: Path, amplitude: str
) -> None:
    task = task_of({"lora_rank": 2, "amplitude": amplitude}, train="adapters", lr=1e-2)
    before = state_of(task)
    trainer_of(tmp_path, max_epochs=1).fit(task, datamodule=data_of())
    changed = {n for n, x in task.net.state_dict().items() if not torch.equal(x, before[n])}
    learns = {n for n in before if "lora_" in n or n.startswith(("head.", "encoder.amplitude"))}
    assert changed - {"threshold"} == learns


def test_weights_start_from_a_folder_or_a_checkpoint_with_a_fresh_head(
    recordings: None, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path / "0", max_epochs=1, limit_train_batches=2)
    base = task_of({"target": "next_token"})
    trainer.fit(base, datamodule=data_of(target="next_token"))
    base.net.save_pretrained(tmp_path / "folder")
    trainer.save_checkpoint(tmp_path / "0/checkpoints/best.ckpt")
    for source in ("folder", "0/checkpoints/best.ckpt", "0"):
        task = task_of({"lora_rank": 2}, init=tmp_path / source, train="adapters")
        for name, tensor in base.net.state_dict().items():
            if name != "head.weight":
                assert torch.equal(task.net.state_dict()[name], tensor), name
        assert task.net.head.out_features == 2
    trainer_of(tmp_path, max_epochs=1).fit(task, datamodule=data_of())


def test_a_threshold_comes_with_its_head_only(tmp_path: Path) -> None:
    source = MVPFormer(MVPFormerConfig(**NET))
    source.threshold.fill_(0.9)
    source.save_pretrained(tmp_path / "classes")
    assert task_of(init=tmp_path / "classes").net.threshold.item() == pytest.approx(0.9)
    other = MVPFormer(MVPFormerConfig(**(NET | {"num_classes": 3})))
    load_initial(other, tmp_path / "classes")
    assert other.threshold == 0.5


def test_a_checkpoint_loads_without_what_it_started_from(recordings: None, tmp_path: Path) -> None:
    MVPFormer(MVPFormerConfig(**NET)).save_pretrained(tmp_path / "base")
    task = task_of(init=tmp_path / "base", lr=3e-3, flip=True, threshold="false_alarms")
    trainer = trainer_of(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(task, datamodule=data_of())
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    for file in (tmp_path / "base").iterdir():
        file.unlink()
    again = MVPFormerTask.load_from_checkpoint(tmp_path / "kept.ckpt")
    torch.testing.assert_close(again.net.state_dict(), state_of(task), rtol=0, atol=0)
    assert again.config == task.config
    assert dict(again.hparams) == dict(task.hparams)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, "does not exist; pass a weights folder, a checkpoint or a run folder"),
        (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
        (lambda path: path.write_bytes(b"text"), "is damaged or no checkpoint"),
        (lambda path: torch.save(torch.zeros(3), path), "is no checkpoint of a run; convert"),
        (lambda path: torch.save({"state_dict": [1]}, path), "is no checkpoint of a run; convert"),
        (lambda path: torch.save({"state_dict": {}}, path), r"encoder\.norm\.weight is missing"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "has no checkpoints/best.ckpt"),
        (lambda path: path.mkdir(), "holds no config.json; pass a folder"),
    ],
)
def test_weights_that_cannot_be_a_start(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "weights.ckpt"
    if write is not None:
        write(path)
    with pytest.raises(WeightsError, match=message) as caught:
        task_of(init=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "adapters"}, r"needs net\.lora_rank of 1 or more, got 0"),
        ({"train": "adapters", "network": "cnn"}, "network cnn has no adapters"),
        ({"train": "head"}, "train: 'head' is unknown; use all, adapters"),
        ({"threshold": "F1"}, "threshold: 'F1' is unknown"),
        ({"threshold": 1.5}, "threshold: 1.5 is no probability"),
        ({"lr": 0.0}, "lr: must be more than 0"),
        ({"warmup": 1.0}, "warmup: must be in"),
        ({"scale_jitter": -0.1}, "scale_jitter: must be 0 or more"),
        ({"num_negatives": 0}, "num_negatives: must be 1 or more"),
        ({"max_false_alarms": float("nan")}, "max_false_alarms: must be 0 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(**options)


@pytest.mark.parametrize("target", ["classes", "next_token"])
def test_two_runs_with_one_seed_are_equal_to_the_bit(
    recordings: None, tmp_path: Path, target: str
) -> None:
    found = []
    for _ in range(2):
        task = task_of({"target": target}, lr=1e-2, flip=True, scale_jitter=0.1)
        data = data_of(target=target, patients_per_batch=2)
        trainer_of(tmp_path, deterministic=True).fit(task, datamodule=data)
        found.append(state_of(task))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    start = task_of({"target": target}).net.state_dict()
    assert not torch.equal(found[0]["encoder.proj.weight"], start["encoder.proj.weight"])


def test_under_bf16_the_signal_stays_precise_up_to_the_projection(
    recordings: None, tmp_path: Path
) -> None:
    seen: dict[str, set[torch.dtype]] = {"encoder": set(), "proj": set(), "token": set()}
    task = task_of(lr=1e-2)

    def look(name: str) -> Any:
        def hook(module: Any, given: Any, result: Any) -> None:
            seen[name].add(given[0].dtype)
            seen["token"].add(result.dtype)

        return hook

    task.net.encoder.register_forward_hook(look("encoder"))
    task.net.encoder.proj.register_forward_hook(look("proj"))
    logged = Logged()
    trainer_of(tmp_path, precision="bf16-mixed", callbacks=[logged]).fit(task, datamodule=data_of())
    assert seen == {
        "encoder": {torch.float32}, "proj": {torch.float32}, "token": {torch.bfloat16}
    }  # fmt: skip
    assert all(np.isfinite(found["val/loss"]) for found in logged.found)
    assert all(torch.isfinite(x).all() for x in task.net.state_dict().values())


def test_a_precision_that_rounds_the_signal_is_refused(recordings: None, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, precision="bf16-true")
    with pytest.raises(ConfigError, match=r"bf16-true would round the signal .* use bf16"):
        trainer.fit(task_of(), datamodule=data_of())


def test_patients_with_different_channels_share_a_batch(recordings: None, tmp_path: Path) -> None:
    shapes = set()

    class Spy(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            shapes.add((batch.signal.shape[0], batch.signal.shape[2]))

    data = data_of(patients_per_batch=4)
    trainer_of(tmp_path, max_epochs=1, callbacks=[Spy()]).fit(task_of(), datamodule=data)
    channels = {data.windows.tracks[k].channels for k in data.parts["train"]}
    assert len(channels) > 1
    assert (8, min(channels)) in shapes


@pytest.mark.parametrize("network", ["band_energy", "cnn"])
def test_baselines_train_in_the_same_harness(
    recordings: None, tmp_path: Path, network: Any
) -> None:
    task, data = task_of(network=network, lr=1e-2), data_of()
    trainer = trainer_of(tmp_path)
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    assert isinstance(task.table, pd.DataFrame)
    assert set(task.table["detected"]) <= {0, 1}


def test_numbers_of_windows_are_gathered_without_rounding() -> None:
    rows = Gathered()
    large = torch.tensor([2**24 + 1, 2**40 + 1])
    rows.update(large)
    rows.update(torch.tensor([7]))
    assert rows.compute().tolist() == [2**24 + 1, 2**40 + 1, 7]
    rows.reset()
    assert len(rows.compute()) == 0


def test_true_seizures_are_whole_again(recordings: None, tmp_path: Path) -> None:
    task, data = task_of(), data_of()
    trainer_of(tmp_path).test(task, datamodule=data, verbose=False)
    for recording in scored(task.table):
        assert [tuple(seizure) for seizure in recording.seizures] == SEIZURES
        assert recording.duration == 40.0
