"""Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) on queries and values."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Adapted = Literal["value", "key_value"]


class AdaptedLinear(nn.Linear):
    """A linear layer without bias plus a product of two thin matrices: `W + alpha / rank B A`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rank: Rank of the product.
        alpha: Scale of the product, times the rank.
        first_row: First row of `W` that is adapted; the ones before stay as they are.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, alpha: float, first_row: int = 0
    ) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scaling, self.first_row = alpha / rank, first_row
        self.lora_A = nn.Parameter(torch.empty(rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features - first_row, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        change = F.linear(F.linear(input, self.lora_A), self.lora_B) * self.scaling
        return F.linear(input, self.weight) + F.pad(change, (self.first_row, 0))

    def merged_weight(self) -> Tensor:
        """The weight of one layer that computes the same."""
        merged = self.weight.detach().clone()
        merged[self.first_row :] += self.scaling * (self.lora_B @ self.lora_A).detach()
        return merged


def adapt(layer: nn.Linear, rank: int, alpha: float, first_row: int = 0) -> AdaptedLinear:
    """The layer with a fresh adapter, which changes nothing until it is trained.

    Args:
        layer: A linear layer without bias; its weight is shared.
        rank: Rank of the adapter.
        alpha: Scale of the adapter, times the rank.
        first_row: First row of the weight that is adapted.
    """
    found = AdaptedLinear(layer.in_features, layer.out_features, rank, alpha, first_row)
    found.weight = layer.weight
    return found


def adapters(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers of a model by name."""
    return {n: part for n, part in model.named_modules() if isinstance(part, AdaptedLinear)}


def freeze_base(model: nn.Module, trained: tuple[str, ...] = ("head.",)) -> list[str]:
    """Let only adapters and head learn.

    Args:
        model: A model with adapters.
        trained: Prefixes of further parameters that learn.

    Returns:
        Names of the parameters that learn.
    """
    names = []
    for name, parameter in model.named_parameters():
        learns = ".lora_" in name or name.startswith(trained)
        parameter.requires_grad_(learns)
        if learns:
            names.append(name)
    return names


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of the same model without adapters: their products are added to the weights.

    The model itself stays as it is, so merging twice adds nothing twice.
    """
    layers = adapters(model)
    state = {name: x for name, x in model.state_dict().items() if ".lora_" not in name}
    return state | {f"{name}.weight": layer.merged_weight() for name, layer in layers.items()}


def adapter_state(model: nn.Module, extra: tuple[str, ...] = ("head.",)) -> dict[str, Tensor]:
    """What fine-tuning with adapters has changed: adapters and head, about 1 MB for size S."""
    return {
        name: x
        for name, x in model.state_dict().items()
        if ".lora_" in name or name.startswith(extra)
    }
