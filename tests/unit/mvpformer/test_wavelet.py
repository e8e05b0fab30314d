"""The wavelet transform against its formula, and the tokens made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyhead.mvpformer.wavelet import (
    HIGH_PASS,
    LOW_PASS,
    WaveletEncoder,
    band_lengths,
    levels,
    log_amplitude,
    wavelet_coefficients,
)


def by_formula(signal: np.ndarray) -> np.ndarray:
    smooth, details = signal, []
    for _ in range(levels(len(signal))):
        number = len(smooth)
        parts = [
            [
                sum(f[j] * smooth[(2 * k + 1 - j) % number] for j in range(8))
                for k in range((number + 7) // 2)
            ]
            for f in (LOW_PASS, HIGH_PASS)
        ]
        smooth = np.array(parts[0])
        details.insert(0, np.array(parts[1]))
    return np.concatenate([smooth, *details])


@pytest.mark.parametrize("samples", [14, 16, 17, 33, 64, 100, 101, 256, 321])
def test_coefficients_follow_the_formula(samples: int) -> None:
    signal = np.random.default_rng(samples).standard_normal(samples)
    found = wavelet_coefficients(torch.tensor(signal)).numpy()
    np.testing.assert_allclose(found, by_formula(signal), atol=1e-12)
    assert len(found) == sum(band_lengths(samples))


def test_bands_of_the_published_segment() -> None:
    assert band_lengths(2560) == (16, 16, 26, 46, 86, 166, 326, 645, 1283)
    assert [levels(n) for n in (2560, 640, 256, 160)] == [8, 6, 5, 4]


def test_sixteen_bits_are_transformed_in_float32() -> None:
    signal = 50 * torch.randn(3, 64).bfloat16()
    found = wavelet_coefficients(signal)
    assert found.dtype == torch.float32
    assert torch.equal(found, wavelet_coefficients(signal.float()))


def test_no_gradient_reaches_the_signal() -> None:
    signal = torch.randn(2, 64, requires_grad=True)
    WaveletEncoder(64, 8)(signal).sum().backward()
    assert signal.grad is None


def test_volts_give_almost_nothing() -> None:
    encoder = WaveletEncoder(640, 16)
    signal = 50 * torch.randn(1, 640)
    assert encoder(1e-6 * signal).norm() < 0.05 * encoder(signal).norm()


def test_amplitude_is_in_half_decades_around_30_microvolts() -> None:
    sine = torch.sin(torch.arange(2560) * 0.3) * 30 * 2**0.5
    coefficients = wavelet_coefficients(torch.stack([sine, 10 * sine, 0 * sine]))
    found = log_amplitude(coefficients)[:, 0]
    # The transform repeats a few samples at the ends.
    assert found[0].abs() < 0.1
    assert abs(found[1] - found[0] - 2) < 1e-4
    assert found[2] == pytest.approx(-4.954, abs=0.01)
    assert log_amplitude(coefficients, band_lengths(2560)).shape == (3, 9)
