"""Baselines: band powers with known values, running standardisation, and that they learn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead.mvpformer.baselines.band_energy import FLOOR, BandEnergy, Standardise
from manyhead.mvpformer.baselines.cnn import CNN
from manyhead.mvpformer.model import MVPFormerConfig
from manyhead.mvpformer.networks import build_network

CONFIG = MVPFormerConfig(segment_samples=512, dropout=0.0)
BASELINES = ["band_energy", "cnn"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 30 * torch.randn(*shape, 512, generator=torch.Generator().manual_seed(seed))


def tone(cycles: float, amplitude: float = 50.0) -> Tensor:
    time = torch.arange(512) / 512
    return (amplitude * torch.sin(2 * math.pi * cycles * time))[None, None, None]


def train(net: nn.Module, signal: Tensor, label: Tensor, steps: int, lr: float) -> Tensor:
    optimiser = torch.optim.AdamW(net.train().parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(signal).logits, label).backward()
        optimiser.step()
    with torch.no_grad():
        return net.eval()(signal).logits.argmax(-1)


def test_power_is_in_the_band_of_a_tone_and_grows_with_the_square() -> None:
    net = BandEnergy(CONFIG)
    # Details of level k hold frequencies from 512 / 2^(k + 1) to 512 / 2^k of 512 samples.
    for cycles, band in ((192, -1), (96, -2), (48, -3), (24, -4)):
        powers = net.encode(tone(cycles))[0, 0, 0]
        assert int(powers.argmax()) == len(powers) + band
    torch.testing.assert_close(net.encode(tone(48, 100.0)), 4 * net.encode(tone(48, 50.0)))


def test_powers_of_all_bands_hold_the_power_of_the_signal() -> None:
    net = BandEnergy(MVPFormerConfig(segment_samples=4096))
    signal = 30 * torch.randn(1, 1, 1, 4096, generator=torch.Generator().manual_seed(0))
    total = (net.encode(signal)[0, 0, 0] * torch.tensor(net.lengths)).sum()
    # The periodic transform repeats a few samples at the ends of each level.
    assert total.item() == pytest.approx(signal.square().sum().item(), rel=0.03)


def test_numbers_are_those_of_the_newest_segment_and_of_the_mean_power() -> None:
    net = BandEnergy(CONFIG)
    powers = net.encode(noise(2, 3, 4))
    seen: list[Tensor] = []
    net.standardise.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.eval()(tokens=powers)
    newest, usual = (powers[:, -1] + FLOOR).log10(), (powers.mean(1) + FLOOR).log10()
    expected = [newest.mean(1), usual.mean(1), newest.amax(1), usual.amax(1)]
    torch.testing.assert_close(seen[0], torch.cat(expected, -1))


@pytest.mark.parametrize("name", BASELINES)
def test_neither_order_nor_copies_of_channels_matter(name: str) -> None:
    torch.manual_seed(0)
    net = build_network(name, CONFIG)
    for head in (module for module in net.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(head.weight)
    net.eval()
    signal = noise(2, 3, 4)
    expected = net(signal).logits
    torch.testing.assert_close(net(signal[:, :, [2, 0, 3, 1]]).logits, expected)
    torch.testing.assert_close(net(signal.repeat(1, 1, 2, 1)).logits, expected)


@pytest.mark.parametrize("name", BASELINES)
def test_the_newest_segment_differs_from_older_ones(name: str) -> None:
    torch.manual_seed(0)
    net = build_network(name, CONFIG)
    for head in (module for module in net.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(head.weight)
    signal = noise(1, 3, 2)
    signal[:, 2] *= 5
    logits = net.eval()(signal).logits
    torch.testing.assert_close(net(signal[:, [1, 0, 2]]).logits, logits)
    assert not torch.allclose(net(signal[:, [0, 2, 1]]).logits, logits, rtol=1e-2)


@pytest.mark.parametrize("name", BASELINES)
def test_dead_and_huge_channels_stay_finite(name: str) -> None:
    net = build_network(name, CONFIG).train()
    signal = noise(2, 2, 3)
    signal[:, :, 0], signal[:, :, 1] = 0.0, 1e5
    output = net(signal)
    output.logits.sum().backward()
    assert output.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_standardise_sees_all_batches_as_one() -> None:
    standardise = Standardise(3).train()
    generator = np.random.default_rng(0)
    samples = generator.normal([5, -2, 0], [2, 0.5, 10], (400, 3)).astype(np.float32)
    for part in np.split(samples, [1, 8, 9, 200]):
        standardise(torch.from_numpy(part))
    found = standardise.eval()(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-2)
    assert standardise.count == 400


@pytest.mark.parametrize("name", BASELINES)
def test_weights_in_16_bits_still_train(name: str) -> None:
    torch.manual_seed(0)
    net = build_network(name, CONFIG).to(torch.bfloat16).train()
    signal, label = noise(8, 2, 2), torch.arange(8) % 2
    signal[label == 1] *= 3
    output = net(signal)
    assert output.logits.dtype == torch.float32
    # Statistics of thousands of samples need float32.
    assert {buffer.dtype for n, buffer in net.named_buffers() if n != "threshold"} <= {
        torch.float32
    }
    assert (train(net, signal, label, 60, 1e-2) == label).all()


def test_standardise_of_what_never_varied_does_not_explode() -> None:
    standardise = Standardise(1).train()
    standardise(torch.full((5000, 1), 7.0))
    assert standardise.eval()(torch.tensor([[7.1]])).abs().item() <= 2.01


@pytest.mark.parametrize(("name", "steps", "lr"), [("band_energy", 60, 0.03), ("cnn", 60, 3e-3)])
def test_loud_and_quiet_windows_are_told_apart(name: str, steps: int, lr: float) -> None:
    torch.manual_seed(0)
    signal = noise(8, 2, 2)
    label = torch.arange(8) % 2
    signal[label == 1] *= 3
    assert (train(build_network(name, CONFIG), signal, label, steps, lr) == label).all()


def test_cnn_learns_a_few_windows_of_noise_by_heart() -> None:
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 1, 0, 1, 0])
    net = CNN(CONFIG)
    assert sum(parameter.numel() for parameter in net.parameters()) < 60_000
    assert (train(net, noise(6, 2, 2), label, 150, 3e-3) == label).all()


def test_cnn_does_not_see_a_constant_offset() -> None:
    net = CNN(CONFIG).eval()
    signal = noise(1, 1, 2)
    torch.testing.assert_close(net.encode(signal + 64), net.encode(signal), atol=1e-5, rtol=1e-4)
