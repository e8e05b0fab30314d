"""What a model can do without: the metric against the number of removed heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from manyhead_core.analysis.importance import head_gates, model_device
from manyhead_core.analysis.outputs import Loss, sample_loss
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Head,
    Site,
    Study,
    evaluating,
    find_heads,
    interval_of_metric,
    labels_of,
    walk,
)
from manyhead_core.attention.capture import gate_heads

Array = NDArray[Any]
# From logits and labels of all samples to one number; larger is better.
Metric = Callable[[Array, Array], float]


class Predictions(NamedTuple):
    """What a model says about all samples of a study.

    Args:
        logits: `(samples,)` or `(samples, classes)`.
        labels: Class numbers, `(samples,)`.
        losses: `(samples,)`.
        groups: `(samples,)`.
    """

    logits: Array
    labels: Array
    losses: Array
    groups: Array


def accuracy(logits: Array, labels: Array) -> float:
    """Share of right predictions.

    Args:
        logits: `(samples,)`, `(samples, 1)` or `(samples, classes)`.
        labels: Class numbers, `(samples,)`.
    """
    binary = logits.ndim == 1 or logits.shape[1] == 1
    predicted = logits.reshape(labels.shape) > 0 if binary else logits.argmax(1)
    return float((predicted == labels).mean())


def pruning_curve(
    study: Study,
    metric: Metric = accuracy,
    *,
    order: Sequence[Head] | None = None,
    layers: Sequence[int | str] | None = None,
    limit: int | None = None,
    loss: Loss = sample_loss,
    draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """The metric after removing heads one by one.

    Without an order the search is greedy: every step removes the head without which the metric is
    best, ties going to the smaller loss. That takes about half the square of the number of heads in
    passes over the data.

    Args:
        study: Model, batches and labels.
        metric: From logits and labels of all samples to a number; larger is better.
        order: Heads in the order of removal, such as `ranked_heads` gives; None searches greedily.
        layers: Layers whose heads may go; None takes all.
        limit: Heads to remove at most; None removes all.
        loss: From logits and labels to a loss for each sample.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Returns:
        Columns removed, layer, head (those of this step, missing in the first row), value, lo, hi,
        loss.
    """
    sites = find_heads(study, layers)
    waiting = [(site.layer, head) for site in sites for head in range(site.heads)]
    steps = len(waiting) if order is None else len(order)
    gone: list[Head] = []
    rows = [_row(gone, predict(study, sites, gone, loss), metric, draws, seed)]
    for step in range(steps if limit is None else min(limit, steps)):
        options = waiting if order is None else [order[step]]
        tried = [(head, predict(study, sites, [*gone, head], loss)) for head in options]
        head, found = max(tried, key=lambda pair: _merit(pair[1], metric))
        gone.append(head)
        if order is None:
            waiting.remove(head)
        rows.append(_row(gone, found, metric, draws, seed))
    return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


def predict(
    study: Study, sites: Sequence[Site], removed: Sequence[Head] = (), loss: Loss = sample_loss
) -> Predictions:
    """Logits of all samples without some heads.

    Args:
        study: Model, batches and labels.
        sites: Layers of the model.
        removed: Heads to leave out, as (layer, head).
        loss: From logits and labels to a loss for each sample.
    """
    gates = head_gates(sites, removed, model_device(study))
    parts = []
    with torch.no_grad(), evaluating(study.model), gate_heads(study.model, gates):
        for part in walk(study):
            labels = labels_of(study, part.batch)
            logits = study.forward(part.batch)
            tensors = (logits.float(), labels, loss(logits, labels).float())
            parts.append((*(tensor.cpu().numpy() for tensor in tensors), part.groups))
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def metric_interval(
    found: Predictions, metric: Metric, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """95 % limits of a metric when groups are drawn.

    Args:
        found: Predictions of all samples.
        metric: As in `pruning_curve`.
        draws: Resamples.
        seed: Seed of the draws.
    """
    return interval_of_metric(
        lambda rows: metric(found.logits[rows], found.labels[rows]), found.groups, draws, seed
    )


def _merit(found: Predictions, metric: Metric) -> tuple[float, float]:
    return metric(found.logits, found.labels), -float(found.losses.mean())


def _row(
    gone: Sequence[Head], found: Predictions, metric: Metric, draws: int, seed: int
) -> dict[str, Any]:
    layer, head = gone[-1] if gone else (None, None)
    low, high = metric_interval(found, metric, draws, seed)
    return {
        "removed": len(gone),
        "layer": layer,
        "head": head,
        "value": metric(found.logits, found.labels),
        "lo": low,
        "hi": high,
        "loss": float(found.losses.mean()),
    }
