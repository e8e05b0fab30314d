"""Where heads look: entropy, distance, rings about the query, shares of token kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyhead_core.analysis.layout import Layout, Layouts, layout_of
from manyhead_core.analysis.profile_rows import counted_rows, ring_weights, row_measures
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Part,
    Study,
    head_rows,
    interval_of_ratio,
    pick_sites,
    walk,
    with_intervals,
)
from manyhead_core.analysis.stream import MAX_WEIGHTS, NO_MAPS, MapRows, stream_maps
from manyhead_core.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Profile:
    """Where the heads of a model look.

    Args:
        table: Columns layer, head, measure, value, lo, hi.
        ring_table: Columns layer, head, distance, value, lo, hi; the rings with their intervals.
        rings: By layer, the mean weight at Chebyshev distance 0, 1, ... from the query,
            `(heads, distances)`.
        received: By layer, the mean weight that each key gets from the queries, `(heads, keys)`.
    """

    table: pd.DataFrame
    ring_table: pd.DataFrame
    rings: dict[int, Array]
    received: dict[int, Array]


def attention_profile(
    study: Study,
    *,
    layouts: Layouts = None,
    layers: Sequence[int | str] | None = None,
    budget: int = MAX_WEIGHTS,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Profile:
    """Where every head looks, with intervals over groups.

    Each measure is a mean over the queries of a sample, then over samples. Queries that are padding
    or see no key do not count.

    - `entropy`: `-sum P ln P` in nats.
    - `entropy_normalised`: the same divided by `ln(visible keys)`; rows with one key do not count.
    - `distance`: `sum_j P_ij |p_i - p_j|` in the unit of the coordinates, over the keys that have
      a place, whose weights are scaled to sum to one.
    - `share_self`, `share_class`, `share_memory`, `share_padding`: weight on the query's own token
      and on tokens of these kinds; the share of padding has to be 0.

    Rings are the sum of the weights at each Chebyshev distance, a mean over the queries that have a
    place. Measures that a layer has not, such as a distance between tokens of two kinds without a
    layout, are left out.

    Args:
        study: Model and batches; labels are not needed.
        layouts: Places and kinds of the tokens: one layout, one by layer number, or a function of
            batch and layer number; None is a plain sequence.
        layers: Layers to look at, by number or name; None takes all.
        budget: Most weights held at once.
        draws: Resamples of the groups.
        seed: Seed of the draws.
    """
    names = pick_sites(study.model, layers)
    frames: list[pd.DataFrame] = []
    rings: dict[int, _GroupMean] = {}
    received: dict[int, _GroupMean] = {}
    for part in walk(study):
        for layer, sums in _batch_sums(study, part, names, layouts, budget).items():
            frames.append(head_rows(part, layer, sums.means()))
            if sums.rings is not None:
                share = sums.rings / sums.located[:, None, None]
                rings.setdefault(layer, _GroupMean(everywhere=True)).add(share, part.groups)
            mean = received.setdefault(layer, _GroupMean(everywhere=False))
            mean.add(sums.received(), part.groups)
    if not frames:
        raise DataError(NO_MAPS)
    return Profile(
        with_intervals(pd.concat(frames, ignore_index=True), draws=draws, seed=seed),
        _ring_table(rings, draws, seed),
        {layer: mean.value() for layer, mean in rings.items()},
        {layer: mean.value() for layer, mean in received.items()},
    )


def _batch_sums(
    study: Study, part: Part, names: dict[int, str], layouts: Layouts, budget: int
) -> dict[int, _Sums]:
    sums: dict[int, _Sums] = {}
    for rows in stream_maps(study, part.batch, names, budget):
        layout = layout_of(layouts, part.batch, rows.layer)
        sums.setdefault(rows.layer, _Sums(len(part.samples))).add(rows, layout)
    return sums


class _Sums:
    """What the rows of one batch and layer add up to, by sample.

    Attributes:
        rings: `(batch, heads, distances)`, or None without places.
        located: Queries with a place, `(batch,)`.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.measures: dict[str, tuple[Tensor, Tensor]] = {}
        self.rings: Tensor | None = None
        self.located: Tensor = torch.zeros(samples)
        self._received: Tensor | None = None
        self._seen: Tensor | None = None
        self._queries = torch.zeros(samples)

    def add(self, rows: MapRows, layout: Layout) -> None:
        """Add a block of rows."""
        counted = counted_rows(rows, layout)
        for name, values in row_measures(rows, layout, counted).items():
            total = self._fold(values.nansum(-1))
            count = self._fold(values.isfinite().double().sum(-1))
            old = self.measures.get(name)
            self.measures[name] = (
                (total, count) if old is None else (old[0] + total, old[1] + count)
            )
        found = ring_weights(rows, layout, counted)
        if found is not None:
            self.rings = _plus(self.rings, self._fold(found[0]))
            self.located = self.located + self._fold(found[1])
        weights = rows.weights.double() * counted[:, None, :, None]
        self._received = _plus(self._received, self._fold(weights.sum(2)))
        seen = (rows.visible & counted[:, None, :, None]).any(2).double()
        self._seen = _plus(self._seen, self._fold(seen.expand(len(weights), -1, -1)))
        self._queries = self._queries + self._fold(counted.double().sum(-1))

    def means(self) -> dict[str, Tensor]:
        """Measures of each sample, `(batch, heads)`; NaN where no row counts."""
        return {name: total / count for name, (total, count) in self.measures.items()}

    def received(self) -> Tensor:
        """Mean weight of each key, `(batch, heads, keys)`; NaN for keys that no query sees."""
        assert self._received is not None  # noqa: S101 - a map has been added
        assert self._seen is not None  # noqa: S101
        mean = self._received / self._queries[:, None, None]
        return mean.masked_fill(self._seen == 0, torch.nan)

    def _fold(self, values: Tensor) -> Tensor:
        """Sums over the windows of each sample, which are consecutive, `(samples, ...)`."""
        return values.double().cpu().unflatten(0, (self.samples, -1)).sum(1)


class _GroupMean:
    """Means of arrays over samples, kept by group so that groups can be drawn.

    Args:
        everywhere: Whether every sample counts in all cells, with zeros beyond its own size.
    """

    def __init__(self, *, everywhere: bool) -> None:
        self.everywhere = everywhere
        self._sums: dict[Any, Tensor] = {}
        self._counts: dict[Any, Tensor] = {}

    def add(self, values: Tensor, groups: Array) -> None:
        """Add samples.

        Args:
            values: `(batch, heads, cells)`, NaN where undefined.
            groups: `(batch,)`.
        """
        for value, group in zip(values, groups.tolist(), strict=True):
            defined = value.isfinite().double()
            # One number for all cells where a cell that is missing is a zero.
            count = defined[:, :1] if self.everywhere else defined
            self._sums[group] = _plus(self._sums.get(group), value.nan_to_num(0.0))
            self._counts[group] = _plus(self._counts.get(group), count)

    def value(self) -> Array:
        """`(heads, cells)`."""
        sums, counts = self.stacked()
        with np.errstate(invalid="ignore"):
            return np.asarray(sums.sum(0) / counts.sum(0))

    def stacked(self) -> tuple[Array, Array]:
        """Sums and counts, `(groups, heads, cells)` each."""
        width = max(part.shape[-1] for part in self._sums.values())
        sums = torch.stack([_widened(part, width) for part in self._sums.values()])
        counts = torch.stack(
            [
                part.expand(-1, width) if self.everywhere else _widened(part, width)
                for part in self._counts.values()
            ]
        )
        return sums.numpy(), counts.numpy()


def _ring_table(rings: dict[int, _GroupMean], draws: int, seed: int) -> pd.DataFrame:
    frames = [pd.DataFrame(columns=["layer", "head", "distance", "value", "lo", "hi"])]
    for layer, mean in rings.items():
        sums, counts = mean.stacked()
        heads, cells = sums.shape[1:]
        flat = [x.reshape(len(x), -1) for x in (sums, counts)]
        limits = interval_of_ratio(flat[0], flat[1], draws, seed)
        content = {
            "layer": layer,
            "head": np.repeat(np.arange(heads), cells),
            "distance": np.tile(np.arange(cells), heads),
            "value": mean.value().ravel(),
            "lo": limits[:, 0],
            "hi": limits[:, 1],
        }
        frames.append(pd.DataFrame(content))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    """The sum, the shorter last axis filled with zeros."""
    if total is None:
        return part
    width = max(total.shape[-1], part.shape[-1])
    return _widened(total, width) + _widened(part, width)


def _widened(values: Tensor, width: int) -> Tensor:
    return nn.functional.pad(values, (0, width - values.shape[-1]))
