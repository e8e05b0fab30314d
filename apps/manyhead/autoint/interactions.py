"""Which fields were combined: attention maps per row and on average, permutation importance beside.

A map shows where a layer looked, not what the prediction would lose without it. Permutation
importance measures that loss, so the two stand side by side and their agreement is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor, nn

from manyhead.autoint.model import AutoInt
from manyhead.autoint.rows import Rows
from manyhead_core.evaluate.binary import roc_auc

Score = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class FieldMaps:
    """Attention between fields.

    Args:
        fields: Names of the fields, in token order.
        rows: Layer 1 averaged over heads, `(rows, fields, fields)`: direct pairwise interactions
            (Song et al. 2019, section 5.5).
        layers: Mean over the rows, `(layers, heads, fields, fields)`. Layer 2 and above mix tokens
            that are mixtures already.
    """

    fields: tuple[str, ...]
    rows: Tensor
    layers: Tensor

    def pairs(self) -> pd.DataFrame:
        """Layer-1 pairs, strongest first; `ratio` compares with an even spread, 1/fields."""
        mean = self.layers[0].mean(0)
        table = _long(mean[None, None], self.fields).drop(columns=["layer", "head"])
        table = table[table["query"] != table["key"]]
        table["ratio"] = table["weight"] * len(self.fields)
        return table.sort_values("weight", ascending=False, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """Every mean map in long form: layer, head, query, key, weight."""
        return _long(self.layers, self.fields)


def field_maps(net: AutoInt, rows: Rows, fields: tuple[str, ...], batch: int = 4096) -> FieldMaps:
    """Attention maps of `net` on encoded rows, in evaluation mode.

    Args:
        net: The model.
        rows: Encoded rows.
        fields: Names in token order.
        batch: Rows at a time.
    """
    first, sums = [], []
    with torch.inference_mode():
        for part in slices(rows, batch):
            maps = net.eval().attention_maps(part.index, part.value, part.lists)
            first.append(maps[0].mean(1))
            sums.append(torch.stack([layer.double().sum(0) for layer in maps]))
    return FieldMaps(fields, torch.cat(first), (torch.stack(sums).sum(0) / len(rows.label)).float())


def permutation_importance(
    net: nn.Module, rows: Rows, fields: tuple[str, ...], repeats: int = 5, seed: int = 0
) -> pd.DataFrame:
    """What the model loses when one field is shuffled between rows.

    Args:
        net: Any network of this app.
        rows: Encoded rows with labels of both classes.
        fields: Names in token order.
        repeats: Shuffles per field.
        seed: Seed of the shuffles.

    Returns:
        field, auc_drop (mean), spread (standard deviation over the shuffles), shift (mean
        absolute change of the probability); the most important field first.
    """
    base = probabilities(net, rows)
    truth = rows.label.numpy()
    base_auc = roc_auc(truth, base)
    generator = torch.Generator().manual_seed(seed)
    table = []
    for token, name in enumerate(fields):
        shuffled = [
            probabilities(net, shuffle_field(rows, token, generator)) for _ in range(repeats)
        ]
        drops = [base_auc - roc_auc(truth, scores) for scores in shuffled]
        shift = float(np.mean([np.abs(scores - base).mean() for scores in shuffled]))
        table.append((name, float(np.mean(drops)), float(np.std(drops)), shift))
    columns = ["field", "auc_drop", "spread", "shift"]
    return pd.DataFrame(table, columns=columns).sort_values(
        "auc_drop", ascending=False, ignore_index=True
    )


def pair_interaction(
    net: nn.Module, rows: Rows, fields: tuple[str, ...], repeats: int = 3, seed: int = 0
) -> pd.DataFrame:
    """How far the logit is from a sum over two fields, for every pair of fields.

    For two rows a, b the mixed difference f(a_i, a_j) - f(b_i, a_j) - f(a_i, b_j) + f(b_i, b_j)
    with all other fields of a is zero when fields i and j act additively on the logit. Its root
    mean square over random pairs of rows is the interaction (Friedman and Popescu 2008,
    section 8.1, in its finite-difference form).

    Returns:
        first, second, interaction (in logits); the strongest pair first.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(rows.label), generator=generator) for _ in range(repeats)]
    base = logits(net, rows)
    table = []
    for i, j in combinations(range(len(fields)), 2):
        squares = [_mixed_difference(net, rows, base, i, j, order) for order in orders]
        table.append((fields[i], fields[j], float(np.sqrt(np.mean(squares)))))
    return pd.DataFrame(table, columns=["first", "second", "interaction"]).sort_values(
        "interaction", ascending=False, ignore_index=True
    )


def local_effects(
    net: nn.Module,
    rows: Rows,
    chosen: Sequence[int],
    fields: tuple[str, ...],
    background: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """What each field of a row does to its logit, against the values of other rows.

    The effect is the logit of the row less its mean when the field takes the values of
    `background` rows drawn at random: occlusion with observed values. Unlike a row of an attention
    map it is in the unit of the prediction.

    Args:
        net: Any network of this app.
        rows: Encoded rows to draw from.
        chosen: Places of the rows to explain.
        fields: Names in token order.
        background: Rows whose values are tried.
        seed: Seed of the draw.

    Returns:
        row (place), field, effect (logits); per row the strongest first.
    """
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(len(rows.label), (background,), generator=generator)
    table = []
    for place in chosen:
        own = take(rows, torch.full((background,), place))
        # Behind the copies of the row lie the rows that lend their values.
        both = take(rows, torch.cat([torch.full((background,), place), others]))
        lent = torch.arange(background, 2 * background).repeat(2)
        base = float(logits(net, own)[0])
        for token, name in enumerate(fields):
            changed = logits(net, replace_field(both, token, lent))[:background]
            table.append((place, name, base - float(changed.mean())))
    found = pd.DataFrame(table, columns=["row", "field", "effect"])
    order = found["effect"].abs().sort_values(ascending=False, kind="stable").index
    return found.loc[order].sort_values("row", kind="stable", ignore_index=True)


def shuffle_field(rows: Rows, token: int, generator: torch.Generator) -> Rows:
    """Exchange the values of one field between rows."""
    return replace_field(rows, token, torch.randperm(len(rows.label), generator=generator))


def replace_field(rows: Rows, token: int, order: Tensor) -> Rows:
    """Give row r the value that row `order[r]` has in the field `token`."""
    single = rows.index.shape[1]
    if token >= single:
        index, value = rows.lists[token - single]
        lists = list(rows.lists)
        lists[token - single] = (index[order], value[order])
        return rows._replace(lists=tuple(lists))
    index, value = rows.index.clone(), rows.value.clone()
    index[:, token], value[:, token] = index[order, token], value[order, token]
    return rows._replace(index=index, value=value)


def slices(rows: Rows, size: int) -> list[Rows]:
    """Cut rows into batches of at most `size`, without copying."""
    return [take(rows, slice(start, start + size)) for start in range(0, len(rows.label), size)]


def take(rows: Rows, part: slice | Tensor) -> Rows:
    """The rows of a slice (views) or of an index tensor (copies)."""
    lists = tuple((index[part], value[part]) for index, value in rows.lists)
    return Rows(
        rows.index[part],
        rows.value[part],
        lists,
        rows.label[part],
        rows.row[part],
        rows.group[part],
    )


def logits(net: nn.Module, rows: Rows, batch: int = 8192) -> np.ndarray:
    """`(rows,)` logits in float64, in evaluation mode."""
    with torch.inference_mode():
        parts = [
            net.eval()(part.index, part.value, part.lists).logits.double()
            for part in slices(rows, batch)
        ]
    return torch.cat(parts).cpu().numpy()


def probabilities(net: nn.Module, rows: Rows) -> np.ndarray:
    """`(rows,)` click probabilities in float64."""
    scores: np.ndarray = expit(logits(net, rows))
    return scores


def _mixed_difference(
    net: nn.Module, rows: Rows, base: np.ndarray, i: int, j: int, order: Tensor
) -> float:
    with_i = replace_field(rows, i, order)
    with_j = replace_field(rows, j, order)
    both = replace_field(with_i, j, order)
    difference = base - logits(net, with_i) - logits(net, with_j) + logits(net, both)
    return float(np.mean(difference**2))


def _long(maps: Tensor, fields: tuple[str, ...]) -> pd.DataFrame:
    """`(layers, heads, fields, fields)` as one row per entry; layers and heads count from 1."""
    layers, heads = maps.shape[:2]
    names = [range(1, layers + 1), range(1, heads + 1), fields, fields]
    index = pd.MultiIndex.from_product(names, names=["layer", "head", "query", "key"])
    return pd.DataFrame({"weight": maps.reshape(-1).numpy()}, index=index).reset_index()
