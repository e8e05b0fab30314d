"""`band_energy`: logistic regression on the log energies of wavelet bands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from manyhead.mvpformer.baselines.network import WindowNetwork, over_channels
from manyhead.mvpformer.model import MVPFormerConfig
from manyhead.mvpformer.wavelet import band_lengths, wavelet_coefficients

# Added to powers, in µV²: 0.1 µV is below the noise of any amplifier, so a dead channel is quiet
# but no outlier.
FLOOR = 1e-2


class BandEnergy(WindowNetwork):
    """Energy of each db4 band in the newest segment and in the whole window, and a linear layer.

    The numbers of a channel are reduced to their mean and largest over channels. With one segment
    and one channel these are all the same: nine log energies at 5 s and 512 Hz.

    Args:
        config: Segment length and classes.
    """

    def __init__(self, config: MVPFormerConfig) -> None:
        super().__init__(config)
        self.lengths = band_lengths(config.segment_samples)
        width = 4 * len(self.lengths)
        self.standardise = Standardise(width)
        self.head = nn.Linear(width, config.num_classes)
        # The problem is convex; from zero, a number that never varied in training never counts.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def segment_tokens(self, signal: Tensor) -> Tensor:
        """Power of each band, coarse to fine, `(B, T, C, bands)` in µV²."""
        bands = torch.split(wavelet_coefficients(signal), list(self.lengths), -1)
        return torch.stack([band.square().mean(-1) for band in bands], -1)

    def decide(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log energies of each segment `(B, T, C, bands)`, and logits `(B, classes)`."""
        with torch.autocast(tokens.device.type, enabled=False):
            powers = tokens.float()
            hidden = (powers + FLOOR).log10()
            usual = (powers.mean(1) + FLOOR).log10()
            numbers = over_channels(torch.cat([hidden[:, -1], usual], -1))
            standard = self.standardise(numbers).to(self.head.weight.dtype)
            return hidden, self.head(standard).float()


class Standardise(nn.Module):
    """Zero mean and unit deviation over everything that was seen in training.

    Unlike batch normalisation it gives the same for a window whatever the rest of the batch is,
    so that batches of one patient, or of one window, do no harm.

    Args:
        width: Numbers per sample.
        smallest: Least deviation that is divided by.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int, smallest: float = 0.05) -> None:
        super().__init__()
        self.smallest = smallest
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardise:
        """Move to a device but stay in float32: sums over many samples get lost in 16 bits."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take samples `(B, width)` into account."""
        count = self.count + len(x)
        delta = x.mean(0) - self.mean
        self.squares += (x - x.mean(0)).square().sum(0) + delta**2 * self.count * len(x) / count
        self.mean += delta * len(x) / count
        self.count.copy_(count)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised samples `(B, width)`; in training mode they are taken into account first."""
        if self.training:
            self.update(x.detach())
        # As if one more sample had been seen at unit deviation: the first batches are few.
        deviation = ((self.squares + 1) / (self.count + 1)).sqrt().clamp(min=self.smallest)
        return (x - self.mean) / deviation
