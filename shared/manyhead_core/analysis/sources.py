"""Which heads read a source of the input, such as an image, a lead or a clinical text.

After vision-aware head divergence (He et al., 2024, arXiv 2412.13949): how far the output of a head
moves when the source is taken away and the rest stays.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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
from manyhead_core.attention.capture import attention_sites, capture, edit_weights, gate_heads
from manyhead_core.attention.layer import Attend
from manyhead_core.errors import ConfigError, DataError

Array = NDArray[Any]
ALPHA = 2.0


class Removal(ABC):
    """A way to take a source away.

    Attributes:
        name: What a table calls it.
    """

    name: str

    def changed(self, part: Part) -> Any:
        """The batch without the source."""
        return part.batch

    def hiding(self, model: nn.Module, part: Part) -> AbstractContextManager[None]:  # noqa: ARG002
        """What has to hold while that batch runs."""
        return nullcontext()


@dataclass(frozen=True, eq=False)
class MaskedKeys(Removal):
    """Hide the tokens of the source as keys in every layer; the tokens themselves stay.

    Args:
        keys: From a batch to the tokens of the source, boolean `(keys,)` or `(batch, keys)`.
        layers: Numbers or names of the layers; None takes all. They need softmax weights over the
            tokens.
    """

    keys: Callable[[Any], Tensor]
    layers: Sequence[int | str] | None = None
    name = "masked keys"

    def hiding(self, model: nn.Module, part: Part) -> AbstractContextManager[None]:
        """Weights on the source are zero and the others share them in proportion."""
        source = self.keys(part.batch)
        sites = pick_sites(model, self.layers).values()
        return edit_weights(model, {name: without_keys(source) for name in sites})


@dataclass(frozen=True, eq=False)
class Baseline(Removal):
    """Replace the source in the batch by a value that stands for nothing.

    Args:
        change: From a batch to the batch with the baseline in place of the source.
    """

    change: Callable[[Any], Any]
    name = "baseline value"

    def changed(self, part: Part) -> Any:
        """The batch with the baseline."""
        return self.change(part.batch)


class Shuffled(Removal):
    """Give every sample the source of another patient.

    Args:
        study: Its batches are read once, and all sources are kept; they have a fixed order.
        source: From a batch to its source, `(batch, ...)`, of one shape in all batches.
        change: Takes a batch and a source; gives the batch with that source.
        seed: Seed of the exchange.

    Raises:
        DataError: More than half of the samples belong to one group.
    """

    name = "shuffled over patients"

    def __init__(
        self,
        study: Study,
        source: Callable[[Any], Tensor],
        change: Callable[[Any, Tensor], Any],
        seed: int = SEED,
    ) -> None:
        parts = list(walk(study))
        self.groups = np.concatenate([part.groups for part in parts])
        sources = torch.cat([source(part.batch) for part in parts])
        donors = torch.from_numpy(other_group(self.groups, seed))
        self.sources = sources[donors.to(sources.device)]
        self.change = change

    def changed(self, part: Part) -> Any:
        """The batch with the sources of others."""
        last = int(part.samples[-1]) + 1
        if last > len(self.groups) or (self.groups[part.samples] != part.groups).any():
            raise DataError("batches: they came in another order; pass a loader that keeps it")
        return self.change(part.batch, self.sources[int(part.samples[0]) : last])


def other_group(groups: Array, seed: int = SEED) -> Array:
    """For each sample the number of a sample of another group, each used once, `(samples,)`.

    Args:
        groups: Of each sample.
        seed: Seed of the order.

    Raises:
        DataError: More than half of the samples belong to one group.
    """
    codes, names = pd.factorize(pd.Series(groups))
    largest = int(np.bincount(codes).max())
    if 2 * largest > len(codes):
        raise DataError(
            f"group: {largest} of {len(codes)} samples belong to one group; shuffling over "
            "patients needs at most half"
        )
    generator = np.random.default_rng(seed)
    rank = generator.permutation(len(names))[codes]
    # Sorted by group, a step as long as the largest group always leads into another one.
    order = np.lexsort((generator.random(len(codes)), rank))
    donors = np.empty(len(codes), dtype=np.int64)
    donors[order] = np.roll(order, -largest)
    return donors


@dataclass(frozen=True, eq=False)
class Divergence:
    """How much heads depend on a source.

    Args:
        table: Columns layer, head, removal, measure, value, lo, hi.
        samples: The same for each sample.
        tokens: Divergence of each query token, one array `(layers, heads, tokens)` a sample; None
            if layers differ in heads or tokens.
        layers: Layer numbers of those arrays.
    """

    table: pd.DataFrame
    samples: pd.DataFrame
    tokens: list[Array] | None
    layers: list[int]


def source_divergence(
    study: Study,
    removal: Removal,
    *,
    layers: Sequence[int | str] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Divergence:
    """`|| o_a(x) - o_a(x without the source) ||_2`, mean over query tokens, for every head.

    `o_a` is the output of the head before the projection.

    Args:
        study: Model and batches.
        removal: How the source is taken away; the table states it.
        layers: Numbers or names of layers; None takes all.
        draws: Resamples of the groups.
        seed: Seed of the draws.
    """
    sites = pick_sites(study.model, layers)
    frames: list[pd.DataFrame] = []
    kept: list[list[Tensor]] = []
    for part in walk(study):
        found = divergence_of(study, part, removal, sites)
        kept.append(list(found.values()))
        frames += [
            head_rows(part, layer, {"divergence": moved.mean(2)}, removal=removal.name)
            for layer, moved in found.items()
        ]
    samples = pd.concat(frames, ignore_index=True)
    table = with_intervals(samples, draws=draws, seed=seed)
    numbers = list(dict.fromkeys(samples["layer"].tolist()))
    return Divergence(table, samples, _stacked(kept), numbers)


def divergence_of(
    study: Study, part: Part, removal: Removal, sites: Mapping[int, str]
) -> dict[int, Tensor]:
    """Divergence of each head and query token by layer, `(batch, heads, queries)`.

    Args:
        study: Model and forward.
        part: One batch.
        removal: How the source is taken away.
        sites: Names of the layers by number.
    """
    with torch.no_grad(), evaluating(study.model):
        whole = _outputs(study, part.batch, part, sites)
        with removal.hiding(study.model, part):
            less = _outputs(study, removal.changed(part), part, sites)
    return {
        layer: torch.linalg.vector_norm(whole[name] - less[name], dim=-1)
        for layer, name in sites.items()
        if name in whole
    }


def without_keys(source: Tensor) -> Callable[[Tensor], Tensor]:
    """An edit of weights that hides keys: the others keep their proportions and sum to the same.

    A query that saw nothing else gets zeros.

    Args:
        source: Hidden keys, boolean `(keys,)` or `(batch, keys)`.
    """

    def edit(weights: Tensor) -> Tensor:
        if source.shape[-1] != weights.shape[-1]:
            raise ConfigError(
                f"keys: {source.shape[-1]} given for a layer with {weights.shape[-1]}; name the "
                "layers that see all tokens"
            )
        hidden = source if source.dim() == 1 else source[:, None, None]
        rest = weights.masked_fill(hidden.to(weights.device), 0.0)
        total = rest.sum(-1, keepdim=True)
        return rest * weights.sum(-1, keepdim=True) / total.masked_fill(total == 0, 1.0)

    return edit


def token_scores(divergence: Array, top: int) -> Array:
    """How much each token depends on the source: sum over layers of its `top` largest heads.

    Args:
        divergence: `(layers, heads, tokens)`.
        top: Heads of each layer.

    Returns:
        `(tokens,)`.
    """
    return np.asarray(np.sort(divergence, axis=1)[:, -top:].sum((0, 1)))


def reinforcement_gates(values: Array, alpha: float = ALPHA) -> Array:
    """Gates that strengthen the heads of one layer that read the source, `(heads,)`.

    The upper half of the heads gets `alpha`, less the outliers above mean + 1 standard deviation
    of the layer, which stay as they are.

    Args:
        values: Divergence of each head, `(heads,)`.
        alpha: Factor.
    """
    gates = np.ones(len(values))
    upper = np.argsort(-values, kind="stable")[: len(values) // 2]
    gates[upper] = alpha
    gates[values > values.mean() + values.std()] = 1.0
    return gates


@contextmanager
def reinforced(model: nn.Module, divergence: Divergence, alpha: float = ALPHA) -> Iterator[None]:
    """The model with strengthened source heads inside the `with`.

    Args:
        model: The model of the divergence.
        divergence: What `source_divergence` gave, on other data than those of the test.
        alpha: Factor of the strengthened heads.
    """
    names = pick_sites(model, list(dict.fromkeys(divergence.table["layer"].tolist())))
    like = next(model.parameters(), torch.empty(0))
    gates = {}
    for layer, rows in divergence.table.groupby("layer"):
        found = reinforcement_gates(rows.sort_values("head")["value"].to_numpy(), alpha)
        gates[names[int(str(layer))]] = torch.from_numpy(found).to(like.device, like.dtype)
    with gate_heads(model, gates):
        yield


def stability(samples: pd.DataFrame) -> pd.DataFrame:
    """Whether patients agree on which heads matter: each one against the mean of the others.

    Args:
        samples: `Divergence.samples`.

    Returns:
        Columns group, spearman: rank correlation over all heads; overlap: share of the upper half
        of the heads that the others have in theirs. NaN for a single group.
    """
    wide = samples.pivot_table(index="group", columns=["layer", "head"], values="value", sort=False)
    rows = []
    for name in wide.index:
        own, others = wide.loc[name], wide.drop(index=name).mean()
        half = max(1, len(own) // 2)
        common = set(own.nlargest(half).index) & set(others.nlargest(half).index)
        alone = len(wide) == 1
        rows.append(
            {
                "group": name,
                "spearman": float("nan") if alone else own.corr(others, method="spearman"),
                "overlap": float("nan") if alone else len(common) / half,
            }
        )
    return pd.DataFrame(rows)


def _outputs(study: Study, batch: Any, part: Part, sites: Mapping[int, str]) -> dict[str, Tensor]:
    """Head outputs of each layer that runs, `(batch, heads, queries, value_dim)`.

    Those of several calls, and of the windows of a sample, stand one after the other as queries.
    """
    size = len(part.samples)
    with capture(study.model, list(sites.values()), None, head_outputs=True) as found:
        study.forward(batch)
    return {
        name: torch.cat([o.unflatten(0, (size, -1)).transpose(1, 2).flatten(2, 3) for o in outs], 2)
        for name, outs in found.head_outputs.items()
        if outs
    }


def _stacked(kept: Sequence[Sequence[Tensor]]) -> list[Array] | None:
    if any(len({tuple(layer.shape) for layer in batch}) != 1 for batch in kept):
        return None
    found: list[Array] = []
    for batch in kept:
        found.extend(torch.stack(list(batch), 1).cpu().numpy())
    return found


def softmax_layers(model: nn.Module) -> list[int]:
    """Numbers of the layers with softmax weights, which `MaskedKeys` can act on."""
    sites = attention_sites(model).values()
    return [number for number, site in enumerate(sites) if isinstance(site, Attend)]
