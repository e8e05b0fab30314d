"""Weights that sinks give back: ACT for chosen heads, VAR for a subset of the keys.

Both change attention weights after the softmax, without training, for as long as a `with` lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

from manyhead_core.analysis.pruning import Metric, accuracy, metric_interval, predict
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Head,
    Study,
    find_heads,
    head_numbers,
    pick_sites,
)
from manyhead_core.analysis.sinks import columns_of, is_sink
from manyhead_core.analysis.stream import VisibleEdit, edit_visible, real_queries
from manyhead_core.errors import ConfigError

BETA = 0.4
RHO = 0.5
MIN_MASS = 0.2
KEEP = 0.6


@contextmanager
def calibrate_sinks(
    model: nn.Module, heads: Iterable[Head], *, beta: float = BETA, alpha: float | None = None
) -> Iterator[None]:
    """Take weight from the sinks of chosen heads, but for the first one (ACT).

    Yu et al., ICML 2024, arXiv:2406.15765.

    Args:
        model: The model to change.
        heads: As (layer, head), such as `choose_heads` finds.
        beta: Factor of the columns of the other sinks, 0 to 1.
        alpha: Threshold of the column score; None takes 0.1, and 3 / keys for up to 20 keys.

    Raises:
        ConfigError: `beta` outside 0 to 1, or an unknown layer or head.
    """
    _check_share("beta", beta)
    chosen = sorted(set(heads))
    names = pick_sites(model, sorted({layer for layer, _ in chosen}))

    def edit(layer: int) -> VisibleEdit:
        own = [head for number, head in chosen if number == layer]

        def act(weights: Tensor, visible: Tensor) -> Tensor:
            on = torch.zeros(weights.shape[1], dtype=torch.bool, device=weights.device)
            on[head_numbers(own, len(on))] = True
            changed = act_weights(weights, visible, beta, alpha)
            return torch.where(on[:, None, None], changed, weights)

        return act

    with edit_visible(model, {name: edit(layer) for layer, name in names.items()}):
        yield


@contextmanager
def redistribute_sinks(
    model: nn.Module,
    keys: Tensor | Sequence[int],
    *,
    rho: float = RHO,
    keep: float = KEEP,
    min_mass: float = MIN_MASS,
    alpha: float | None = None,
    layers: Sequence[int | str] | None = None,
) -> Iterator[None]:
    """Move weight from all sinks to a subset of the keys, such as an image's (VAR).

    Kang et al., ICLR 2025, arXiv:2503.03321. It acts on heads that look at the subset already; the
    last layer of the model stays as it is.

    Args:
        model: The model to change.
        keys: The subset: numbers, or boolean `(keys,)` or `(batch, keys)`.
        rho: Heads whose sinks have a larger share of the subset's weight are left alone.
        keep: Factor of the columns of the sinks, 0 to 1.
        min_mass: Heads with less weight on the subset, as a mean over the queries, are left alone.
        alpha: As in `calibrate_sinks`.
        layers: Layers to change, by number or name; None takes all but the last.

    Raises:
        ConfigError: A share outside 0 to 1, or an unknown layer.
    """
    for name, value in (("rho", rho), ("keep", keep), ("min_mass", min_mass)):
        _check_share(name, value)
    last = max(pick_sites(model))
    names = {n: name for n, name in pick_sites(model, layers, softmax=True).items() if n != last}

    def edit(weights: Tensor, visible: Tensor) -> Tensor:
        subset = _subset(keys, weights)
        return var_weights(weights, visible, subset, rho, keep, min_mass, alpha)

    with edit_visible(model, dict.fromkeys(names.values(), edit)):
        yield


def choose_heads(
    study: Study,
    metric: Metric = accuracy,
    *,
    beta: float = BETA,
    alpha: float | None = None,
    layers: Sequence[int | str] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> tuple[list[Head], pd.DataFrame]:
    """Heads whose calibration by itself raises the metric on a labelled calibration set.

    Args:
        study: Model, and the calibration set as its batches.
        metric: From logits and labels of all samples to a number; larger is better.
        beta: As in `calibrate_sinks`.
        alpha: As in `calibrate_sinks`.
        layers: Layers to try, by number or name; None takes all.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Returns:
        The heads for `calibrate_sinks`, and a table with columns layer, head, value, lo, hi,
        baseline, chosen.
    """
    sites = find_heads(study, layers, softmax=True)
    plain = predict(study, sites)
    baseline = metric(plain.logits, plain.labels)
    rows = []
    for head in [(site.layer, number) for site in sites for number in range(site.heads)]:
        with calibrate_sinks(study.model, [head], beta=beta, alpha=alpha):
            found = predict(study, sites)
        value = metric(found.logits, found.labels)
        limits = metric_interval(found, metric, draws, seed)
        rows.append((*head, value, *limits, baseline, value > baseline))
    names = ["layer", "head", "value", "lo", "hi", "baseline", "chosen"]
    table = pd.DataFrame(rows, columns=names)
    kept = table[table["chosen"]]
    return list(zip(kept["layer"].tolist(), kept["head"].tolist(), strict=True)), table


def act_weights(
    weights: Tensor, visible: Tensor, beta: float = BETA, alpha: float | None = None
) -> Tensor:
    """Weights with the sinks but the first one reduced, rows keeping their sum.

    In all rows but row 0 the columns of the other sinks are multiplied by `beta`. The other columns
    share what is gained in proportion to their weights. A row with no weight elsewhere stays.

    Args:
        weights: `(batch, heads, queries, keys)`.
        visible: True where attending is allowed, broadcastable to `weights`.
        beta: Factor.
        alpha: Threshold as in `is_sink`.
    """
    real = real_queries(visible, weights.shape[2])
    sinks = is_sink(columns_of(weights, visible, real), alpha)
    first = sinks & (sinks.cumsum(-1) == 1)
    reduced = (sinks & ~first)[:, :, None]
    changed = move_weight(weights, reduced, ~reduced, beta)
    return torch.cat([weights[:, :, :1], changed[:, :, 1:]], 2)


def var_weights(
    weights: Tensor,
    visible: Tensor,
    subset: Tensor,
    rho: float = RHO,
    keep: float = KEEP,
    min_mass: float = MIN_MASS,
    alpha: float | None = None,
) -> Tensor:
    """Weights moved from all sinks to the subset's other keys, rows keeping their sum.

    Args:
        weights: `(batch, heads, queries, keys)`.
        visible: True where attending is allowed, broadcastable to `weights`.
        subset: Boolean, `(batch or 1, keys)`.
        rho: As in `redistribute_sinks`.
        keep: As in `redistribute_sinks`.
        min_mass: As in `redistribute_sinks`.
        alpha: Threshold as in `is_sink`.
    """
    real = real_queries(visible, weights.shape[2])
    columns = columns_of(weights, visible, real)
    sinks = is_sink(columns, alpha)
    inside = columns.weights * subset[:, None]
    mass = inside.sum(-1)
    share = (inside * sinks).sum(-1) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    seeing = visible.any(-1) & real[:, None]
    rows = seeing.expand(weights.shape[:3]).sum(-1).clamp_min(1)
    on = (share <= rho) & (mass / rows >= min_mass)
    givers = sinks[:, :, None]
    changed = move_weight(weights, givers, subset[:, None, None] & ~givers, keep)
    return torch.where(on[..., None, None], changed, weights)


def move_weight(weights: Tensor, givers: Tensor, takers: Tensor, factor: float) -> Tensor:
    """Weights with `givers` times `factor`, the rest of them added to `takers` in proportion.

    Args:
        weights: `(batch, heads, queries, keys)`.
        givers: Boolean, broadcastable to `weights`.
        takers: Boolean, broadcastable to `weights`, apart from `givers`.
        factor: 0 to 1.

    Returns:
        Rows with the sums they had; a row without weight on `takers` stays as it is.
    """
    given = (weights * givers).sum(-1, keepdim=True) * (1 - factor)
    held = (weights * takers).sum(-1, keepdim=True)
    possible = held > 0
    gain = 1 + given / held.masked_fill(~possible, 1.0)
    changed = torch.where(givers, weights * factor, torch.where(takers, weights * gain, weights))
    return torch.where(possible, changed, weights)


def _subset(keys: Tensor | Sequence[int], weights: Tensor) -> Tensor:
    """Boolean `(batch or 1, keys)`."""
    if isinstance(keys, Tensor) and keys.dtype == torch.bool:
        found = keys.to(weights.device)
        found = found if found.dim() == 2 else found[None]
        return found.repeat_interleave(len(weights) // len(found), 0)
    found = torch.zeros(1, weights.shape[-1], dtype=torch.bool, device=weights.device)
    found[:, torch.as_tensor(keys, device=weights.device)] = True
    return found


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}: {value} is not between 0 and 1")
