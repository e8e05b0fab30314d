"""What every analysis stands on: a model with its batches, the names of its heads, intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyhead_core.attention import Attend
from manyhead_core.attention.capture import attention_sites, capture
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.intervals import MIN_GROUPS, bootstrap, percentiles

Array = NDArray[Any]
# Layer and head, both from 0; layers are the attention sites in module order.
Head = tuple[int, int]
Pick = str | Callable[[Any], Any] | None

DRAWS = 1000
SEED = 0
# Columns of a table of samples that do not name what was measured.
_ROW = ("sample", "group", "value")
_CELLS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Study:
    """A model, how to run it, and the batches to look at.

    Args:
        model: Any module with attention sites.
        forward: From a batch to logits, `(batch,)` for two classes or `(batch, classes)`.
        batches: A list or a loader; it may be read several times.
        label: Key of the labels in a batch that is a mapping, or a function of the batch; class
            numbers `(batch,)`.
        group: Patient, slide or user of each sample, found like `label`; a batch without it makes
            every sample a group of its own.

    Raises:
        ConfigError: `batches` can be read only once.
    """

    model: nn.Module
    forward: Callable[[Any], Tensor]
    batches: Iterable[Any]
    label: Pick = "label"
    group: Pick = "group"

    def __post_init__(self) -> None:
        """Check that a second pass is possible."""
        if iter(self.batches) is self.batches:
            raise ConfigError(
                "batches: an iterator can be read only once; pass a list or a DataLoader"
            )


class Part(NamedTuple):
    """One batch of a study with its bookkeeping.

    Args:
        batch: As the study's `batches` gave it.
        samples: Running number of each sample, `(batch,)`.
        groups: Group of each sample, `(batch,)`.
    """

    batch: Any
    samples: Array
    groups: Array


class Site(NamedTuple):
    """One layer of heads.

    Args:
        layer: Number, from 0.
        name: Dotted name of the module.
        heads: Number of heads.
    """

    layer: int
    name: str
    heads: int


def walk(study: Study) -> Iterator[Part]:
    """The batches in turn, each with numbers and groups of its samples.

    Raises:
        DataError: There is no batch.
    """
    start = 0
    for batch in study.batches:
        size = batch_size(batch)
        samples = np.arange(start, start + size)
        yield Part(batch, samples, _groups(study, batch, samples))
        start += size
    if start == 0:
        raise DataError("batches: there is none; pass at least one batch")


def batch_size(batch: Any) -> int:
    """Samples of a batch: the length of the first tensor in it.

    Raises:
        DataError: The batch holds no tensor.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    for part in parts:
        if isinstance(part, Tensor):
            return part.shape[0]
    raise DataError(f"batches: a {type(batch).__name__} without a tensor; put one into the batch")


def labels_of(study: Study, batch: Any) -> Tensor:
    """Class numbers of a batch, `(batch,)`.

    Raises:
        DataError: The batch has none.
    """
    found = _picked(study.label, batch)
    if found is None:
        raise DataError(
            f"label: a batch has no {study.label!r}; pass label=KEY or a function of the batch"
        )
    return torch.as_tensor(found)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode of every module after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def pick_sites(
    model: nn.Module, layers: Sequence[int | str] | None = None, *, softmax: bool = False
) -> dict[int, str]:
    """Names of attention sites by layer number.

    Args:
        model: Any module with attention sites.
        layers: Numbers or names to keep; None keeps all.
        softmax: Whether None keeps only sites with softmax weights, which can be edited.

    Raises:
        ConfigError: The model has no site, or not the named one.
    """
    sites = attention_sites(model)
    names = dict(enumerate(sites))
    if not names:
        raise ConfigError("model: it has no attention site; build its attention on Attend")
    if layers is None:
        kept = {n: name for n, name in names.items() if not softmax or is_softmax(sites[name])}
        if not kept:
            raise ConfigError("model: none of its layers has softmax weights that could be changed")
        return kept
    numbers = {name: number for number, name in names.items()}
    for layer in layers:
        if layer not in names and layer not in numbers:
            known = ", ".join(f"{number} ({name})" for number, name in names.items())
            raise ConfigError(f"layers: {layer!r} is not a site of the model; it has {known}")
    wanted = {numbers[layer] if isinstance(layer, str) else layer for layer in layers}
    return {number: name for number, name in names.items() if number in wanted}


def is_softmax(site: nn.Module) -> bool:
    """Whether a site has softmax weights."""
    return isinstance(site, Attend)


def find_heads(
    study: Study, layers: Sequence[int | str] | None = None, *, softmax: bool = False
) -> list[Site]:
    """The sites that a forward pass uses, with their numbers of heads.

    Args:
        study: Its first batch is run once.
        layers: As in `pick_sites`.
        softmax: As in `pick_sites`.
    """
    names = pick_sites(study.model, layers, softmax=softmax)
    first = next(walk(study)).batch
    with (
        torch.no_grad(),
        evaluating(study.model),
        capture(study.model, list(names.values()), None, head_outputs=True) as found,
    ):
        study.forward(first)
    return [
        Site(layer, name, found.head_outputs[name][0].shape[1])
        for layer, name in names.items()
        if found.head_outputs.get(name)
    ]


def head_numbers(heads: Iterable[int], number: int) -> list[int]:
    """Heads of one layer, checked.

    Args:
        heads: Numbers from 0.
        number: Heads that the layer has.

    Raises:
        ConfigError: There is no such head.
    """
    chosen = list(heads)
    for head in chosen:
        if not 0 <= head < number:
            raise ConfigError(f"heads: {head} is not between 0 and {number - 1}")
    return chosen


def head_rows(
    part: Part, layer: int, values: Mapping[str, Array | Tensor], **columns: Any
) -> pd.DataFrame:
    """A table of samples: one row for each sample, head and measure.

    Args:
        part: The batch that the values belong to.
        layer: Number of the layer.
        values: By measure, `(batch, heads)`.
        **columns: Further columns with one value for all rows.

    Returns:
        Columns sample, group, layer, head, further ones, measure, value; for `with_intervals`.
    """
    frames = []
    for measure, value in values.items():
        matrix = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        samples, heads = matrix.shape
        content = {
            "sample": np.repeat(part.samples, heads),
            "group": np.repeat(part.groups, heads),
            "layer": layer,
            "head": np.tile(np.arange(heads), samples),
            **columns,
            "measure": measure,
            "value": matrix.astype(float).ravel(),
        }
        frames.append(pd.DataFrame(content))
    return pd.concat(frames, ignore_index=True)


def with_intervals(
    frame: pd.DataFrame,
    group: str = "group",
    *,
    by: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """Means of a table of samples with 95 % intervals by bootstrap over groups.

    A group is drawn with all its rows. Rows without a group are groups of their own. Undefined
    values are left out. Below 10 groups there is no interval.

    Args:
        frame: Columns `value`, the group, and what names the quantity.
        group: Column of the patient, slide or user.
        by: Columns that name the quantity; None takes all but sample, group and value.
        draws: Resamples.
        seed: Seed of the draws.

    Returns:
        Columns of `by`, then value, lo, hi, in the order of first appearance.
    """
    names = [n for n in map(str, frame) if n not in (*_ROW, group)] if by is None else list(by)
    cells = frame.groupby(names, sort=False, dropna=False).ngroup().to_numpy()
    table = frame.drop_duplicates(names)[names].reset_index(drop=True)
    values = frame["value"].to_numpy(dtype=float)
    sums, counts = _sums(values, group_codes(frame[group]), cells, len(table))
    with np.errstate(invalid="ignore"):
        table["value"] = sums.sum(0) / counts.sum(0)
    limits = [
        interval_of_ratio(sums[:, start:end], counts[:, start:end], draws, seed)
        for start in range(0, len(table), _CELLS_AT_ONCE)
        for end in [start + _CELLS_AT_ONCE]
    ]
    table["lo"], table["hi"] = np.concatenate(limits).T
    return table


def interval_of_ratio(sums: Array, counts: Array, draws: int = DRAWS, seed: int = SEED) -> Array:
    """95 % limits of `sum of sums / sum of counts` when groups are drawn, `(cells, 2)`.

    Args:
        sums: Sum of the values of each group, `(groups, cells)`.
        counts: Number of values of each group, same shape.
        draws: Resamples.
        seed: Seed of the draws.

    Returns:
        NaN for a cell with values in fewer than 10 groups.
    """
    limits = np.full((sums.shape[1], 2), np.nan)
    enough = (counts > 0).sum(0) >= MIN_GROUPS
    if enough.any():
        top, bottom = sums[:, enough], counts[:, enough]

        def means(weights: Array) -> Array:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray((weights @ top) / (weights @ bottom))

        drawn = bootstrap(means, np.arange(len(sums)), draws, seed)
        found = [percentiles(column) for column in drawn.T]
        limits[enough] = np.array(found, dtype=float)
    return limits


def interval_of_metric(
    metric: Callable[[Array], float],
    groups: Sequence[Any] | Array,
    draws: int = DRAWS,
    seed: int = SEED,
) -> tuple[float, float]:
    """95 % limits of any metric when groups are drawn; NaN below 10 groups.

    Args:
        metric: From row numbers, with repeats, to the metric of those rows.
        groups: Of each row.
        draws: Resamples.
        seed: Seed of the draws.
    """
    codes = group_codes(pd.Series(list(groups)))
    if codes.max() + 1 < MIN_GROUPS:
        return float("nan"), float("nan")

    def values(weights: Array) -> Array:
        rows = [np.repeat(np.arange(len(codes)), row.astype(int)) for row in weights]
        return np.array([[metric(chosen)] for chosen in rows])

    low, high = percentiles(bootstrap(values, codes, draws, seed)[:, 0])
    return (float("nan"), float("nan")) if low is None or high is None else (low, high)


def group_codes(groups: pd.Series[Any]) -> Array:
    """Numbers of groups from 0; a row without a group gets one of its own."""
    codes, names = pd.factorize(groups)
    alone = codes < 0
    codes[alone] = len(names) + np.arange(int(alone.sum()))
    return codes


def _sums(values: Array, units: Array, cells: Array, width: int) -> tuple[Array, Array]:
    """Sums and counts of the defined values, `(groups, cells)` each."""
    defined = np.isfinite(values)
    number = int(units.max()) + 1
    place = (units * width + cells)[defined]
    sums = np.bincount(place, weights=values[defined], minlength=number * width)
    counts = np.bincount(place, minlength=number * width).astype(float)
    return sums.reshape(number, width), counts.reshape(number, width)


def _groups(study: Study, batch: Any, samples: Array) -> Array:
    found = _picked(study.group, batch)
    if found is None:
        return np.array([f"sample {number}" for number in samples], dtype=object)
    names = found.tolist() if isinstance(found, Tensor) else list(found)
    if len(names) != len(samples):
        raise DataError(f"group: {len(names)} groups for {len(samples)} samples; give one each")
    return np.array(names, dtype=object)


def _picked(pick: Pick, batch: Any) -> Any:
    if callable(pick):
        return pick(batch)
    return batch.get(pick) if isinstance(batch, Mapping) and pick is not None else None
