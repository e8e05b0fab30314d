"""Reports of mechanisms that choose: regions (`bra`) and keys (`dynamic_mask`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.analysis.mixer_calls import Call, calls_of, layers_of
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Study,
    evaluating,
    head_rows,
    walk,
    with_intervals,
)
from manyhead_core.attention.capture import capture
from manyhead_core.attention.masks import Shape
from manyhead_core.attention.mixers.bra import BiLevelRoutingAttention
from manyhead_core.attention.mixers.dynamic_mask import DynamicMaskAttention
from manyhead_core.errors import ConfigError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class RoutingMaps:
    """Which regions serve a part of the map, such as a lesion.

    Args:
        table: Columns layer, head (0), measure, value, lo, hi. `inside` is the share of the routes
            of regions with a lesion that lead to such regions, `chance` the share of such regions,
            `lift` their quotient.
        maps: By layer, one array `(num_windows, num_windows)` a sample: share of the lesion's
            regions that route to each region; NaN without a lesion.
    """

    table: pd.DataFrame
    maps: dict[int, list[Array]]


def routing_maps(
    study: Study,
    lesion: Callable[[Any], Tensor],
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> RoutingMaps:
    """Regions that serve a lesion in every `bra` layer.

    Args:
        study: Model and batches.
        lesion: From a batch to the part of interest, boolean `(batch, height, width)` in any
            resolution.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Raises:
        ConfigError: The model has no `bra` layer that routes.
    """
    everything = layers_of(study.model, BiLevelRoutingAttention, "bra")
    layers = [layer for layer in everything if layer.topk > 0]
    if not layers:
        raise ConfigError("model: its bra layers attend to all regions; set topk above 0")
    frames: list[pd.DataFrame] = []
    maps: dict[int, list[Array]] = {number: [] for number in range(len(layers))}
    with torch.no_grad(), evaluating(study.model), calls_of(layers, "_route") as calls:
        for part in walk(study):
            study.forward(part.batch)
            marked = lesion(part.batch)
            for call in calls:
                assert call.grid is not None  # noqa: S101 - the mixer needs it
                sides = layers[call.layer].num_windows
                touched = lesion_regions(marked, call.grid, sides)
                served, values = serving(call.result.regions.cpu(), touched)
                maps[call.layer].extend(served.unflatten(1, (sides, sides)).numpy())
                frames.append(head_rows(part, call.layer, values))
            calls.clear()
    samples = pd.concat(frames, ignore_index=True)
    return RoutingMaps(with_intervals(samples, draws=draws, seed=seed), maps)


def lesion_regions(marked: Tensor, grid: tuple[int, int], sides: int) -> Tensor:
    """Regions that hold any of the lesion, boolean `(batch, sides * sides)`.

    Args:
        marked: Boolean `(batch, height, width)`.
        grid: Height and width of the map in tokens; it is padded to whole regions at the bottom
            and right, as the layer does.
        sides: Regions along each side.
    """
    tokens = F.adaptive_max_pool2d(marked.cpu().float()[:, None], grid)
    down, right = (-length % sides for length in grid)
    padded = F.pad(tokens, (0, right, 0, down))
    return F.adaptive_max_pool2d(padded, (sides, sides)).flatten(1) > 0


def serving(regions: Tensor, touched: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Share of the lesion's regions that route to each region, and how many stay inside.

    Args:
        regions: Routes, int64 `(batch, regions, topk)`.
        touched: Regions of the lesion, boolean `(batch, regions)`.

    Returns:
        `(batch, regions)`; inside, chance and lift, `(batch, 1)` each, NaN without a lesion.
    """
    count, topk = touched.shape[1], regions.shape[2]
    own = touched.double()
    routes = torch.zeros(*regions.shape[:2], count, dtype=torch.double)
    routes.scatter_(2, regions, 1.0)
    lesion = own.sum(1, keepdim=True)
    served = (own[:, None] @ routes)[:, 0] / lesion
    inside = (served * own).sum(1, keepdim=True) / topk
    inside = torch.where(lesion > 0, inside, torch.nan)
    chance = torch.where(lesion > 0, lesion / count, torch.nan)
    return served, {"inside": inside, "chance": chance, "lift": inside / chance}


@dataclass(frozen=True, eq=False)
class KeptKeys:
    """Which keys the heads keep.

    Args:
        table: Columns layer, head, measure, value, lo, hi. `kept` is the share of the allowed
            pairs that a head keeps, `common` the share of the keys kept by any query that all
            queries which may see them keep.
        maps: By layer, one array `(heads, keys)` a sample: share of the queries which may see a
            key that keep it; NaN for a key that none may see.
    """

    table: pd.DataFrame
    maps: dict[int, list[Array]]


def kept_keys(study: Study, *, draws: int = DRAWS, seed: int = SEED) -> KeptKeys:
    """Keys that each head of the `dynamic_mask` layers keeps.

    Args:
        study: Model and batches.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Raises:
        ConfigError: The model has no `dynamic_mask` layer.
    """
    layers = layers_of(study.model, DynamicMaskAttention, "dynamic_mask")
    frames: list[pd.DataFrame] = []
    maps: dict[int, list[Array]] = {number: [] for number in range(len(layers))}
    with (
        torch.no_grad(),
        evaluating(study.model),
        # A watched layer makes its choice pair by pair instead of on a shortened set of keys.
        capture(study.model, request=None),
        calls_of(layers, "visible") as calls,
    ):
        for part in walk(study):
            study.forward(part.batch)
            for call in calls:
                kept, allowed = _pairs(call, len(layers[call.layer].A))
                share = kept.sum(2) / allowed.sum(2)
                maps[call.layer].extend(share.cpu().numpy())
                used = share > 0
                values = {
                    "kept": kept.sum((2, 3)) / allowed.sum((2, 3)),
                    "common": (share == 1).sum(2) / used.sum(2),
                }
                frames.append(head_rows(part, call.layer, values))
            calls.clear()
    samples = pd.concat(frames, ignore_index=True)
    return KeptKeys(with_intervals(samples, draws=draws, seed=seed), maps)


def _pairs(call: Call, heads: int) -> tuple[Tensor, Tensor]:
    """Kept and allowed pairs, `(batch, heads, queries, keys)` in float64."""
    batch, queries = call.x.shape[:2]
    keys = queries if call.context is None else call.context.shape[1]
    shape = Shape(batch, heads, queries, keys, call.x.device)
    size = (batch, heads, queries, keys)
    every = torch.ones((), dtype=torch.bool, device=call.x.device)
    allowed = (every if call.mask is None else call.mask.dense(shape)).expand(size)
    kept = allowed if call.result is None else call.result.expand(size)
    return kept.double(), allowed.double()
