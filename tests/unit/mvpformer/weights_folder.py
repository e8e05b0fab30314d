"""A weights folder of a small random network, and .npz recordings for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import small_model
import torch

from manyhead.mvpformer.model import MVPFormer
from manyhead.mvpformer.preparing import ChannelContract, PrepareOptions
from manyhead.mvpformer.preprocessor import SeizurePreprocessor
from manyhead.mvpformer.windows import WindowOptions

RATE = 64.0
WINDOWS = WindowOptions(num_segments=4, segment_seconds=1.0, stride_seconds=1.0)


def network(**changes: object) -> MVPFormer:
    net = small_model.build(**changes)
    if net.config.target == "classes":
        torch.nn.init.normal_(net.head.weight, std=1, generator=torch.Generator().manual_seed(3))
    net.threshold.fill_(0.5)
    return net


def save_weights(folder: Path, names: Sequence[str] = (), **changes: object) -> Path:
    """Weights with the state of their preprocessor."""
    net = network(**changes)
    contract = ChannelContract(
        names=tuple(names), count=(3, 3), reference="none", rate=RATE, rows=8, named=True
    )
    prepare = PrepareOptions(rate=RATE)
    preprocessor = SeizurePreprocessor(windows=WINDOWS, prepare=prepare, contract=contract)
    net.preprocessor_state = preprocessor.state()
    net.save_pretrained(folder)
    return folder


def save_recording(path: Path, seconds: int = 30, channels: int = 3, seed: int = 0) -> Path:
    """Noise with a seizure from 10 to 14 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = np.random.default_rng(seed).normal(0, 50, (channels, seconds * int(RATE)))
    names = np.array([f"A{k + 1}" for k in range(channels)])
    seizures = np.array([[10.0, 14.0]])
    np.savez(path, signal=signal.astype(np.float32), sfreq=RATE, channels=names, seizures=seizures)
    return path
