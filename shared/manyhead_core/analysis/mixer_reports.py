"""Reports of mechanisms that weigh: importance of features (`gaam`), use of heads (`moh`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead_core.analysis.mixer_calls import Call, calls_of, layers_of
from manyhead_core.analysis.outputs import jensen_shannon
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Study,
    evaluating,
    group_codes,
    head_rows,
    labels_of,
    walk,
    with_intervals,
)
from manyhead_core.attention.masks import KeyPadding, Shape
from manyhead_core.attention.mixers.gaam import GaussianAttention, importance_factors
from manyhead_core.attention.mixers.moh import MixtureOfHeads, real_tokens
from manyhead_core.errors import DataError
from manyhead_core.evaluate.intervals import MIN_GROUPS, bootstrap, percentiles

Array = NDArray[Any]


def gaussian_importance(study: Study) -> pd.DataFrame:
    """Importance factor of every feature or token: mean weight over the data, scaled to 0..1.

    Ioannides et al., 2024 (arXiv 2401.11143). Weights along the features are averaged over samples
    and real tokens, weights along the tokens over samples and features; the latter need one length.

    Args:
        study: Model and batches.

    Returns:
        Columns layer, axis, index, weight (mean), importance.

    Raises:
        ConfigError: The model has no `gaam` layer.
        DataError: Weights along the tokens, and lengths differ.
    """
    layers = layers_of(study.model, GaussianAttention, "gaam")
    sums: dict[int, Tensor] = {}
    counts: dict[int, float] = {}
    with torch.no_grad(), evaluating(study.model), calls_of(layers) as calls:
        for part in walk(study):
            study.forward(part.batch)
            for call in calls:
                total, count = _summed_weights(layers[call.layer], call)
                before = sums.get(call.layer, torch.zeros_like(total))
                if before.shape != total.shape:
                    raise DataError("batches: gaam over tokens needs one length; cut or pad them")
                sums[call.layer] = before + total
                counts[call.layer] = counts.get(call.layer, 0.0) + count
            calls.clear()
    frames = []
    for layer, total in sums.items():
        mean = total / counts[layer]
        content = {
            "layer": layer,
            "axis": layers[layer].axis,
            "index": np.arange(len(mean)),
            "weight": mean.cpu().numpy(),
            "importance": importance_factors(mean[None]).cpu().numpy(),
        }
        frames.append(pd.DataFrame(content))
    return pd.concat(frames, ignore_index=True)


def _summed_weights(layer: GaussianAttention, call: Call) -> tuple[Tensor, float]:
    valid = call.mask.keys(call.x.shape[1]) if isinstance(call.mask, KeyPadding) else None
    weights = layer.weights(call.x, valid).double()
    if layer.axis == "tokens":
        return weights.sum((0, 2)), weights.shape[0] * weights.shape[2]
    if valid is None:
        return weights.sum((0, 1)), weights.shape[0] * weights.shape[1]
    return (weights * valid[..., None]).sum((0, 1)), float(valid.sum())


@dataclass(frozen=True, eq=False)
class GateStatistics:
    """How a mixture of heads uses its heads.

    Args:
        heads: Columns layer, head, class, measure (`share` of tokens that use the head, mean
            `gate`), value, lo, hi.
        balance: Columns layer, loss (`R sum f P`, the number of active heads when even), largest
            (share of the busiest routed head over the mean share).
        divergence: Columns layer, first, second, value, lo, hi: Jensen-Shannon divergence in nats
            between the shares of the routed heads of two classes, 0 to ln 2.
    """

    heads: pd.DataFrame
    balance: pd.DataFrame
    divergence: pd.DataFrame


def gate_statistics(study: Study, *, draws: int = DRAWS, seed: int = SEED) -> GateStatistics:
    """Activation of the heads by class, load balance, and how classes differ.

    Only real tokens count. Shared heads are always active.

    Args:
        study: Model, batches and labels.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Raises:
        ConfigError: The model has no `moh` layer.
    """
    layers = layers_of(study.model, MixtureOfHeads, "moh")
    frames: list[pd.DataFrame] = []
    loads: dict[int, list[Tensor]] = {}
    with torch.no_grad(), evaluating(study.model), calls_of(layers, "route") as calls:
        for part in walk(study):
            study.forward(part.batch)
            classes = labels_of(study, part.batch).cpu().numpy()
            for call in calls:
                weight = _token_weight(layers[call.layer], call)
                values = _head_use(call, weight)
                rows = head_rows(part, call.layer, values)
                rows["class"] = np.tile(np.repeat(classes, values["share"].shape[1]), len(values))
                frames.append(rows)
                if call.result.active.shape[-1]:
                    loads.setdefault(call.layer, []).append(_load(call, weight))
            calls.clear()
    samples = pd.concat(frames, ignore_index=True)
    heads = with_intervals(samples, draws=draws, seed=seed)
    balance = pd.DataFrame([_balance(layer, sum(found)) for layer, found in loads.items()])
    shares = samples[samples["measure"] == "share"]
    pairs = [
        _class_pairs(layer, shares[shares["layer"] == layer], shared, draws, seed)
        for layer, shared in enumerate(one.shared_heads for one in layers)
        if layer in loads
    ]
    names = ["layer", "first", "second", "value", "lo", "hi"]
    divergence = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(columns=names)
    return GateStatistics(heads, balance, divergence)


def _token_weight(layer: MixtureOfHeads, call: Call) -> Tensor:
    """1 for the tokens that count, `(batch, tokens, 1)`."""
    batch, tokens = call.x.shape[:2]
    real = None
    if call.mask is not None:
        keys = tokens if call.context is None else call.context.shape[1]
        shape = Shape(batch, layer.sizes[0], tokens, keys, call.x.device)
        real = real_tokens(call.mask.dense(shape), call.context is None)
    if real is None:
        return call.x.new_ones(batch, tokens, 1)
    return real.expand(batch, tokens)[..., None].to(call.x.dtype)


def _head_use(call: Call, weight: Tensor) -> dict[str, Tensor]:
    gates, active = call.result.gates, call.result.active
    shared = gates.shape[-1] - active.shape[-1] if active.shape[-1] else gates.shape[-1]
    used = torch.cat([torch.ones_like(gates[..., :shared]), active.to(gates.dtype)], -1)
    count = weight.sum(1)
    return {
        "share": (used * weight).sum(1) / count,
        "gate": (gates * weight).sum(1) / count,
    }


def _load(call: Call, weight: Tensor) -> Tensor:
    """Sums over the real tokens: active, probabilities and count, `(3, routed)`."""
    active, probabilities = call.result.active, call.result.probabilities
    count = weight.expand_as(active)
    parts = (active * weight, probabilities * weight, count)
    return torch.stack([part.double().sum((0, 1)) for part in parts])


def _balance(layer: int, summed: Tensor | int) -> dict[str, float]:
    assert isinstance(summed, Tensor)  # noqa: S101 - one part at least
    load, share = (summed[:2] / summed[2]).cpu()
    return {
        "layer": layer,
        "loss": float(len(load) * (load * share).sum()),
        "largest": float(load.max() / load.mean()),
    }


def _class_pairs(
    layer: int, rows: pd.DataFrame, shared: int, draws: int, seed: int
) -> pd.DataFrame:
    # A layer that runs several times in a batch counts with the mean of its calls.
    wide = rows[rows["head"] >= shared].pivot_table(
        index=["sample", "group", "class"], columns="head", values="value"
    )
    index = wide.index.to_frame(index=False)
    names = np.unique(index["class"].to_numpy())
    first, second = np.triu_indices(len(names), 1)
    table = pd.DataFrame({"layer": layer, "first": names[first], "second": names[second]})
    member = (index["class"].to_numpy()[:, None] == names).astype(float)

    def divergences(weights: Array) -> Array:
        sums = np.einsum("ds,sc,sh->dch", weights, member, wide.to_numpy(), optimize=True)
        shares = torch.from_numpy(sums)
        # A class that was not drawn has 0 / 0, and so no divergence.
        shares = shares / shares.sum(-1, keepdim=True)
        pairs = (shares[:, chosen].flatten(0, 1) for chosen in (first, second))
        return np.asarray(jensen_shannon(*pairs).view(len(weights), len(first)))

    units = group_codes(index["group"])
    table["value"] = divergences(np.ones((1, len(index))))[0]
    limits = np.full((len(first), 2), np.nan)
    if units.max() + 1 >= MIN_GROUPS and len(first):
        drawn = bootstrap(divergences, units, draws, seed)
        limits = np.array([percentiles(column) for column in drawn.T], dtype=float)
    table["lo"], table["hi"] = limits.T
    return table
