"""What the baselines share: segments first, then the window."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from manyhead.mvpformer.model import MVPFormerConfig, MVPFormerOutput
from manyhead_core.errors import ConfigError, DataError


class WindowNetwork(nn.Module, ABC):
    """Base of the baselines.

    Args:
        config: Sizes and target.

    Attributes:
        threshold: Probability from which a step counts as seizure.

    Raises:
        ConfigError: The config asks for another target than `classes`.
    """

    threshold: Tensor

    def __init__(self, config: MVPFormerConfig) -> None:
        super().__init__()
        if config.target != "classes":
            raise ConfigError(
                f"target: {config.target} needs network mvpformer; a baseline only knows classes"
            )
        self.config = config
        self.register_buffer("threshold", torch.tensor(0.5))

    def encode(self, signal: Tensor) -> Tensor:
        """Tokens, segment by segment: `(B, T, C, ...)`.

        Args:
            signal: µV, `(B, T, C, S)`.

        Raises:
            DataError: The segments have another length than the network was built for.
        """
        if signal.ndim != 4 or signal.shape[-1] != self.config.segment_samples:
            raise DataError(
                f"signal: is {tuple(signal.shape)}; the network takes (windows, segments, "
                f"channels, {self.config.segment_samples} samples)"
            )
        return self.segment_tokens(signal)

    def forward(
        self, signal: Tensor | None = None, *, tokens: Tensor | None = None
    ) -> MVPFormerOutput:
        """Logits of the newest segment.

        Args:
            signal: µV, `(B, T, C, S)`.
            tokens: What `encode` gave for the same windows, in place of the signal.

        Raises:
            ConfigError: Neither or both are given.
        """
        if (signal is None) == (tokens is None):
            raise ConfigError("signal, tokens: give exactly one of them")
        if tokens is None:
            assert signal is not None  # noqa: S101 - said above
            tokens = self.encode(signal)
        hidden, logits = self.decide(tokens)
        return MVPFormerOutput(logits, None, hidden, tokens)

    @abstractmethod
    def segment_tokens(self, signal: Tensor) -> Tensor:
        """`(B, T, C, S)` to `(B, T, C, ...)`; a token depends on its own segment alone."""

    @abstractmethod
    def decide(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of each segment `(B, T, C, width)`, and logits `(B, classes)`."""


def over_channels(x: Tensor) -> Tensor:
    """Mean and largest over channels, `(B, C, n)` to `(B, 2n)`; their order does not matter."""
    return torch.cat([x.mean(1), x.amax(1)], -1)
