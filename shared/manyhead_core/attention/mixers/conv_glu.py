"""`ConvGLU`: the channel mixer of Shi, CVPR 2024, arXiv 2311.17132."""

from __future__ import annotations

from torch import Tensor, nn

from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.errors import ConfigError


class ConvGLU(nn.Module):
    """A feed-forward block with a gate that sees the neighbours.

    `out = Linear(GELU(dwconv(a)) * b)` with `[a, b] = Linear(x)` (section 3.4 of the paper).

    Args:
        dim: Model width.
        ratio: Width of the plain feed-forward block of equal cost, in model widths; the gate takes
            a third of it, so the hidden width is `int(2 * ratio * dim / 3)`.
        dropout: Probability of dropping an entry while training.
    """

    def __init__(self, dim: int, *, ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = int(2 * ratio * dim / 3)
        if hidden < 1:
            raise ConfigError(f"ratio: {ratio} leaves no hidden channel at dim={dim}")
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        start_linear(self.fc1, self.fc2)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens `(batch, height * width, dim)` to the same shape.

        Args:
            x: Tokens, row-major.
            grid: Height and width.
        """
        gate, value = self.fc1(x).chunk(2, -1)
        gate = self.dwconv(gate.mT.unflatten(-1, grid)).flatten(2).mT
        return self.dropout(self.fc2(self.dropout(self.act(gate) * value)))
