"""A few prototypes that sum up the attention maps of a model, and which head has which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead_core.analysis.pattern_codes import autoencoder_codes, choose_clusters, pca_codes
from manyhead_core.analysis.run import SEED, Part, Study, pick_sites, walk
from manyhead_core.analysis.stream import MAX_WEIGHTS, NO_MAPS, MapRows, stream_maps
from manyhead_core.errors import ConfigError, DataError

Array = NDArray[Any]
Grids = Mapping[int, Sequence[int]] | Sequence[int] | None

GRID_SIDE = 14
SEQUENCE_KEYS = 49


@dataclass(frozen=True)
class Patterns:
    """Prototypes of attention maps.

    Args:
        prototypes: Mean map of each cluster, `(clusters, tokens, tokens)`; rows are queries.
        sizes: Tokens of a prototype along each axis.
        histogram: Columns layer, head, cluster, count, share: how often a head's map is in a
            cluster; shares of a head add up to one.
        examples: Columns cluster, rank, sample, layer, head, map (number in `maps`): the maps next
            to the middle of each cluster.
        silhouettes: Column k and score: how well each number of clusters fits.
        maps: The sampled maps, `(maps, tokens, tokens)`.
        codes: Their codes, `(maps, dims)`.
        rows: Columns sample, layer, head, cluster, one row a map.
    """

    prototypes: Array
    sizes: tuple[int, ...]
    histogram: pd.DataFrame
    examples: pd.DataFrame
    silhouettes: pd.DataFrame
    maps: Array
    codes: Array
    rows: pd.DataFrame


class SampledMaps(NamedTuple):
    """Attention maps of one size.

    Args:
        maps: `(maps, tokens, tokens)`, rows are queries.
        rows: Columns sample, layer, head, one row a map.
        sizes: Tokens along each axis.
    """

    maps: Array
    rows: pd.DataFrame
    sizes: tuple[int, ...]


def summarise_patterns(
    study: Study,
    *,
    grids: Grids = None,
    skip: int = 0,
    side: int | None = None,
    encoder: Literal["autoencoder", "pca"] = "pca",
    clusters: Sequence[int] = tuple(range(4, 17)),
    max_maps: int = 1000,
    examples: int = 5,
    layers: Sequence[int | str] | None = None,
    seed: int = SEED,
) -> Patterns:
    """Cluster the attention maps of all heads.

    Maps are brought to one size, multiplied by the number of keys so that uniform attention is 1,
    passed through `log1p` and coded by 32 numbers. k-means groups the codes, with the number of
    clusters of the best silhouette.

    Args:
        study: Model and batches; labels are not needed.
        grids: Tokens along each axis, for all layers or by layer number; None is a sequence.
        skip: Tokens before the grid, such as class tokens, that are left out.
        side: Tokens along each axis of a prototype; None takes 14 for grids and 49 for sequences.
        encoder: `pca`, or `autoencoder` with 256, 32, 256 hidden units, which is slow for large
            prototypes.
        clusters: Numbers of clusters to try.
        max_maps: Maps to keep, drawn at random from those of all samples and heads.
        examples: Maps to show for each cluster.
        layers: Layers to look at, by number or name; None takes all.
        seed: Seed of the draw, of the autoencoder and of k-means.

    Raises:
        ConfigError: The encoder is unknown, or a grid does not fit.
        DataError: There are too few maps to cluster.
    """
    if encoder not in ("autoencoder", "pca"):
        raise ConfigError(f"encoder: {encoder!r} is unknown; use autoencoder or pca")
    found = sample_maps(
        study, grids=grids, skip=skip, side=side, max_maps=max_maps, layers=layers, seed=seed
    )
    flat = found.maps.reshape(len(found.maps), -1)
    scaled = np.log1p(flat * found.maps.shape[-1])
    codes = (pca_codes if encoder == "pca" else autoencoder_codes)(scaled, seed)
    chosen, silhouettes = choose_clusters(codes, clusters, seed)
    rows = found.rows.assign(cluster=chosen)
    prototypes = np.stack([found.maps[chosen == k].mean(0) for k in range(chosen.max() + 1)])
    return Patterns(
        prototypes,
        found.sizes,
        _histogram(rows),
        _examples(rows, codes, examples),
        silhouettes,
        found.maps,
        codes,
        rows,
    )


def sample_maps(
    study: Study,
    *,
    grids: Grids = None,
    skip: int = 0,
    side: int | None = None,
    max_maps: int = 1000,
    layers: Sequence[int | str] | None = None,
    seed: int = SEED,
    budget: int = MAX_WEIGHTS,
) -> SampledMaps:
    """A random sample of the maps of all samples and heads, in one size.

    Args:
        study: Model and batches.
        grids: As in `summarise_patterns`.
        skip: As in `summarise_patterns`.
        side: As in `summarise_patterns`.
        max_maps: As in `summarise_patterns`.
        layers: As in `summarise_patterns`.
        seed: Seed of the draw.
        budget: Most weights held at once.

    Raises:
        ConfigError: A grid does not fit the tokens of its layer, or layers differ in their axes.
    """
    names = pick_sites(study.model, layers)
    axes = {len(_grid(grids, layer) or (0,)) for layer in names}
    if len(axes) > 1:
        raise ConfigError("grids: layers differ in their number of axes; look at them apart")
    number = axes.pop()
    side = side or (SEQUENCE_KEYS if number == 1 else GRID_SIDE)
    sizes = (side,) * number
    kept = _Reservoir(max_maps, seed)
    for part in walk(study):
        sums: dict[tuple[int, int], Tensor] = {}
        for rows in stream_maps(study, part.batch, names, budget):
            small = _resampled(rows, _grid(grids, rows.layer), skip, sizes)
            place = (rows.layer, rows.call)
            sums[place] = sums[place] + small if place in sums else small
        for (layer, _), maps in sums.items():
            kept.add(part, layer, _normalised(maps))
    return SampledMaps(*kept.content(), sizes)


def resampling(source: int, target: int) -> Tensor:
    """How `source` tokens share themselves out over `target` bins, `(target, source)`, float64.

    Entry (t, j) is the part of token j that falls into bin t; columns add up to one, so that a row
    of weights keeps its sum.

    Args:
        source: Tokens.
        target: Bins of equal length.
    """
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    place = torch.arange(source, dtype=torch.float64)
    high = torch.minimum(edges[1:, None], place + 1)
    low = torch.maximum(edges[:-1, None], place)
    return (high - low).clamp_min(0.0)


def grid_resampling(source: Sequence[int], target: Sequence[int]) -> Tensor:
    """The same for row-major grids, `(target tokens, source tokens)`.

    Args:
        source: Tokens along each axis.
        target: Bins along each axis.
    """
    found = torch.ones(1, 1, dtype=torch.float64)
    for old, new in zip(source, target, strict=True):
        found = torch.kron(found, resampling(old, new))
    return found


def _grid(grids: Grids, layer: int) -> tuple[int, ...] | None:
    found = grids.get(layer) if isinstance(grids, Mapping) else grids
    return None if found is None else tuple(found)


def _resampled(
    rows: MapRows, grid: tuple[int, ...] | None, skip: int, sizes: tuple[int, ...]
) -> Tensor:
    """What a block of rows adds to the small maps, `(batch, heads, tokens, tokens)`."""
    keys = rows.weights.shape[-1] - skip
    queries = rows.queries - skip
    key_grid: tuple[int, ...] = (keys,)
    query_grid: tuple[int, ...] = (queries,)
    if grid is not None:
        key_grid = query_grid = grid
        if int(np.prod(grid)) != keys or queries != keys:
            raise ConfigError(
                f"grids: {grid} does not hold the {keys} tokens of layer {rows.layer}; pass the "
                "grid of that layer, and skip for class tokens"
            )
    device = rows.weights.device
    to_keys = grid_resampling(key_grid, sizes).to(device)
    to_queries = grid_resampling(query_grid, sizes).to(device)
    # Bins average their queries; keys hand on their weight.
    to_queries = to_queries / to_queries.sum(1, keepdim=True)
    inside = rows.rows >= skip
    weights = rows.weights[:, :, inside, skip:].double()
    return to_queries[:, rows.rows[inside] - skip] @ weights @ to_keys.T


def _normalised(maps: Tensor) -> Array:
    total = maps.sum(-1, keepdim=True)
    return np.asarray((maps / total.masked_fill(total == 0, 1.0)).float().cpu().numpy())


class _Reservoir:
    """A uniform sample from a stream of maps (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seen = 0
        self.generator = np.random.default_rng(seed)
        self.maps: list[Array] = []
        self.rows: list[tuple[Any, ...]] = []

    def add(self, part: Part, layer: int, maps: Array) -> None:
        """Offer `(batch, heads, tokens, tokens)`."""
        windows = len(maps) // len(part.samples)
        for number, head in np.ndindex(*maps.shape[:2]):
            place = self.seen if self.seen < self.size else self.generator.integers(self.seen + 1)
            self.seen += 1
            if place >= self.size:
                continue
            sample = number // windows
            row = (part.samples[sample], layer, head)
            if place == len(self.maps):
                self.maps.append(maps[number, head].copy())
                self.rows.append(row)
            else:
                self.maps[place], self.rows[place] = maps[number, head].copy(), row

    def content(self) -> tuple[Array, pd.DataFrame]:
        """Maps and what they are of."""
        if not self.maps:
            raise DataError(NO_MAPS)
        rows = pd.DataFrame(self.rows, columns=["sample", "layer", "head"])
        return np.stack(self.maps), rows


def _histogram(rows: pd.DataFrame) -> pd.DataFrame:
    found = rows.groupby(["layer", "head", "cluster"]).size()
    counts = found.unstack(fill_value=0).stack().reset_index()
    counts.columns = pd.Index(["layer", "head", "cluster", "count"])
    total = counts.groupby(["layer", "head"])["count"].transform("sum")
    return counts.assign(share=counts["count"] / total)


def _examples(rows: pd.DataFrame, codes: Array, number: int) -> pd.DataFrame:
    frames = []
    for cluster in range(rows["cluster"].max() + 1):
        members = np.flatnonzero(rows["cluster"] == cluster)
        far = np.linalg.norm(codes[members] - codes[members].mean(0), axis=1)
        chosen = members[np.argsort(far, kind="stable")[:number]]
        frame = rows.loc[chosen, ["cluster", "sample", "layer", "head"]]
        frames.append(frame.assign(map=chosen, rank=np.arange(len(chosen))))
    names = ["cluster", "rank", "sample", "layer", "head", "map"]
    return pd.concat(frames, ignore_index=True)[names]
