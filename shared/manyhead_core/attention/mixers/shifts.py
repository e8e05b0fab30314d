"""What the mixers with a local window share: neighbours by shifting, and first weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def shifts(x: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Neighbours of every place of a map, one tensor for each offset of a window.

    Shifting needs no copy of all windows and, unlike a convolution with one group for each sample,
    exports with a free batch size.

    Args:
        x: `(..., height, width)`.
        size: Height and width of the window, odd.

    Returns:
        Tensors in the shape of `x`, offsets row-major, zeros outside the map.
    """
    height, width = x.shape[-2:]
    rows, columns = size[0] // 2, size[1] // 2
    padded = F.pad(x, (columns, columns, rows, rows))
    return [
        padded[..., row : row + height, column : column + width]
        for row in range(size[0])
        for column in range(size[1])
    ]


def start_linear(*layers: nn.Linear) -> None:
    """Fill weights from a normal of deviation 0.02 cut at two deviations, biases with zeros."""
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
