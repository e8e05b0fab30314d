"""The data module: what is left out, who trains, what the table of predictions is told."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fake_recordings import RATE, FakeRecording, fake, serve
from pytorch_lightning import LightningModule, Trainer

from manyhead.mvpformer import signals
from manyhead.mvpformer.data import RecordingData
from manyhead.mvpformer.preparing.cache import Kept
from manyhead.mvpformer.tracks import WindowBatch
from manyhead_core.errors import ConfigError, DataError

SIZES: dict[str, Any] = {
    "rate": RATE, "num_segments": 3, "segment_seconds": 2.0, "stride_seconds": 2.0
}  # fmt: skip


def data_of(**options: Any) -> RecordingData:
    return RecordingData(Path("data"), **(SIZES | options))


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[FakeRecording]:
    """Ten patients with a seizure each, two of them with a second recording."""
    found = [
        fake(f"r{k}", f"p{k % 10}", channels=2 + k % 3, seizures=[(11.0, 15.0)] if k < 10 else [])
        for k in range(12)
    ]
    serve(monkeypatch, found)
    return found


def test_parts_hold_whole_patients(recordings: list[FakeRecording]) -> None:
    data = data_of()
    data.prepare()
    parts = {name: set(data.frame["patient"].iloc[rows]) for name, rows in data.parts.items()}
    assert {name: len(group) for name, group in parts.items()} == {
        "train": 7, "validation": 1, "test": 2
    }  # fmt: skip
    assert len(set.union(*parts.values())) == 10
    assert sum(len(rows) for rows in data.parts.values()) == len(recordings)


def test_the_network_is_told_the_length_of_a_segment(recordings: list[FakeRecording]) -> None:
    found = data_of().net_overrides()
    assert found == {"segment_samples": 32, "num_classes": 2, "target": "classes"}


def test_loaders_serve_their_parts(recordings: list[FakeRecording]) -> None:
    data = data_of(batch_windows=5, eval_batch_windows=7)
    data.setup("fit")
    assert data.windows is not None
    loaders = {
        "train": data.train_dataloader(),
        "validation": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    for part, loader in loaders.items():
        numbers = [n for batch in loader for n in batch.number.tolist()]
        tracks = set(data.windows.track[numbers])
        assert tracks == set(data.parts[part])
        assert sorted(numbers) == data.windows.of(data.parts[part]).tolist()


def test_what_the_table_of_predictions_is_told(recordings: list[FakeRecording]) -> None:
    data = data_of()
    data.prepare()
    found = data.about([20 + 6, 20 + 7, 0])
    assert found["id"] == ["r1:6", "r1:7", "r0:0"]
    assert found["recording"] == ["r1", "r1", "r0"]
    assert found["group"] == ["p1", "p1", "p0"]
    assert found["start"] == [12.0, 14.0, 0.0]
    assert found["stop"] == [14.0, 16.0, 2.0]
    np.testing.assert_array_equal(found["event_start"], [12.0, 14.0, np.nan])
    np.testing.assert_array_equal(found["event_stop"], [14.0, 15.0, np.nan])


def test_recordings_that_cannot_be_used_are_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = [fake(f"r{k}", f"p{k}", seizures=[(5.0, 9.0)]) for k in range(3)]
    bad = [fake("unknown", "u", seizures=None), fake("short", "s", seconds=1.5)]
    serve(monkeypatch, [*good, *bad], broken=["damaged"])
    data = data_of()
    data.write_split(tmp_path)
    table = pd.read_csv(tmp_path / "left_out.csv").set_index("id")["reason"].to_dict()
    assert table == {
        "damaged": "damaged: the file is damaged",
        "unknown": "nobody annotated its seizures",
        "short": "1.5 s without a stretch of 2 s",
    }
    assert set(data.frame["id"]) == {"r0", "r1", "r2"}


def test_without_padding_a_recording_must_hold_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [fake("a", "a", seizures=[(5.0, 9.0)]), fake("b", "b", seconds=5.0)])
    data = data_of(padding="none")
    data.prepare()
    assert data.left_out == {"b": "5.0 s without a stretch of 6 s"}


def test_pre_training_takes_recordings_that_nobody_annotated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(monkeypatch, [fake(f"r{k}", f"p{k}", seizures=None) for k in range(3)])
    data = data_of(target="next_token")
    data.prepare()
    assert len(data.parts["train"]) == 2
    assert data.net_overrides()["target"] == "next_token"
    with pytest.raises(DataError, match="none of 3 recordings can be used; r0: nobody annotated"):
        data_of().prepare()


def test_the_split_is_read_again(recordings: list[FakeRecording], tmp_path: Path) -> None:
    first = data_of(split_seed=4)
    first.write_split(tmp_path)
    again = data_of(split=str(tmp_path / "split.csv"))
    again.prepare()
    for part, rows in first.parts.items():
        np.testing.assert_array_equal(rows, again.parts[part])
    assert not (tmp_path / "left_out.csv").exists()


def test_two_folders_of_one_patient_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ID01", "ID20", "ID19", "ID41"]
    serve(monkeypatch, [fake(n, n, seizures=[(5.0, 9.0)]) for n in names], format="swec")
    for seed in range(4):
        data = data_of(split_seed=seed)
        data.prepare()
        part = {n: p for p, rows in data.parts.items() for n in data.frame["id"].iloc[rows]}
        assert part["ID01"] == part["ID20"]
        assert data.about([0])["group"] == ["ID20"]
    with pytest.raises(DataError, match="1 of 3 patients"):
        data_of(split="official").prepare()
    data = data_of(split="official", shared_patients="drop")
    data.prepare()
    assert data.frame["id"].iloc[data.parts["test"]].tolist() == ["ID19", "ID41"]


def test_what_the_weights_will_need(recordings: list[FakeRecording]) -> None:
    data = data_of(median=5, montage="average")
    data.prepare()
    assert data.preprocessor is not None
    assert data.preprocessor.segment_samples == 32
    assert data.preprocessor.post.median == 5
    contract = data.preprocessor.contract
    assert contract is not None
    assert (contract.count, contract.rate, contract.reference) == ((2, 4), RATE, "average")


def test_channels_that_a_rule_chose_are_those_of_the_patients_first_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loud(FakeRecording):
        loud = 0

        def read(self, start: int, stop: int) -> Any:
            signal = np.sin(np.arange(start, stop) * np.ones((6, 1)), dtype=np.float32)
            signal[self.loud] *= 100
            return signal

    found = []
    for k in range(4):
        recording = Loud(fake(f"r{k}", f"p{k // 2}", channels=6, seizures=[(5.0, 9.0)]).info)
        recording.loud = k
        found.append(recording)
    serve(monkeypatch, found)
    data = data_of(channels="variance", max_channels=1)
    data.prepare()
    assert data.windows is not None
    chosen = [track.signal.channels for track in data.windows.tracks]
    assert chosen == [("C0",), ("C0",), ("C2",), ("C2",)]


def test_only_recordings_that_are_included_exist(
    recordings: list[FakeRecording], tmp_path: Path
) -> None:
    data = data_of(include=r"^r[0-4]$|1$")
    data.write_split(tmp_path)
    assert data.frame["id"].tolist() == ["r0", "r1", "r2", "r3", "r4", "r11"]
    assert set(pd.read_csv(tmp_path / "split.csv")["id"]) == set(data.frame["id"])
    assert not data.left_out
    with pytest.raises(DataError, match=r"data\.include: 'sub-' matches none of 12 .* is r0"):
        data_of(include="sub-").prepare()
    with pytest.raises(ConfigError, match=r"data\.include: '\[' is no regular expression"):
        data_of(include="[").prepare()


def test_an_empty_folder_is_no_matter_of_include(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [])
    with pytest.raises(DataError, match="no recording in data can be used: the folder holds none"):
        data_of(include="r1").prepare()


@pytest.mark.parametrize(("stride", "times"), [(0.5, 4), (4.0, 0.5)])
def test_training_may_have_a_stride_of_its_own(
    recordings: list[FakeRecording], stride: float, times: float
) -> None:
    plain, dense = data_of(batch_windows=1), data_of(batch_windows=1, train_stride_seconds=stride)
    counts = [len(data.train_dataloader()) for data in (plain, dense)]
    assert counts[1] == pytest.approx(counts[0] * times, rel=0.1)
    for part in ("validation", "test"):
        both = [data._loader(data._prepared(), part) for data in (plain, dense)]
        numbers = [[batch.number.tolist() for batch in loader] for loader in both]
        assert numbers[0] == numbers[1]
    # Steps of 2 s every 0.5 s: a window begins where the other layout has none.
    windows = dense._training()
    begins = windows.tracks[0].windows.step_start
    np.testing.assert_allclose(np.diff(begins), stride)
    label = windows.label[windows.of(dense.parts["train"])]
    share = label.mean()
    np.testing.assert_allclose(dense.class_weights(), [0.5 / (1 - share), 0.5 / share], rtol=1e-6)


def test_slowing_down_adds_training_windows_only(recordings: list[FakeRecording]) -> None:
    plain, slow = data_of(), data_of(slow_down=True)
    slow.prepare()
    batches = {len(list(d.train_dataloader())) for d in (plain, slow)}
    assert len(batches) == 2
    tested = [[b.number.tolist() for b in d.test_dataloader()] for d in (plain, slow)]
    assert tested[0] == tested[1]


def test_weights_of_the_classes(recordings: list[FakeRecording]) -> None:
    data = data_of(split="fold", folds=10)
    weights = data.class_weights()
    assert data.windows is not None
    label = data.windows.label[data.windows.of(data.parts["train"])]
    share = label.mean()
    np.testing.assert_allclose(weights, [0.5 / (1 - share), 0.5 / share], rtol=1e-6)
    # Drawn as often as the others, seizures need no weight on top.
    assert data_of(sampling="balanced").class_weights().tolist() == [1, 1]


def test_prepared_signals_go_to_a_folder(recordings: list[FakeRecording], tmp_path: Path) -> None:
    data = data_of(cache=str(tmp_path / "kept"))
    kept = [batch.signal for batch in data.test_dataloader()]
    assert len(list((tmp_path / "kept").glob("*.npy"))) == len(data.parts["test"])
    direct = [batch.signal for batch in data_of(cache="none").test_dataloader()]
    assert all((a == b).all() for a, b in zip(kept, direct, strict=True))


def test_signals_that_do_not_fit_into_memory_are_refused(
    recordings: list[FakeRecording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "MEMORY", 1000)
    with pytest.raises(ConfigError, match=r"data\.cache: .* name a folder"):
        data_of().prepare()
    data_of(cache="none").prepare()


def test_empty_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [fake(f"r{k}", f"p{k}", seizures=[(5.0, 9.0)]) for k in range(2)])
    data = data_of()
    data.setup("fit")
    assert not data.validates
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match="no recording of 2 is in the validation part"):
        data.setup("validate")
    with pytest.raises(DataError, match="none of 2 recordings trains"):
        data_of(fractions=(0.0, 0.0, 1.0)).prepare()


def test_training_without_seizures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [fake(f"r{k}", f"p{k}") for k in range(2)])
    with pytest.raises(DataError, match="all 20 training windows are background"):
        data_of().prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_seconds": 2.01}, "data.segment_seconds: 2.01 s are 32.16 samples at 16 Hz"),
        ({"threads": 0}, "data.threads: must be at least 1"),
        ({"train_stride_seconds": -1}, "data.train_stride_seconds: must be at least 0"),
        ({"target": "next_token", "num_segments": 1}, "next_token needs 2 or more"),
        ({"train_channels": -1}, "data.train_channels: must be at least 0"),
        ({"target": "next_token", "sampling": "balanced"}, "next_token looks at no seizures"),
        ({"median": 4}, "median: 4 is not an odd number"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_of(**options)


def test_lightning_takes_the_loaders(recordings: list[FakeRecording]) -> None:
    class Counting(LightningModule):
        seen = 0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: WindowBatch, index: int) -> torch.Tensor:
            assert batch.signal.shape[1:] == (3, 2, 32)
            self.seen += len(batch.number)
            return self.weight.sum()

        def validation_step(self, batch: WindowBatch, index: int) -> None:
            assert batch.signal.shape[1] == 3

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data, module = data_of(batches_per_epoch=3, batch_windows=4, train_channels=2), Counting()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    assert module.seen == 2 * 3 * 4


@pytest.mark.parametrize("cache", ["memory", "none", "kept"])
def test_recordings_travel_to_another_process(
    recordings: list[FakeRecording], tmp_path: Path, cache: str
) -> None:
    place = str(tmp_path / cache) if cache == "kept" else cache
    data = data_of(cache=place)
    expected = [batch.signal for batch in data.test_dataloader()]
    again = pickle.loads(pickle.dumps(data))
    assert all(recording.closed for recording in recordings)
    assert data.windows is not None
    assert again.windows is not None
    for tracks, copied in ((data.windows.tracks, False), (again.windows.tracks, True)):
        tested = [tracks[k].signal for k in data.parts["test"]]
        kept = cache == "memory" or (cache == "kept" and not copied)
        assert all(isinstance(signal._ready, Kept) == kept for signal in tested)
    found = [batch.signal for batch in again.test_dataloader()]
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("processes", [2, 5, 40])
def test_every_process_validates_something(recordings: list[FakeRecording], processes: int) -> None:
    data = data_of(eval_batch_windows=64)
    data.prepare()
    seen = []
    for rank in range(processes):
        root = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=processes, strategy=root
        )
        if processes > 20:
            with pytest.raises(DataError, match="windows of validation are too few for 40 proc"):
                data.val_dataloader()
            return
        own = [n for batch in data.val_dataloader() for n in batch.number.tolist()]
        assert own
        seen += own
    assert data.windows is not None
    assert sorted(seen) == data.windows.of(data.parts["validation"]).tolist()


def test_what_is_left_out_is_said(
    recordings: list[FakeRecording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [f"p{k},{part}" for k, part in enumerate(parts) if k != 3]
    (tmp_path / "split.csv").write_text("\n".join(["patient,split", *rows]) + "\n")
    data_of(split=str(tmp_path / "split.csv")).prepare()
    said = capsys.readouterr().err
    assert "1 recordings are left out, first r3: in no part of the split" in said
    assert "validation part holds no seizure" not in said


def test_validation_without_seizures_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [fake(f"r{k}", f"p{k}", seizures=[(11.0, 15.0)] if k else []) for k in range(4)]
    serve(monkeypatch, found)
    rows = ["p0,validation", "p1,train", "p2,train", "p3,test"]
    (tmp_path / "split.csv").write_text("\n".join(["patient,split", *rows]) + "\n")
    data_of(split=str(tmp_path / "split.csv")).prepare()
    assert "the validation part holds no seizure" in capsys.readouterr().err
