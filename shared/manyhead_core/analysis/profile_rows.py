"""Measures of single attention rows, for `profile`."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhead_core.analysis.layout import Layout
from manyhead_core.analysis.stream import MapRows


def counted_rows(rows: MapRows, layout: Layout) -> Tensor:
    """Queries that are real and see a key, boolean `(batch, rows)`."""
    batch, _, number, _ = rows.weights.shape
    # Masks that differ between heads hide whole rows for all of them, or for none.
    counted = rows.visible.any(-1).any(1).expand(batch, number)
    padding = layout.padding if layout.query is None else layout.query.padding
    if layout.query is None:
        counted = counted & rows.real
    if padding is None or (layout.query is None and not _own(rows)):
        return counted
    return counted & ~_each(padding.to(counted.device), batch)[..., rows.rows]


def row_measures(rows: MapRows, layout: Layout, counted: Tensor) -> dict[str, Tensor]:
    """Measures of `attention_profile` for each row, `(batch, heads, rows)`; NaN where undefined.

    Args:
        rows: A block of rows.
        layout: Places and kinds of the tokens.
        counted: What `counted_rows` gives.
    """
    weights = rows.weights
    entropy = torch.special.entr(weights).sum(-1)
    # A single key leaves no choice: 0 / 0, undefined.
    most = rows.visible.sum(-1).double().log().expand(entropy.shape)
    found = {
        "entropy": entropy,
        "entropy_normalised": (entropy / most).masked_fill(most <= 0, torch.nan),
    }
    distance = _distance(rows, layout)
    if distance is not None:
        found["distance"] = distance
    if _own(rows) and layout.query is None:
        index = rows.rows[:, None].expand(*weights.shape[:3], 1)
        found["share_self"] = weights.gather(-1, index)[..., 0]
    for name, tokens in (("class", layout.class_tokens), ("memory", layout.memory_tokens)):
        if len(tokens):
            found[f"share_{name}"] = weights[..., list(tokens)].sum(-1)
    if layout.padding is not None:
        padding = _each(layout.padding.to(weights.device), len(weights))
        found["share_padding"] = (weights * padding[:, None, None]).sum(-1)
    hidden = ~counted[:, None]
    return {name: value.masked_fill(hidden, torch.nan) for name, value in found.items()}


def ring_weights(rows: MapRows, layout: Layout, counted: Tensor) -> tuple[Tensor, Tensor] | None:
    """Sums over the rows of the weights at each Chebyshev distance.

    Args:
        rows: A block of rows.
        layout: Places and kinds of the tokens.
        counted: What `counted_rows` gives.

    Returns:
        Sums `(batch, heads, distances)` and numbers of rows with a place `(batch,)`; None when
        places of queries or keys are not known.
    """
    if not _placed(rows, layout):
        return None
    weights = rows.weights
    keys = layout.rings(weights.shape[-1]).to(weights.device)
    queries = keys if layout.query is None else layout.query.rings(rows.queries).to(keys.device)
    # The same number of rings for all blocks of rows.
    last = _last_ring(queries, keys)
    queries = queries[rows.rows]
    ring = (queries[:, None] - keys).abs().amax(-1)
    lost = ring.isnan()
    ring = ring.nan_to_num(0.0).round().long().masked_fill(lost, last + 1)
    used = counted & ~queries.isnan().any(-1)
    kept = weights.double() * used[:, None, :, None]
    sums = kept.new_zeros(*kept.shape[:3], last + 2).scatter_add_(-1, ring.expand_as(kept), kept)
    return sums[..., :-1].sum(2), used.sum(-1)


def _last_ring(queries: Tensor, keys: Tensor) -> int:
    placed = [x[~x.isnan().any(-1)] for x in (queries, keys)]
    if not all(len(x) for x in placed):
        return 0
    (low, high), (first, last) = ((x.amin(0), x.amax(0)) for x in placed)
    return int(torch.maximum(high - first, last - low).amax().round())


def _distance(rows: MapRows, layout: Layout) -> Tensor | None:
    if not _placed(rows, layout):
        return None
    weights = rows.weights.double()
    keys = _batched(layout.places(weights.shape[-1]), weights)
    queries = (
        keys if layout.query is None else _batched(layout.query.places(rows.queries), weights)
    )[:, rows.rows]
    lost = keys.isnan().any(-1)[:, None, None]
    apart = torch.cdist(queries.nan_to_num(0.0), keys.nan_to_num(0.0))[:, None]
    located = weights.masked_fill(lost, 0.0)
    mean = (located * apart).sum(-1) / located.sum(-1)
    return mean.masked_fill(queries.isnan().any(-1)[:, None], torch.nan)


def _placed(rows: MapRows, layout: Layout) -> bool:
    return layout.query is not None or _own(rows)


def _own(rows: MapRows) -> bool:
    """Whether queries and keys may be the same tokens."""
    return rows.queries == rows.weights.shape[-1]


def _each(values: Tensor, batch: int) -> Tensor:
    """`(samples, tokens)` or `(tokens,)` for every window, `(batch, tokens)`."""
    if values.dim() == 1:
        return values.expand(batch, -1)
    return values.repeat_interleave(batch // len(values), 0)


def _batched(places: Tensor, weights: Tensor) -> Tensor:
    """Coordinates in the batch of the weights, `(batch or 1, tokens, axes)`."""
    places = places.to(weights)
    if places.dim() == 2:
        return places[None]
    return places.repeat_interleave(len(weights) // len(places), 0)
