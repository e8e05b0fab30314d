"""Faithfulness of token maps: how fast a prediction falls or rises with the tokens they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead_core.analysis.outputs import probabilities
from manyhead_core.analysis.run import DRAWS, SEED, Part, Study, evaluating, walk, with_intervals
from manyhead_core.errors import ConfigError

Array = NDArray[Any]
STEPS = 20
ORDERS = 10


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion and insertion of a token map.

    Args:
        table: Columns measure (`deletion`, `insertion`), order (`map`, `random`, `difference`),
            value, lo, hi. The value is an area under the curve; a faithful map has a lower
            deletion and a higher insertion than random orders. The difference is map less random.
        curves: Columns measure, order, share (of tokens deleted or inserted), probability (mean
            over samples).
        samples: The areas of each sample.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    samples: pd.DataFrame


def faithfulness(
    study: Study,
    relevance: Callable[[Any], Tensor],
    replace: Callable[[Any, Tensor], Any],
    *,
    target: Callable[[Any], Tensor] | None = None,
    steps: int = STEPS,
    orders: int = ORDERS,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Faithfulness:
    """Area under the probability of a class while tokens go, or come, most relevant first.

    Petsiuk et al., BMVC 2018. The baseline takes the tokens in random order.

    Args:
        study: Model and batches.
        relevance: From a batch to a token map, `(batch, tokens)`.
        replace: Takes a batch and the kept tokens, boolean `(batch, tokens)`; gives the batch
            without the others.
        target: From a batch to the class whose probability is followed, `(batch,)`; None takes the
            one predicted for the whole input.
        steps: Points on a curve after the first; at most one for each token is used.
        orders: Random orders of the baseline.
        draws: Resamples of the groups.
        seed: Seed of orders and draws.

    Raises:
        ConfigError: `steps` or `orders` is below 1.
    """
    if steps < 1 or orders < 1:
        raise ConfigError(f"steps, orders: need 1 or more, got {steps} and {orders}")
    generator = torch.Generator().manual_seed(seed)
    areas: list[pd.DataFrame] = []
    points: list[pd.DataFrame] = []
    with torch.no_grad(), evaluating(study.model):
        for part in walk(study):
            scores = relevance(part.batch).detach().cpu()
            follow = _follower(study, part.batch, replace, target)
            shuffled = [torch.rand(scores.shape, generator=generator) for _ in range(orders)]
            for measure in ("deletion", "insertion"):
                shares, own = curve(follow, scores, measure, steps)
                others = [curve(follow, order, measure, steps)[1] for order in shuffled]
                found = {"map": own, "random": np.mean(others, axis=0)}
                areas.append(_areas(part, measure, shares, found))
                points.append(_points(part, measure, shares, found))
    samples = pd.concat(areas, ignore_index=True)
    names = ["measure", "order", "share"]
    curves = pd.concat(points).groupby(names, sort=False)["probability"].mean().reset_index()
    return Faithfulness(with_intervals(samples, draws=draws, seed=seed), curves, samples)


def curve(
    follow: Callable[[Tensor], Tensor], scores: Tensor, measure: str, steps: int = STEPS
) -> tuple[Array, Array]:
    """Shares of tokens gone or come, `(points,)`, and probabilities, `(batch, points)`.

    Args:
        follow: From kept tokens, boolean `(batch, tokens)`, to probabilities, `(batch,)`.
        scores: Token map, `(batch, tokens)`.
        measure: `deletion` or `insertion`.
        steps: As in `faithfulness`.
    """
    tokens = scores.shape[1]
    counts = np.unique(np.linspace(0, tokens, min(steps, tokens) + 1).round().astype(int))
    place = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    values = []
    for count in counts.tolist():
        first = place < count
        kept = ~first if measure == "deletion" else first
        values.append(follow(kept).double().cpu().numpy())
    return counts / tokens, np.stack(values, 1)


def _follower(
    study: Study,
    batch: Any,
    replace: Callable[[Any, Tensor], Any],
    target: Callable[[Any], Tensor] | None,
) -> Callable[[Tensor], Tensor]:
    full = probabilities(study.forward(batch))
    wanted = full.argmax(1) if target is None else target(batch).to(full.device).long()

    def follow(kept: Tensor) -> Tensor:
        changed = replace(batch, kept.to(full.device))
        return probabilities(study.forward(changed)).gather(1, wanted[:, None])[:, 0]

    return follow


def _areas(part: Part, measure: str, shares: Array, found: dict[str, Array]) -> pd.DataFrame:
    areas = {order: np.trapezoid(values, shares, axis=1) for order, values in found.items()}
    areas["difference"] = areas["map"] - areas["random"]
    frames = [
        pd.DataFrame(
            {
                "sample": part.samples,
                "group": part.groups,
                "measure": measure,
                "order": order,
                "value": area,
            }
        )
        for order, area in areas.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _points(part: Part, measure: str, shares: Array, found: dict[str, Array]) -> pd.DataFrame:
    samples = len(part.samples)
    frames = [
        pd.DataFrame(
            {
                "measure": measure,
                "order": order,
                "share": np.tile(shares, samples),
                "probability": values.ravel(),
            }
        )
        for order, values in found.items()
    ]
    return pd.concat(frames, ignore_index=True)
