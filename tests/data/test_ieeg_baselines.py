"""Logistic regression on band energies reaches its known result on the Bonn segments."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, f1_score

from manyhead.mvpformer.baselines.band_energy import BandEnergy
from manyhead.mvpformer.model import MVPFormerConfig

SAMPLES = 868  # 5 s at 173.61 Hz


@pytest.mark.parametrize("segments", [1, 4])
def test_band_energy_tells_seizures_from_background(data_dir: Path, segments: int) -> None:
    file = np.load(data_dir / "ieeg" / "bonn_dev.npz")
    number = np.array([int(name[1:]) for name in file["segment_id"]])
    windows = file["signal"][:, : 4 * SAMPLES].reshape(len(number), -1, segments, 1, SAMPLES)
    parts = []
    for chosen in (number <= 50, number > 50):
        rows = chosen & np.isin(file["label_set"], ["C", "D", "E"])
        label = np.repeat(file["label_set"][rows] == "E", windows.shape[1]).astype(np.int64)
        signal = torch.from_numpy(windows[rows].astype(np.float32)).flatten(0, 1)
        parts.append((signal, torch.from_numpy(label)))
    (signal, label), (test_signal, test_label) = parts

    torch.manual_seed(0)
    net = BandEnergy(MVPFormerConfig(segment_samples=SAMPLES)).train()
    tokens = net.encode(signal)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(300):
        batch = torch.randint(len(label), (32,))
        optimiser.zero_grad()
        found = net(tokens=tokens[batch]).logits
        torch.nn.functional.cross_entropy(found, label[batch]).backward()
        optimiser.step()
    with torch.no_grad():
        predicted = net.eval()(test_signal).logits.argmax(-1)

    assert (predicted == test_label).float().mean() >= 0.979
    assert f1_score(test_label, predicted) >= 0.969
    assert cohen_kappa_score(test_label, predicted) >= 0.953
