"""Attention maps of a whole model, with their gradients, and rollout over its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead_core.analysis.relevance import chosen_logit
from manyhead_core.analysis.run import Study, evaluating, pick_sites, walk
from manyhead_core.attention.capture import attention_sites, capture, edit_weights
from manyhead_core.attention.layer import Attend
from manyhead_core.attention.rollout import gradient_rollout, rollout
from manyhead_core.errors import ConfigError

Array = NDArray[Any]
# Row of a map that is read: that of one query, such as the class token, or the mean of all.
Query = int | Literal["mean"]


class Reading(NamedTuple):
    """Attention of one batch.

    Args:
        layers: Layer number of each map.
        maps: Weights in the order of the layers, `(batch, heads, queries, keys)`; a layer that is
            called several times has several.
        gradients: Derivative of the chosen logit by each weight, same shapes; None unless asked
            for.
    """

    layers: list[int]
    maps: list[Tensor]
    gradients: list[Tensor] | None = None


def read_maps(study: Study, batch: Any, layers: Sequence[int | str] | None = None) -> Reading:
    """Attention weights of a batch.

    Args:
        study: Model and forward.
        batch: One batch.
        layers: Numbers or names of layers; None takes all.

    Raises:
        ConfigError: No attention ran.
    """
    sites = pick_sites(study.model, layers)
    with (
        torch.no_grad(),
        evaluating(study.model),
        capture(study.model, list(sites.values())) as found,
    ):
        study.forward(batch)
    calls = [(layer, one) for layer, name in sites.items() for one in found.maps[name]]
    if not calls:
        raise ConfigError("layers: none of them gave attention maps; choose other layers")
    return Reading([layer for layer, _ in calls], [weights for _, weights in calls])


def read_gradients(
    study: Study,
    batch: Any,
    layers: Sequence[int | str] | None = None,
    target: Tensor | None = None,
) -> Reading:
    """Attention weights of a batch and how the chosen logit depends on them.

    Layers without softmax weights are left out.

    Args:
        study: Model and forward.
        batch: One batch.
        layers: Numbers or names of layers; None takes all.
        target: Class of each sample, `(batch,)`; None takes the predicted one.

    Raises:
        ConfigError: No attention ran.
    """
    modules = attention_sites(study.model)
    sites = pick_sites(study.model, layers)
    sites = {layer: name for layer, name in sites.items() if isinstance(modules[name], Attend)}
    calls: list[tuple[int, Tensor, Tensor]] = []

    def probe(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(weights: Tensor) -> Tensor:
            # A sum with zeros gives the derivative also where nothing else needs a gradient.
            zeros = torch.zeros_like(weights, requires_grad=True)
            calls.append((layer, weights.detach(), zeros))
            return weights + zeros

        return edit

    edits = {name: probe(layer) for layer, name in sites.items()}
    with torch.enable_grad(), evaluating(study.model), edit_weights(study.model, edits):
        logit = chosen_logit(study.forward(batch), target)
    if not calls:
        raise ConfigError("layers: none of them has softmax weights; choose other layers")
    # A stable sort: calls of one layer stay in their order.
    calls.sort(key=lambda call: call[0])
    slopes = torch.autograd.grad(
        logit.sum(), [zeros for *_, zeros in calls], allow_unused=True, materialize_grads=True
    )
    return Reading([layer for layer, *_ in calls], [w for _, w, _ in calls], list(slopes))


def token_rollout(
    study: Study,
    *,
    layers: Sequence[int | str] | None = None,
    query: Query = "mean",
    gradient: bool = False,
    target: Callable[[Any], Tensor] | None = None,
) -> list[Array]:
    """Share of each input token in what the model reads out, one array `(tokens,)` a sample.

    Args:
        study: Model and batches.
        layers: Numbers or names of layers, without gaps for a meaningful result; None takes all.
        query: Row that is read out: the number of the class token, or the mean of all.
        gradient: Whether to weigh attention by its gradient.
        target: From a batch to the class whose logit is derived, `(batch,)`; None takes the
            predicted one.
    """
    found: list[Array] = []
    for part in walk(study):
        if gradient:
            wanted = None if target is None else target(part.batch)
            reading = read_gradients(study, part.batch, layers, wanted)
        else:
            reading = read_maps(study, part.batch, layers)
        found.extend(np.asarray(row_of(roll(reading), query).cpu()))
    return found


def roll(reading: Reading) -> Tensor:
    """Rollout of a reading, `(batch, tokens, tokens)`; with gradients, their variant."""
    if reading.gradients is None:
        return rollout(reading.maps)
    return gradient_rollout(reading.maps, reading.gradients)


def row_of(maps: Tensor, query: Query) -> Tensor:
    """The row that is read out, `(..., keys)`.

    Args:
        maps: `(..., queries, keys)`.
        query: Number of a query, or `mean`.
    """
    return maps.mean(-2) if query == "mean" else maps[..., query, :]
