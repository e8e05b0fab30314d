"""Heads replaced little by little: by attention to oneself, or to everything alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from manyhead_core.analysis.outputs import (
    Loss,
    jensen_shannon,
    probabilities,
    sample_loss,
    true_probability,
)
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Head,
    Study,
    evaluating,
    find_heads,
    head_numbers,
    head_rows,
    labels_of,
    pick_sites,
    walk,
    with_intervals,
)
from manyhead_core.analysis.stream import VisibleEdit, edit_visible
from manyhead_core.errors import ConfigError

Pattern = Literal["self", "uniform"]
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


@contextmanager
def soften(
    model: nn.Module, strengths: Mapping[Head, float], pattern: Pattern = "uniform"
) -> Iterator[None]:
    """Move the weights of some heads towards a pattern: `P <- (1 - t) P + t pattern`.

    `self` is the identity, `uniform` the mean over the visible keys. Rows keep their sum; a row
    that sees no key, or not itself for `self`, stays as it is.

    Args:
        model: The model to change.
        strengths: `t` from 0 to 1 by (layer, head).
        pattern: What the weights move to.

    Raises:
        ConfigError: A strength outside 0 to 1, an unknown pattern or layer, or, when called,
            `self` where queries and keys differ in number.
    """
    if pattern not in ("self", "uniform"):
        raise ConfigError(f"pattern: {pattern!r} is unknown; use self or uniform")
    for head, strength in strengths.items():
        if not 0 <= strength <= 1:
            raise ConfigError(f"strengths: {strength} of head {head} is not between 0 and 1")
    names = pick_sites(model, sorted({layer for layer, _ in strengths}))

    def edit(layer: int) -> VisibleEdit:
        own = {head: t for (number, head), t in strengths.items() if number == layer}
        return lambda weights, visible: _softened(weights, visible, own, pattern)

    with edit_visible(model, {name: edit(layer) for layer, name in names.items()}):
        yield


def soft_ablation(
    study: Study,
    *,
    pattern: Pattern = "uniform",
    strengths: Sequence[float] = STRENGTHS,
    layers: Sequence[int | str] | None = None,
    loss: Loss = sample_loss,
    draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """What predictions lose as one head after the other moves towards a pattern.

    Args:
        study: Model, batches and labels.
        pattern: As in `soften`.
        strengths: Values of `t` to try.
        layers: Layers to look at, by number or name; None takes all.
        loss: From logits and labels to a loss for each sample.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Returns:
        Columns layer, head, pattern, strength, measure (`loss_change`, `probability_drop`,
        `divergence` as in `head_importance`), value, lo, hi.
    """
    sites = find_heads(study, layers, softmax=True)
    frames = []
    with torch.no_grad(), evaluating(study.model):
        for part in walk(study):
            labels = labels_of(study, part.batch)
            full = study.forward(part.batch)
            for site in sites:
                for strength in strengths:
                    columns = []
                    for head in range(site.heads):
                        with soften(study.model, {(site.layer, head): strength}, pattern):
                            changed = study.forward(part.batch)
                        columns.append(_changes(full, changed, labels, loss))
                    values = {m: torch.stack([c[m] for c in columns], 1) for m in columns[0]}
                    extra = {"pattern": pattern, "strength": strength}
                    frames.append(head_rows(part, site.layer, values, **extra))
    return with_intervals(pd.concat(frames, ignore_index=True), draws=draws, seed=seed)


def _softened(
    weights: Tensor, visible: Tensor, strengths: Mapping[int, float], pattern: Pattern
) -> Tensor:
    t = weights.new_zeros(weights.shape[1])
    for head, strength in strengths.items():
        t[head_numbers([head], weights.shape[1])] = strength
    if pattern == "uniform":
        target = visible / visible.sum(-1, keepdim=True).clamp_min(1)
    else:
        queries, keys = weights.shape[2:]
        if queries != keys:
            raise ConfigError(
                f"pattern: self needs as many queries as keys, got {queries} and {keys}; "
                "use uniform"
            )
        target = visible & torch.eye(keys, dtype=torch.bool, device=weights.device)
    target = target.to(weights.dtype)
    possible = target.sum(-1, keepdim=True) > 0
    t = t[:, None, None] * possible
    return (1 - t) * weights + t * target


def _changes(full: Tensor, changed: Tensor, labels: Tensor, loss: Loss) -> dict[str, Tensor]:
    before, after = probabilities(full), probabilities(changed)
    return {
        "loss_change": loss(changed, labels) - loss(full, labels),
        "probability_drop": true_probability(before, labels) - true_probability(after, labels),
        "divergence": jensen_shannon(before, after),
    }
