"""Capacity probe: how many key-value pairs a head can hold and still retrieve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.attend import attend
from manyhead_core.attention.linear_attend import linear_attend

# Query, key, value `(batch, 1, pairs, width)` -> retrieved values of the same shape.
Retrieve = Callable[[Tensor, Tensor, Tensor], Tensor]

COUNTS = tuple(round(2 ** (step / 2)) for step in range(2, 23))
THRESHOLD = 0.9


@dataclass(frozen=True, eq=False)
class Capacity:
    """What `capacity` gives.

    Args:
        table: n, cosine: mean cosine between stored and retrieved value, and its standard error.
        pairs: Number of pairs at which the cosine falls below the threshold, interpolated on the
            logarithm of n; infinity where it never does, 0 where the smallest n is already below.
    """

    table: pd.DataFrame
    pairs: float


def softmax_retrieval(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention."""
    return attend(query, key, value).out


def linear_retrieval(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Products as weights, without a softmax; a cosine does not see their normaliser."""
    return query @ (key.mT @ value)


def feature_retrieval(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention with the feature `elu + 1`, whose positive products all overlap."""
    return linear_attend(query, key, value).out


RETRIEVALS: dict[str, Retrieve] = {
    "softmax": softmax_retrieval,
    "linear": linear_retrieval,
    "linear_elu": feature_retrieval,
}


def capacity(
    retrieve: Retrieve | str,
    head_dim: int,
    *,
    counts: Sequence[int] = COUNTS,
    threshold: float = THRESHOLD,
    trials: int = 8,
    seed: int = 0,
) -> Capacity:
    """Store random pairs in a head, retrieve each value by its key, compare by cosine.

    Keys and values are standard normal, queries are the keys. What linear attention can hold grows
    with `head_dim`.

    Args:
        retrieve: `softmax`, `linear`, `linear_elu`, or any function of query, key and value.
        head_dim: Width of keys and values.
        counts: Numbers of pairs to try, ascending.
        threshold: Cosine below which a value counts as lost.
        trials: Repetitions with new pairs.
        seed: Seed of the pairs.
    """
    function = RETRIEVALS[retrieve] if isinstance(retrieve, str) else retrieve
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count in counts:
        key, value = torch.randn(2, trials, 1, count, head_dim, generator=generator)
        with torch.no_grad():
            cosine = F.cosine_similarity(function(key, key, value), value, dim=-1).mean((1, 2))
        error = float(cosine.std() / trials**0.5) if trials > 1 else float("nan")
        rows.append({"n": count, "cosine": float(cosine.mean()), "error": error})
    table = pd.DataFrame(rows)
    return Capacity(table, _crossing(table, threshold))


def _crossing(table: pd.DataFrame, threshold: float) -> float:
    counts, cosines = table["n"].to_numpy(dtype=float), table["cosine"].to_numpy(dtype=float)
    below = (cosines < threshold).nonzero()[0]
    if len(below) == 0:
        return float("inf")
    at = int(below[0])
    if at == 0:
        return 0.0
    share = (cosines[at - 1] - threshold) / (cosines[at - 1] - cosines[at])
    return float(counts[at - 1] * (counts[at] / counts[at - 1]) ** share)
