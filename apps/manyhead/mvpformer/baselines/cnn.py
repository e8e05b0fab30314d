"""`cnn`: a small convolutional network for each channel, pooled over channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyhead.mvpformer.baselines.network import WindowNetwork, over_channels
from manyhead.mvpformer.model import MVPFormerConfig

# Amplitude in µV from which the signal is compressed like a logarithm.
KNEE = 50.0
# Channels, kernel and stride of each convolution.
LAYERS = ((16, 31, 8), (32, 9, 4), (64, 7, 2), (64, 5, 2))
WIDTH = 64


class CNN(WindowNetwork):
    """Strided convolutions over a segment; the newest segment beside the window's mean.

    There is no normalisation: amplitude tells seizures from background.

    Args:
        config: Segment length, classes and dropout.
    """

    def __init__(self, config: MVPFormerConfig) -> None:
        super().__init__(config)
        sizes = [1, *(width for width, _, _ in LAYERS)]
        convolutions = [
            nn.Sequential(nn.Conv1d(before, width, kernel, stride, kernel // 2), nn.GELU())
            for before, (width, kernel, stride) in zip(sizes, LAYERS, strict=False)
        ]
        self.convolutions = nn.Sequential(*convolutions)
        self.token = nn.Linear(2 * sizes[-1], WIDTH)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(4 * WIDTH, config.num_classes)

    def segment_tokens(self, signal: Tensor) -> Tensor:
        """Pooled features of each segment, `(B, T, C, 64)`."""
        segments = signal.flatten(0, 2).float()
        # A constant offset comes from the amplifier, not from the brain.
        centred = segments - segments.mean(-1, keepdim=True)
        loudness = (centred / KNEE).asinh()[:, None]
        x = self.convolutions(loudness.to(self.token.weight.dtype))
        token: Tensor = self.token(torch.cat([x.mean(-1), x.amax(-1)], -1))
        return token.view(*signal.shape[:3], WIDTH)

    def decide(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens themselves, and logits `(B, classes)`."""
        newest = tokens[:, -1]
        numbers = over_channels(torch.cat([newest, tokens.mean(1)], -1))
        with torch.autocast(tokens.device.type, enabled=False):
            dropped = self.dropout(numbers.to(self.head.weight.dtype))
            return tokens, self.head(dropped).float()
