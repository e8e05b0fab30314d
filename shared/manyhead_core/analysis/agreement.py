"""Attention against saliency: do the tokens that are attended to matter for the prediction?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from manyhead_core.analysis.rollout import Query, Reading, read_gradients, roll, row_of
from manyhead_core.analysis.run import DRAWS, SEED, Part, Study, evaluating, walk, with_intervals
from manyhead_core.attention.rollout import rollout
from manyhead_core.errors import DataError

Array = NDArray[Any]
TOP = 0.1
# Which keys of a map are the tokens of the saliency, such as all but a class token.
Keys = slice | Sequence[int]


class TokenMap(NamedTuple):
    """One way to make a token map of the attention of all heads.

    Args:
        aggregation: `head`, `layer_mean`, `all_mean`, `rollout`, `gradient` or
            `gradient_rollout`.
        layer: Number of the layer, or None.
        head: Number of the head, or None.
        values: `(batch, keys)`.
    """

    aggregation: str
    layer: int | None
    head: int | None
    values: Tensor


@dataclass(frozen=True, eq=False)
class Agreement:
    """How attention and saliency agree.

    Args:
        table: Columns aggregation, layer, head, measure, value, lo, hi. Aggregation `all_heads`
            has the explained share of all heads together, an upper bound.
        samples: The same for each sample, without intervals.
    """

    table: pd.DataFrame
    samples: pd.DataFrame


def agreement(
    study: Study,
    saliency: Callable[[Any], Tensor],
    *,
    layers: Sequence[int | str] | None = None,
    query: Query = "mean",
    keys: Keys = slice(None),
    target: Callable[[Any], Tensor] | None = None,
    top: float = TOP,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Agreement:
    """Correlation, overlap and explained share between attention and saliency, with intervals.

    Expect means over heads to beat single heads, and an upper bound clearly below 1. Layers without
    softmax weights are left out.

    Args:
        study: Model and batches.
        saliency: From a batch to token saliency, `(batch, tokens)`.
        layers: Numbers or names of layers; None takes all.
        query: Row of the maps that is read: the number of the class token, or the mean of all.
        keys: Keys of the maps that are the tokens of the saliency.
        target: From a batch to the class that gradients are of; None takes the predicted one.
        top: Share of the tokens that count as the top.
        draws: Resamples of the groups.
        seed: Seed of the draws.
    """
    frames = []
    for part in walk(study):
        wanted = None if target is None else target(part.batch)
        reading = read_gradients(study, part.batch, layers, wanted)
        with evaluating(study.model):
            truth = _array(saliency(part.batch))
        heads = []
        for one in aggregate(reading, query):
            values = _picked(one.values, keys, truth)
            frames.append(_rows(part, one, compare(values, truth, top)))
            if one.aggregation == "head":
                heads.append(values)
        bound = explained_share(np.stack(heads, 1), truth)
        together = TokenMap("all_heads", None, None, reading.maps[0])
        frames.append(_rows(part, together, {"explained": bound}))
    samples = pd.concat(frames, ignore_index=True)
    return Agreement(with_intervals(samples, draws=draws, seed=seed), samples)


def aggregate(reading: Reading, query: Query = "mean") -> Iterator[TokenMap]:
    """Token maps of single heads, means, rollout and, with gradients, weighted by them.

    `gradient` is the mean of `ReLU(P * dy/dP)` over heads and layers. Rollouts need maps that are
    square and of one size, and are left out otherwise.

    Args:
        reading: Maps of all layers.
        query: Row that is read.
    """
    rows = [row_of(weights, query) for weights in reading.maps]
    for layer, row in zip(reading.layers, rows, strict=True):
        for head in range(row.shape[1]):
            yield TokenMap("head", layer, head, row[:, head])
        yield TokenMap("layer_mean", layer, None, row.mean(1))
    yield TokenMap("all_mean", None, None, _mean(rows))
    square = {size for weights in reading.maps for size in weights.shape[-2:]}
    if len(square) == 1:
        yield TokenMap("rollout", None, None, row_of(rollout(reading.maps), query))
    if reading.gradients is not None:
        pairs = zip(reading.maps, reading.gradients, strict=True)
        weighted = [row_of((weights * slope).relu(), query) for weights, slope in pairs]
        yield TokenMap("gradient", None, None, _mean(weighted))
        if len(square) == 1:
            yield TokenMap("gradient_rollout", None, None, row_of(roll(reading), query))


def compare(attention: Array, saliency: Array, top: float = TOP) -> dict[str, Array]:
    """Pearson, Spearman, top-k overlap and explained share of each sample, `(samples,)` each.

    The overlap is the share of the top tokens of one map that are in the top of the other; by
    chance it is `top`. A constant map has no correlation (NaN).

    Args:
        attention: `(samples, tokens)`.
        saliency: Same shape.
        top: Share of the tokens that count as the top, at least one.
    """
    return {
        "pearson": correlation(attention, saliency),
        "spearman": correlation(rankdata(attention, axis=1), rankdata(saliency, axis=1)),
        "overlap": top_overlap(attention, saliency, top),
        "explained": explained_share(attention[:, None], saliency),
    }


def correlation(first: Array, second: Array) -> Array:
    """Pearson correlation of each row, `(samples,)`: mean product of the standardised rows."""
    return np.asarray((standardised(first) * standardised(second)).mean(1))


def standardised(values: Array) -> Array:
    """Rows with mean 0 and deviation 1; NaN for a constant row."""
    centred = values - values.mean(1, keepdims=True)
    deviation = centred.std(1, keepdims=True)
    # Rounding leaves a constant row with a tiny deviation.
    constant = deviation <= 1e-12 * np.abs(values).max(1, keepdims=True, initial=0.0)
    return np.asarray(np.where(constant, np.nan, centred / np.where(constant, 1.0, deviation)))


def top_overlap(first: Array, second: Array, top: float = TOP) -> Array:
    """Share of common tokens among the top of two maps, `(samples,)`."""
    tokens = first.shape[1]
    count = max(1, round(top * tokens))
    masks = []
    for values in (first, second):
        best = np.argsort(-values, axis=1, kind="stable")[:, :count]
        mask = np.zeros(values.shape, dtype=bool)
        np.put_along_axis(mask, best, True, axis=1)
        masks.append(mask)
    return np.asarray((masks[0] & masks[1]).sum(1) / count)


def explained_share(attention: Array, saliency: Array) -> Array:
    """R² of a linear regression of saliency on attention maps, `(samples,)`.

    NaN where the saliency is constant, or where there are as many maps as tokens less one, which
    would explain anything.

    Args:
        attention: `(samples, maps, tokens)`.
        saliency: `(samples, tokens)`.
    """
    _, maps, tokens = attention.shape
    found = np.full(len(saliency), np.nan)
    if maps >= tokens - 1:
        return found
    truth = standardised(saliency)
    for row, (regressors, wanted) in enumerate(zip(attention, truth, strict=True)):
        if np.isnan(wanted).any():
            continue
        centred = regressors - regressors.mean(1, keepdims=True)
        solution = np.linalg.lstsq(centred.T, wanted, rcond=None)[0]
        found[row] = 1 - ((wanted - solution @ centred) ** 2).mean()
    return found


def _rows(part: Part, one: TokenMap, measures: dict[str, Array]) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "sample": part.samples,
                "group": part.groups,
                "aggregation": one.aggregation,
                "layer": pd.array([one.layer] * len(values), dtype="Int64"),
                "head": pd.array([one.head] * len(values), dtype="Int64"),
                "measure": measure,
                "value": values,
            }
        )
        for measure, values in measures.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _mean(rows: Sequence[Tensor]) -> Tensor:
    """Mean over the heads of all layers."""
    return sum((row.sum(1) for row in rows[1:]), rows[0].sum(1)) / sum(r.shape[1] for r in rows)


def _picked(values: Tensor, keys: Keys, truth: Array) -> Array:
    chosen = _array(values[:, keys])
    if chosen.shape != truth.shape:
        raise DataError(
            f"saliency: shape {truth.shape} does not fit maps of shape {chosen.shape}; pool it to "
            "tokens, or choose keys"
        )
    return chosen


def _array(values: Tensor) -> Array:
    return np.asarray(values.detach().double().cpu())
