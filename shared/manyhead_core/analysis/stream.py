"""Attention maps of one batch in blocks of rows, so that no whole map of a long input is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from manyhead_core.analysis.run import Study, evaluating
from manyhead_core.attention import MapRequest
from manyhead_core.attention.capture import attention_sites, capture, edit_weights
from manyhead_core.attention.masks import Mask, Shape

# Most weights held at once: 64 MiB of float32, a few times that while they are reduced.
MAX_WEIGHTS = 2**24
NO_MAPS = "maps: the model gave none; choose layers with attention weights"


@dataclass(frozen=True, eq=False)
class Call:
    """Sizes and mask of one call of an attention site.

    Args:
        shape: Sizes of the scores.
        mask: True where attending is allowed, four axes that broadcast to them; None for all.
    """

    shape: Shape
    mask: Tensor | None

    def visible(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """True where the queries `rows` may attend, broadcastable to their weights."""
        if self.mask is None:
            return torch.ones(1, 1, 1, self.shape.keys, dtype=torch.bool, device=self.shape.device)
        return self.mask if self.mask.shape[2] == 1 else self.mask[:, :, rows]

    @cached_property
    def real(self) -> Tensor:
        """What `real_queries` gives."""
        return real_queries(self.visible(), self.shape.queries)


@dataclass(frozen=True, eq=False)
class MapRows:
    """Weights of some query rows of one call.

    Args:
        layer: Number of the layer.
        call: Number of the call within the forward pass; most sites are called once.
        weights: `(batch, heads, rows, keys)`.
        visible: True where attending is allowed, broadcastable to `weights`.
        real: False for queries that are padding, `(batch or 1, rows)`.
        rows: Which queries, `(rows,)`.
        queries: Queries of the whole map.
    """

    layer: int
    call: int
    weights: Tensor
    visible: Tensor
    real: Tensor
    rows: Tensor
    queries: int


# From weights and what is visible to weights.
VisibleEdit = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def watch_calls(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Call]]]:
    """Sizes and masks of all calls of the named sites, appended as they begin."""
    seen: dict[str, list[Call]] = {name: [] for name in names}
    modules = attention_sites(model)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            call = read_call(args, kwargs)
            if call is not None:
                seen[name].append(call)

        return hook

    hooks = [modules[n].register_forward_pre_hook(watch(n), with_kwargs=True) for n in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Sizes and mask from the arguments of an `Attend` layer; None for other arguments."""
    query = kwargs.get("query", args[0] if args else None)
    key = kwargs.get("key", args[1] if len(args) > 1 else None)
    if not isinstance(query, Tensor) or not isinstance(key, Tensor) or query.dim() != 4:
        return None
    shape = Shape.of(query, key)
    mask = kwargs.get("mask")
    if isinstance(mask, Mask):
        mask = mask.dense(shape)
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())]
        mask = mask.expand(*mask.shape[:3], shape.keys)
    return Call(shape, mask)


@contextmanager
def edit_visible(model: nn.Module, edits: Mapping[str, VisibleEdit]) -> Iterator[None]:
    """Replace attention weights by a function of them and of what is visible.

    Args:
        model: The model to change.
        edits: By site: weights `(batch, heads, queries, keys)`, and a boolean tensor that
            broadcasts to them, True where attending is allowed.
    """

    def plain(name: str, edit: VisibleEdit) -> Callable[[Tensor], Tensor]:
        return lambda weights: edit(weights, calls[name].pop().visible())

    wrapped = {name: plain(name, edit) for name, edit in edits.items()}
    with edit_weights(model, wrapped), watch_calls(model, list(edits)) as calls:
        yield


def stream_maps(
    study: Study, batch: Any, names: dict[int, str], budget: int = MAX_WEIGHTS
) -> Iterator[MapRows]:
    """The maps of one batch, layer by layer, in blocks of rows.

    One pass finds the sizes. Maps that fit the budget together take one more pass; otherwise
    every block of rows takes a pass of its own.

    Args:
        study: Model and forward.
        batch: One batch.
        names: Sites by layer number.
        budget: Most weights held at once.
    """
    with torch.no_grad(), evaluating(study.model):
        # Compiled models run uncompiled, as the hooks need, inside a capture.
        with (
            capture(study.model, list(names.values()), None),
            watch_calls(study.model, list(names.values())) as calls,
        ):
            study.forward(batch)
        plan = _plan(calls, names, budget)
        for sites, rows in plan:
            request = MapRequest() if rows is None else MapRequest(queries=rows)
            with capture(study.model, list(sites.values()), request) as found:
                study.forward(batch)
            for layer, name in sites.items():
                for number, weights in enumerate(found.maps.get(name, ())):
                    known = calls[name][number] if number < len(calls[name]) else None
                    yield _rows(layer, number, weights, known, rows)


def _plan(
    calls: dict[str, list[Call]], names: dict[int, str], budget: int
) -> list[tuple[dict[int, str], Tensor | None]]:
    """Passes to make: the sites of each and the query rows, None for all."""
    per_row = {n: sum(_row_weights(c.shape) for c in calls[n]) for n in names.values()}
    rows = {n: {c.shape.queries for c in calls[n]} for n in names.values()}
    total = sum(per_row[n] * max(rows[n], default=0) for n in names.values())
    if total <= budget:
        return [(names, None)]
    plan: list[tuple[dict[int, str], Tensor | None]] = []
    for layer, name in names.items():
        # Calls of different length have no rows in common to cut by.
        if len(rows[name]) != 1:
            plan.append(({layer: name}, None))
            continue
        step = max(1, budget // max(1, per_row[name]))
        device = calls[name][0].shape.device
        blocks = torch.arange(rows[name].pop(), device=device).split(step)
        plan.extend(({layer: name}, block) for block in blocks)
    return plan


def _row_weights(shape: Shape) -> int:
    return shape.batch * shape.heads * shape.keys


def _rows(
    layer: int, number: int, weights: Tensor, call: Call | None, rows: Tensor | None
) -> MapRows:
    queries = weights.shape[2] if call is None else call.shape.queries
    index = torch.arange(queries, device=weights.device) if rows is None else rows
    visible = weights > 0 if call is None else call.visible(index)
    real = real_queries(visible, queries) if call is None else call.real[:, index]
    return MapRows(layer, number, weights, visible, real, index, queries)


def real_queries(visible: Tensor, queries: int) -> Tensor:
    """False for queries that are padding, `(batch or 1, queries)`.

    With as many queries as keys they count as the same tokens, and a token that no query sees is
    padding.

    Args:
        visible: True where attending is allowed, `(batch or 1, heads or 1, queries or 1, keys)`.
        queries: Number of queries.
    """
    if visible.shape[-1] == queries:
        return visible.any(2).any(1)
    return visible.new_ones(1, queries)
