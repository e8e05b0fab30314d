"""Recordings of a slow rhythm in noise, which a small network learns in a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_recordings import RATE, FakeRecording, fake, serve
from pytorch_lightning import Trainer, seed_everything

from manyhead.mvpformer import MVPFormerConfig
from manyhead.mvpformer.data import RecordingData
from manyhead.mvpformer.recording import Signal
from manyhead.mvpformer.task import MVPFormerTask

LAYOUT: dict[str, Any] = {
    "rate": RATE, "num_segments": 3, "segment_seconds": 2.0, "stride_seconds": 2.0,
    "fractions": (0.5, 0.25, 0.25), "batch_windows": 8, "eval_batch_windows": 16,
}  # fmt: skip
NET: dict[str, Any] = {
    "segment_samples": 32, "dim": 16, "num_layers": 1, "num_heads": 2, "num_key_heads": 1,
    "hidden_dim": 16, "max_segments": 4, "max_channels": 8, "dropout": 0.1,
}  # fmt: skip
SEIZURES = [(11.0, 21.0)]


class Planted(FakeRecording):
    """Noise of 20 µV with a rhythm of 1 Hz and 100 µV in the seizures."""

    def read(self, start: int, stop: int) -> Signal:
        info = self.info
        number = int(info.id.removeprefix("r"))
        shape = (len(info.channels), info.samples)
        signal = 20 * np.random.default_rng(number).standard_normal(shape)
        time = np.arange(info.samples) / info.rate
        for onset, offset in info.seizures or ():
            inside = (time >= onset) & (time < offset)
            signal[:, inside] += 100 * np.sin(2 * np.pi * time[inside])
        return signal[:, start:stop].astype(np.float32)


def serve_planted(
    monkeypatch: pytest.MonkeyPatch, number: int = 8, without: Sequence[int] = (), **options: Any
) -> None:
    """Recordings r0, r1, ... of as many patients; those in `without` have no seizure."""
    found = []
    for k in range(number):
        seizures = [] if k in without else SEIZURES
        given = {"channels": 2 + k % 3, "seizures": seizures} | options
        found.append(Planted(fake(f"r{k}", f"p{k}", **given).info))
    serve(monkeypatch, found)


def data_of(**options: Any) -> RecordingData:
    return RecordingData(Path("data"), **(LAYOUT | options))


def task_of(net: dict[str, Any] | None = None, **options: Any) -> MVPFormerTask:
    seed_everything(0, verbose=False)
    return MVPFormerTask(MVPFormerConfig(**(NET | (net or {}))), **options)


def trainer_of(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    more = {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, **quiet | more | options)
