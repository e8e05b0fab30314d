"""Attention sinks: keys that gather weight from everywhere, and the activations behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from manyhead_core.analysis.blocks import called_blocks
from manyhead_core.analysis.outputs import first_tensor
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Part,
    Study,
    evaluating,
    head_rows,
    pick_sites,
    walk,
    with_intervals,
)
from manyhead_core.analysis.stream import MAX_WEIGHTS, NO_MAPS, stream_maps
from manyhead_core.errors import ConfigError, DataError

ALPHA = 0.1
FEW_KEYS = 20
MASSIVE = 100.0
MASSIVE_RATIO = 1000.0
TAU = 20.0


@dataclass(frozen=True)
class SinkReport:
    """Sinks of the heads of a model.

    Args:
        table: Columns layer, head, measure, value, lo, hi; the measures of `find_sinks`.
        positions: Columns layer, head, position (number of the key), share (of maps where it is a
            sink), score (mean column score there); positions that are never a sink are left out.
        massive: Columns sample, layer, token, dim, value, ratio: the massive activations in
            the input of each layer; None where it was not asked for.
    """

    table: pd.DataFrame
    positions: pd.DataFrame
    massive: pd.DataFrame | None


def find_sinks(
    study: Study,
    *,
    alpha: float | None = None,
    hidden: Mapping[int, str] | bool = True,
    layers: Sequence[int | str] | None = None,
    budget: int = MAX_WEIGHTS,
    draws: int = DRAWS,
    seed: int = SEED,
) -> SinkReport:
    """Sinks of every head, with intervals over groups.

    A key is a sink if its column score, the mean weight over the rows that may see it, exceeds
    `alpha`. Queries that are padding do not count; with as many queries as keys, these are the
    tokens that no query sees. Windows of a layer, and calls if there are several, are maps of their
    own. Measures, each for a sample and then averaged:

    - `number`: how many keys are sinks.
    - `mass`: share of all weight that goes to sinks.
    - `norm_ratio`: length of the sinks' hidden states over the median length of the tokens; only
      for samples with a sink, and for layers whose input has as many tokens as keys.

    Args:
        study: Model and batches; labels are not needed.
        alpha: Threshold; None takes 0.1, and 3 / keys for up to 20 keys.
        hidden: By layer number, the module whose input holds the hidden states; True takes the
            layer around each site; False leaves them out.
        layers: Layers to look at, by number or name; None takes all.
        budget: Most weights held at once.
        draws: Resamples of the groups.
        seed: Seed of the draws.
    """
    names = pick_sites(study.model, layers)
    modules = _hidden_modules(study, names, hidden)
    frames: list[pd.DataFrame] = []
    spots: list[pd.DataFrame] = []
    massive: list[pd.DataFrame] = []
    maps: Counter[int] = Counter()
    for part in walk(study):
        states = hidden_states(study, part.batch, modules.values()) if modules else {}
        for layer, columns in _columns(study, part, names, budget):
            windows = _windows(part, len(columns.weights))
            state = _fitting(states.get(modules.get(layer, "")), columns)
            frames.append(head_rows(windows, layer, sink_measures(columns, alpha, state)))
            spots.append(_positions(windows, layer, columns, alpha))
            maps[layer] += len(columns.weights)
        for layer, name in modules.items():
            if name in states:
                massive.append(_massive_rows(part, layer, states[name]))
    if not frames:
        raise DataError(NO_MAPS)
    return SinkReport(
        with_intervals(pd.concat(frames, ignore_index=True), draws=draws, seed=seed),
        _merge_positions(spots, maps),
        pd.concat(massive, ignore_index=True) if massive else None,
    )


@dataclass(frozen=True, eq=False)
class Columns:
    """Sums over the rows of a map.

    Args:
        weights: Weight that each key gets, `(batch, heads, keys)`.
        rows: Number of rows that may see each key, same shape.
    """

    weights: Tensor
    rows: Tensor

    @property
    def score(self) -> Tensor:
        """Mean weight over the rows that may see the key; 0 where there is none."""
        return self.weights / self.rows.clamp_min(1)

    @property
    def keys(self) -> Tensor:
        """How many keys any row sees, `(batch, heads)`."""
        return (self.rows > 0).sum(-1)


def columns_of(weights: Tensor, visible: Tensor, real: Tensor) -> Columns:
    """Column sums of weights.

    Args:
        weights: `(batch, heads, queries, keys)`.
        visible: True where attending is allowed, broadcastable to `weights`.
        real: False for queries that do not count, `(batch or 1, queries)`.
    """
    counted = real[:, None, :, None]
    rows = (visible & counted).expand(weights.shape).sum(2)
    return Columns((weights * counted).sum(2), rows.to(weights.dtype))


def is_sink(columns: Columns, alpha: float | None = None) -> Tensor:
    """True for sinks, `(batch, heads, keys)`.

    Args:
        columns: What `columns_of` gives.
        alpha: Threshold; None takes 0.1, and 3 / keys for up to 20 keys, padding not counted.
    """
    if alpha is not None:
        return columns.score > alpha
    keys = columns.keys[..., None]
    threshold = torch.where(keys <= FEW_KEYS, 3.0 / keys.clamp_min(1), ALPHA)
    return columns.score > threshold


def sink_measures(columns: Columns, alpha: float | None, state: Tensor | None) -> dict[str, Tensor]:
    """Measures of `find_sinks` for each sample, `(batch, heads)`.

    Args:
        columns: Column sums.
        alpha: Threshold as in `is_sink`.
        state: Hidden states, `(batch, keys, dim)`, or None.
    """
    sinks = is_sink(columns, alpha)
    total = columns.weights.sum(-1)
    found = {
        "number": sinks.sum(-1).double(),
        "mass": (columns.weights * sinks).sum(-1) / total,
    }
    if state is not None:
        ratio = _norm_ratio(state, columns)
        # Without a sink 0 / 0: undefined.
        found["norm_ratio"] = (ratio * sinks).sum(-1) / sinks.sum(-1)
    return found


def massive_activations(state: Tensor) -> Tensor:
    """True for massive activations: above 100, and above 1000 times the median in size.

    Sun et al., COLM 2024. The median is that of the absolute values of a sample.

    Args:
        state: Hidden states of a layer, `(batch, tokens, dim)`.
    """
    size = state.abs()
    median = size.flatten(1).median(1).values[:, None, None]
    return (size > MASSIVE) & (size > MASSIVE_RATIO * median)


def activation_test(state: Tensor, dims: Sequence[int], tau: float = TAU) -> Tensor:
    """Tokens whose hidden states say that they are sinks, boolean `(batch, tokens)`.

    The largest absolute value among the massive dimensions, over the root mean square of all, is at
    least `tau`.

    Args:
        state: Hidden states of a layer, `(batch, tokens, dim)`.
        dims: Massive dimensions.
        tau: Threshold.
    """
    if not len(dims):
        return torch.zeros(state.shape[:2], dtype=torch.bool, device=state.device)
    root = state.square().mean(-1).sqrt()
    return state[..., list(dims)].abs().amax(-1) >= tau * root.clamp_min(1e-30)


def hidden_states(study: Study, batch: Any, modules: Iterable[str]) -> dict[str, Tensor]:
    """First tensor that goes into each named module, from one forward pass.

    Args:
        study: Model and forward.
        batch: One batch.
        modules: Dotted names.
    """
    with (
        torch.no_grad(),
        evaluating(study.model),
        _watch_inputs(study.model, modules) as seen,
    ):
        study.forward(batch)
    return seen


@contextmanager
def _watch_inputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    modules = {n.replace("_orig_mod.", ""): m for n, m in model.named_modules()}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            found = first_tensor((*args, *kwargs.values()))
            if found is not None:
                seen[name] = found.detach()

        return hook

    for name in names:
        if name not in modules:
            raise ConfigError(f"hidden: {name!r} is not a module of the model")
    hooks = [
        modules[name].register_forward_pre_hook(watch(name), with_kwargs=True)
        for name in set(names)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _hidden_modules(
    study: Study, names: dict[int, str], hidden: Mapping[int, str] | bool
) -> dict[int, str]:
    if isinstance(hidden, Mapping):
        return dict(hidden)
    if not hidden:
        return {}
    return {layer: name for layer, name in called_blocks(study).items() if layer in names}


def _columns(
    study: Study, part: Part, names: dict[int, str], budget: int
) -> list[tuple[int, Columns]]:
    """Column sums of every call, with the number of its layer."""
    found: dict[tuple[int, int], Columns] = {}
    for rows in stream_maps(study, part.batch, names, budget):
        new = columns_of(rows.weights.double(), rows.visible, rows.real)
        old = found.get((rows.layer, rows.call))
        if old is not None:
            new = Columns(old.weights + new.weights, old.rows + new.rows)
        found[rows.layer, rows.call] = new
    return [(layer, columns) for (layer, _), columns in found.items()]


def _windows(part: Part, count: int) -> Part:
    """The same for maps of windows, those of a sample together."""
    times = count // len(part.samples)
    return Part(part.batch, np.repeat(part.samples, times), np.repeat(part.groups, times))


def _fitting(state: Tensor | None, columns: Columns) -> Tensor | None:
    batch, _, keys = columns.weights.shape
    if state is None or state.dim() != 3 or state.shape[:2] != (batch, keys):
        return None
    return state


def _norm_ratio(state: Tensor, columns: Columns) -> Tensor:
    """Length of each token over the median length of the visible ones, `(batch, 1, keys)`."""
    norm = torch.linalg.vector_norm(state.double(), dim=-1)
    seen = (columns.rows > 0).any(1)
    median = norm.masked_fill(~seen, torch.nan).nanmedian(-1, keepdim=True).values
    return (norm / median)[:, None]


def _positions(part: Part, layer: int, columns: Columns, alpha: float | None) -> pd.DataFrame:
    sinks = is_sink(columns, alpha).cpu()
    sample, head, position = sinks.nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "sample": part.samples[sample.numpy()],
            "layer": layer,
            "head": head.numpy(),
            "position": position.numpy(),
            "score": columns.score.cpu()[sinks].numpy(),
        }
    )


def _merge_positions(spots: Sequence[pd.DataFrame], maps: Mapping[int, int]) -> pd.DataFrame:
    names = ["layer", "head", "position"]
    rows = pd.concat(spots, ignore_index=True).groupby(names)["score"]
    table = rows.agg(["size", "mean"]).reset_index()
    table["share"] = table["size"] / table["layer"].map(maps)
    return table.rename(columns={"mean": "score"})[[*names, "share", "score"]]


def _massive_rows(part: Part, layer: int, state: Tensor) -> pd.DataFrame:
    names = ["sample", "layer", "token", "dim", "value", "ratio"]
    if state.dim() != 3 or len(state) != len(part.samples):
        return pd.DataFrame(columns=names)
    found = massive_activations(state)
    sample, token, dim = (index.cpu().numpy() for index in found.nonzero(as_tuple=True))
    median = state.abs().flatten(1).median(1).values[:, None, None]
    content = [
        part.samples[sample],
        layer,
        token,
        dim,
        state[found].cpu().numpy(),
        (state.abs() / median)[found].cpu().numpy(),
    ]
    return pd.DataFrame(dict(zip(names, content, strict=True)))
