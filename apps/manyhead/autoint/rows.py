"""A batch of encoded table rows, as the loader gives it and the networks take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Encoded rows; the token order is the single-valued fields, then the multi-valued ones.

    Args:
        index: Dictionary ids of the single-valued fields, int32 `(batch, single)`.
        value: 1 for a category, the scaled number for a number, 0 for a missing value, float32
            `(batch, single)`.
        lists: Per multi-valued field: ids int32 `(batch, slots)` and weights float32
            `(batch, slots)`; weight 0 marks an unused slot.
        label: 0 or 1, float32 `(batch,)`.
        row: Row number in the source, int64 `(batch,)`.
        group: User or other unit that rows belong to, int64 `(batch,)`; -1 for none.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    value: Tensor
    lists: tuple[tuple[Tensor, Tensor], ...]
    label: Tensor
    row: Tensor
    group: Tensor
