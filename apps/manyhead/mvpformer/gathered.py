"""Values of all validation batches, and of all processes, in the type that they come in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class Gathered(Metric):
    """Rows of the batches one after the other.

    The metric of torchmetrics for this turns numbers of windows into 32-bit floats, which cannot
    hold those of a large data set, and leaves rows with NaN out of one of two tables.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor) -> None:
        """Add the rows of a batch.

        Args:
            rows: `(rows, ...)`.
        """
        kept: Any = self.rows
        kept.append(rows.detach())

    def compute(self) -> Tensor:
        """All rows, `(rows, ...)`; of all processes, in no order that means anything."""
        rows: Any = self.rows
        found: Tensor = dim_zero_cat(rows) if len(rows) else torch.zeros(0, device=self.device)
        return found
