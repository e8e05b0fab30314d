"""A network with what it wants done to a tile beforehand, behind one interface."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manyhead_core.errors import ConfigError

TileTransform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoder:
    """A network that turns tiles into features.

    Args:
        module: Takes what `transform` gives and returns `(tiles, feature_dim)`; in evaluation mode.
        transform: From 8-bit RGB tiles `(tiles, 3, height, width)` to the input of `module`.
        feature_dim: Width of a feature.
        name: What features are filed under.
        weights_sha256: Hash of the names and values of all weights; empty when there are none.
        transform_name: What tells `transform` from others.
    """

    module: nn.Module
    transform: TileTransform
    feature_dim: int
    name: str
    weights_sha256: str = ""
    transform_name: str = ""

    def described(self) -> dict[str, str | int]:
        """What a feature file says of the encoder; equal for equal features."""
        return {
            "encoder": self.name,
            "feature_dim": self.feature_dim,
            "weights_sha256": self.weights_sha256,
            "transform": self.transform_name,
        }

    @torch.inference_mode()
    def encode(
        self, tiles: Tensor, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Features of tiles, `(tiles, feature_dim)` float32 on the CPU.

        Args:
            tiles: 8-bit RGB, `(tiles, height, width, 3)`.
            device: Where `module` lies; the CPU by default.
            dtype: Reduced precision of the matrix products; None is float32.

        Raises:
            ConfigError: The network returns something else than one row a tile.
        """
        place = device or torch.device("cpu")
        pixels = tiles.to(place, non_blocking=True).permute(0, 3, 1, 2)
        reduced: Any = torch.autocast(place.type, dtype) if dtype else nullcontext()
        try:
            with reduced:
                found = self.module(self.transform(pixels))
        except torch.OutOfMemoryError as err:
            raise ConfigError(
                f"batch_size: {len(tiles)} patches do not fit into the memory of {place}; pass less"
            ) from err
        return as_rows(found, len(tiles), self.name).float().cpu()


def as_rows(found: Any, count: int, name: str) -> Tensor:
    """Features as a table; pooled maps of one pixel are flattened.

    Raises:
        ConfigError: There is no such table.
    """
    if isinstance(found, Tensor) and found.ndim == 4 and found.shape[2:] == (1, 1):
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"encoder: {name} returns {what} for {count} tiles, not a tensor (tiles, width); wrap "
            "it in a module that does"
        )
    return found


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights; empty when there are none."""
    state = module.state_dict()
    if not state:
        return ""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
