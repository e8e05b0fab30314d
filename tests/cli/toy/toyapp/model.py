from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from manyhead_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Sizes of the toy.

    Args:
        num_features: Comes from the data.
        hidden: Widths of hidden layers.
        dropout: Dropout probability.
    """

    num_features: int = 1
    hidden: tuple[int, ...] = (4,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")


class Toy(nn.Module):
    app = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        widths = (config.num_features, *config.hidden)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.body = nn.Sequential(*layers, nn.Dropout(config.dropout), nn.Linear(widths[-1], 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features).squeeze(-1)
