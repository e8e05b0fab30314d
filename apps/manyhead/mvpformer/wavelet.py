"""Tokens from signal: a Daubechies-4 wavelet transform of each segment, normalised and projected.

The transform is periodic in the plain sense (mode `periodic` of PyWavelets, not `periodization`)
for even and odd lengths alike, and has no parameters.
"""

from __future__ import annotations

from functools import cache
from math import floor, log2
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.errors import ConfigError

Amplitude = Literal["none", "rms", "bands"]

LOW_PASS = (
    -0.010597401785069032,
    0.0328830116668852,
    0.030841381835560764,
    -0.18703481171909309,
    -0.027983769416859854,
    0.6308807679298589,
    0.7148465705529157,
    0.2303778133088965,
)
# The quadrature mirror of the low-pass filter.
HIGH_PASS = tuple((-1) ** (j + 1) * h for j, h in enumerate(reversed(LOW_PASS)))
TAPS = len(LOW_PASS)
MIN_SAMPLES = 2 * (TAPS - 1)
NORM_EPS = 1e-5
# Amplitudes are given in units of decades around this one, µV; smaller ones than the floor count as
# the floor, so that a dead channel is an extreme and not an outlier.
TYPICAL_AMPLITUDE, LEAST_AMPLITUDE, DECADES = 30.0, 0.1, 0.5


def levels(samples: int) -> int:
    """Number of levels for a segment, the usual maximum for 8 taps.

    Args:
        samples: Length of a segment.

    Raises:
        ConfigError: The segment is too short for one level.
    """
    if samples < MIN_SAMPLES:
        raise ConfigError(
            f"segment_samples: {samples} are too few for a wavelet; use {MIN_SAMPLES} or more"
        )
    return floor(log2(samples / (TAPS - 1)))


@cache
def band_lengths(samples: int) -> tuple[int, ...]:
    """Coefficients of each band, coarse to fine: approximation, then details.

    Args:
        samples: Length of a segment.
    """
    details, length = [], samples
    for _ in range(levels(samples)):
        length = (length + TAPS - 1) // 2
        details.append(length)
    return (length, *reversed(details))


def wavelet_coefficients(segment: Tensor) -> Tensor:
    """Wavelet coefficients, coarse to fine, without gradient: `(..., sum(band_lengths))`.

    With filters h and g, each level maps a signal a of length n to `floor((n + 7) / 2)` numbers
    `sum_j h_j a[(2 k + 1 - j) mod n]`, the same with g, and goes on with the former.

    Args:
        segment: Signal, `(..., samples)`; computed in float32 at least, since 16 bits would lose
            the small coefficients.
    """
    with torch.no_grad(), torch.autocast(segment.device.type, enabled=False):
        precise = segment.to(torch.promote_types(segment.dtype, torch.float32))
        smooth = precise.reshape(-1, 1, precise.shape[-1])
        filters = torch.tensor([LOW_PASS, HIGH_PASS], dtype=precise.dtype, device=precise.device)
        # A convolution of the deep-learning kind does not turn its kernel round.
        kernel = filters.flip(-1)[:, None]
        details: list[Tensor] = []
        for _ in range(levels(precise.shape[-1])):
            length = smooth.shape[-1]
            after = 2 * ((length + TAPS - 1) // 2) - length
            wrapped = torch.cat([smooth[..., 2 - TAPS :], smooth, smooth[..., :after]], -1)
            both = F.conv1d(wrapped, kernel, stride=2)
            smooth = both[:, :1]
            details.insert(0, both[:, 1])
        found = torch.cat([smooth[:, 0], *details], -1)
    return found.view(*segment.shape[:-1], -1)


class WaveletEncoder(nn.Module):
    """One token for each segment of a channel.

    The norm takes the amplitude away, as long as the signal is in microvolts: in volts its square
    would vanish beside the eps of the norm, and with it the token. `amplitude` gives the amplitude
    back as a side input; it is not part of the paper.

    Args:
        samples: Length of a segment.
        dim: Width of a token.
        amplitude: `none`; `rms` adds a projection of the log RMS of the segment, `bands` of the log
            RMS of each wavelet band.
    """

    def __init__(self, samples: int, dim: int, amplitude: Amplitude = "none") -> None:
        super().__init__()
        self.bands = band_lengths(samples)
        width = sum(self.bands)
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, dim, bias=False)
        sizes = {"none": 0, "rms": 1, "bands": len(self.bands)}
        self.amplitude = amplitude
        self.amplitude_proj = nn.Linear(sizes[amplitude], dim) if sizes[amplitude] else None

    def forward(self, segment: Tensor) -> Tensor:
        """Tokens `(..., dim)` of segments `(..., samples)` in µV."""
        coefficients = wavelet_coefficients(segment)
        with torch.autocast(segment.device.type, enabled=False):
            normed = self.norm(coefficients.to(self.norm.weight.dtype))
        token: Tensor = self.proj(normed)
        if self.amplitude_proj is not None:
            levels = log_amplitude(coefficients, self.bands if self.amplitude == "bands" else ())
            token = token + self.amplitude_proj(levels.to(self.amplitude_proj.weight.dtype))
        return token


def log_amplitude(coefficients: Tensor, bands: tuple[int, ...] = ()) -> Tensor:
    """Log RMS in half decades around 30 µV, `(..., 1)` or `(..., bands)`.

    Args:
        coefficients: From `wavelet_coefficients` of a signal in µV, `(..., width)`.
        bands: Lengths of the bands; empty for one number over all.
    """
    parts = torch.split(coefficients, list(bands), -1) if bands else (coefficients,)
    rms = torch.stack([part.square().mean(-1).sqrt() for part in parts], -1)
    return (rms.clamp(min=LEAST_AMPLITUDE) / TYPICAL_AMPLITUDE).log10() / DECADES
