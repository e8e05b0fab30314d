"""A packed batch of bags, as the loader gives it and the networks take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Bags(NamedTuple):
    """Patches of several bags, one below the other.

    Args:
        features: `(total, feature_dim)`, float16 or float32.
        cu_seqlens: Where the bags start, and last the total, int64 `(bags + 1,)`.
        label: Class number, number or time, `(bags,)`; int64 for classes, else float32.
        event: True where the event of a survival time was seen, bool `(bags,)`.
        number: Which bag of the data set it is, int64 `(bags,)`.
    """

    features: Tensor
    cu_seqlens: Tensor
    label: Tensor
    event: Tensor
    number: Tensor


def pack(
    features: Sequence[Tensor], labels: Sequence[float], events: Sequence[bool],
    numbers: Sequence[int], *, classes: bool = True,
) -> Bags:  # fmt: skip
    """Put bags together.

    Args:
        features: Of each bag, `(patches, feature_dim)`.
        labels: Of each bag.
        events: Of each bag.
        numbers: Of each bag.
        classes: Whether labels are class numbers.
    """
    bounds = [0]
    for bag in features:
        bounds.append(bounds[-1] + len(bag))
    kind = torch.int64 if classes else torch.float32
    return Bags(
        torch.cat(list(features)) if len(features) != 1 else features[0],
        torch.tensor(bounds),
        torch.tensor(labels, dtype=kind),
        torch.tensor(events, dtype=torch.bool),
        torch.tensor(numbers),
    )
