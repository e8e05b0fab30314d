"""How much predictions need each head: gates set to zero one at a time, or their slope."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from manyhead_core.analysis.blocks import called_blocks
from manyhead_core.analysis.outputs import (
    Loss,
    Pool,
    cosine_change,
    embedding,
    jensen_shannon,
    probabilities,
    sample_loss,
    true_probability,
    watch_outputs,
)
from manyhead_core.analysis.run import (
    DRAWS,
    SEED,
    Head,
    Part,
    Site,
    Study,
    evaluating,
    find_heads,
    head_numbers,
    head_rows,
    labels_of,
    walk,
    with_intervals,
)
from manyhead_core.attention.capture import gate_heads
from manyhead_core.errors import ConfigError

ABLATION = ("loss_change", "probability_drop", "divergence")
EMBEDDING = ("embedding_layer", "embedding_last")
MEASURES = (*ABLATION, *EMBEDDING, "gradient")


class _Pass(NamedTuple):
    """What one forward pass is compared by."""

    loss: Tensor
    predicted: Tensor
    truth: Tensor
    embeddings: dict[str, Tensor]


def head_importance(
    study: Study,
    *,
    layers: Sequence[int | str] | None = None,
    loss: Loss = sample_loss,
    pool: Pool = "mean",
    blocks: Mapping[int, str] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """Importance of every head by several measures, with intervals over groups.

    The output of a head is multiplied by a gate of zero, and everything else stays:

    - `loss_change`: loss without the head minus loss with it.
    - `probability_drop`: probability of the true class with the head minus that without.
    - `divergence`: Jensen-Shannon divergence between the two predictive distributions, natural
      logarithm, between 0 and ln 2.
    - `embedding_layer`, `embedding_last`: 1 - cosine between the two embeddings after the head's
      own layer and after the last layer.
    - `gradient`: mean over samples of the absolute slope of the loss with respect to the gate, from
      one backward pass (Michel et al., NeurIPS 2019, section 4.1).

    Args:
        study: Model, batches and labels.
        layers: Layers to look at, by number or name; None takes all.
        loss: From logits and labels to a loss for each sample.
        pool: How a layer's output becomes one vector: `mean` over tokens, the number of the class
            token, or a function; None leaves the embeddings out.
        blocks: By layer number, the module whose output is that of the layer; None takes the
            outermost module around each site that holds no other. Without such a module the
            embeddings are left out.
        draws: Resamples of the groups.
        seed: Seed of the draws.

    Returns:
        Columns layer, head, measure, value, lo, hi.
    """
    rows = importance_rows(study, layers=layers, loss=loss, pool=pool, blocks=blocks)
    return with_intervals(rows, draws=draws, seed=seed)


def importance_rows(
    study: Study,
    *,
    layers: Sequence[int | str] | None = None,
    loss: Loss = sample_loss,
    pool: Pool = "mean",
    blocks: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """The measures of `head_importance` for every sample.

    Args:
        study: Model, batches and labels.
        layers: As in `head_importance`.
        loss: As in `head_importance`.
        pool: As in `head_importance`.
        blocks: As in `head_importance`.

    Returns:
        Columns sample, group, layer, head, measure, value.
    """
    sites = find_heads(study, layers)
    last = max(site.layer for site in find_heads(study))
    own = {} if pool is None else {**called_blocks(study), **(blocks or {})}
    if not {last, *(site.layer for site in sites)} <= own.keys():
        pool = None
    frames = []
    with evaluating(study.model):
        for part in walk(study):
            slopes = gradient_scores(study, part.batch, sites, loss)
            with torch.no_grad(), watch_outputs(study.model, own.values()) as outputs:
                for site, values in _ablations(study, part, sites, loss, pool, own, outputs, last):
                    measures = {**values, "gradient": slopes[site.name]}
                    frames.append(head_rows(part, site.layer, measures))
    return pd.concat(frames, ignore_index=True)


def gradient_scores(
    study: Study, batch: Any, sites: Sequence[Site], loss: Loss = sample_loss
) -> dict[str, Tensor]:
    """Absolute slope of each sample's loss with respect to each gate, `(batch, heads)` by site.

    Args:
        study: Model and labels.
        batch: One batch.
        sites: Layers to look at.
        loss: As in `head_importance`.
    """
    labels = labels_of(study, batch)
    device = model_device(study)
    gates = {
        site.name: torch.ones(len(labels), site.heads, device=device, requires_grad=True)
        for site in sites
    }
    with torch.enable_grad(), gate_heads(study.model, gates):
        # Samples do not meet in evaluation mode, so that one backward pass of the sum serves all.
        total = loss(study.forward(batch), labels).sum()
        found = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    return {
        name: torch.zeros_like(gate) if slope is None else slope.abs()
        for (name, gate), slope in zip(gates.items(), found, strict=True)
    }


def head_gates(sites: Sequence[Site], removed: Sequence[Head], device: Any) -> dict[str, Tensor]:
    """Gates that remove heads: zero for those, one for the others, of the sites that need them.

    Args:
        sites: Layers of the model.
        removed: Heads as (layer, head).
        device: Where the model runs.
    """
    gates = {}
    for site in sites:
        heads = [head for layer, head in removed if layer == site.layer]
        if heads:
            gates[site.name] = torch.ones(site.heads, device=device)
            gates[site.name][head_numbers(heads, site.heads)] = 0.0
    return gates


def rank_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlation over the heads between measures of importance.

    Args:
        table: What `head_importance` gives.

    Returns:
        One row and column a measure; NaN where a measure is the same for all heads.
    """
    wide = table.pivot(index=["layer", "head"], columns="measure", values="value")
    found = list(map(str, wide))
    names = sorted(found, key=lambda name: MEASURES.index(name) if name in MEASURES else 99)
    ranks = wide[names].rank()
    # pandas gives NaN for a constant column, where scipy warns.
    return ranks.corr(method="pearson").rename_axis(index="measure", columns="measure")


def ranked_heads(table: pd.DataFrame, measure: str = "loss_change") -> list[Head]:
    """Heads by rising importance, for `pruning_curve`.

    Args:
        table: What `head_importance` gives.
        measure: One of its measures.
    """
    chosen = table[table["measure"] == measure].sort_values("value", kind="stable")
    return list(zip(chosen["layer"].tolist(), chosen["head"].tolist(), strict=True))


def model_device(study: Study) -> torch.device:
    """Device of the model's first parameter."""
    first = next(study.model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _ablations(
    study: Study,
    part: Part,
    sites: Sequence[Site],
    loss: Loss,
    pool: Pool,
    blocks: Mapping[int, str],
    outputs: dict[str, Tensor],
    last_layer: int,
) -> Iterator[tuple[Site, dict[str, Tensor]]]:
    """For each site the measures of the ablations, `(batch, heads)` each."""
    labels = labels_of(study, part.batch)
    last = blocks.get(last_layer, "")

    def run(names: Iterable[str]) -> _Pass:
        logits = study.forward(part.batch)
        predicted = probabilities(logits)
        truth = true_probability(predicted, labels)
        vectors = {name: embedding(_output(outputs, name), pool, name) for name in names}
        return _Pass(loss(logits, labels), predicted, truth, vectors)

    with gate_heads(study.model, {}):
        full = run(() if pool is None else {last, *(blocks[site.layer] for site in sites)})
    for site in sites:
        own = blocks.get(site.layer, "")
        columns: dict[str, list[Tensor]] = {}
        for head in range(site.heads):
            gates = head_gates([site], [(site.layer, head)], model_device(study))
            with gate_heads(study.model, gates):
                pruned = run(() if pool is None else {own, last})
            for measure, value in _compare(full, pruned, own, last).items():
                columns.setdefault(measure, []).append(value)
        yield site, {measure: torch.stack(values, 1) for measure, values in columns.items()}


def _output(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in outputs:
        raise ConfigError(
            f"blocks: {name!r} gave no output; name another module for its layer, or pass pool=None"
        )
    return outputs[name]


def _compare(full: _Pass, pruned: _Pass, own: str, last: str) -> dict[str, Tensor]:
    found = {
        "loss_change": pruned.loss - full.loss,
        "probability_drop": full.truth - pruned.truth,
        "divergence": jensen_shannon(full.predicted, pruned.predicted),
    }
    if full.embeddings:
        for measure, name in zip(EMBEDDING, (own, last), strict=True):
            found[measure] = cosine_change(full.embeddings[name], pruned.embeddings[name])
    return found
