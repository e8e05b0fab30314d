"""Probabilities, losses, divergences and embeddings of a forward pass, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.errors import ConfigError

# From logits and labels to a loss for each sample, `(batch,)`.
Loss = Callable[[Tensor, Tensor], Tensor]
Pool = int | str | Callable[[Tensor], Tensor] | None


def probabilities(logits: Tensor) -> Tensor:
    """Predictive distribution, `(batch, classes, ...)` in float64.

    Args:
        logits: `(batch,)` or `(batch, 1)` for two classes, `(batch, classes)`, or
            `(batch, classes, ...)` with one prediction for each place.
    """
    wide = _squeezed(logits).double()
    if wide.dim() == 1:
        return torch.stack([torch.sigmoid(-wide), torch.sigmoid(wide)], 1)
    return wide.softmax(1)


def sample_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in nats, mean over the places of each sample, `(batch,)`.

    Args:
        logits: As in `probabilities`.
        labels: Class numbers, `(batch,)` or `(batch, ...)`.
    """
    logits, labels = _squeezed(logits), labels.to(logits.device)
    if logits.dim() == 1:
        truth = labels.reshape(logits.shape).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return _mean(F.cross_entropy(logits, labels.long(), reduction="none"))


def true_probability(predicted: Tensor, labels: Tensor) -> Tensor:
    """Probability of the true class, mean over the places of each sample, `(batch,)`.

    Args:
        predicted: `(batch, classes, ...)`.
        labels: Class numbers, `(batch,)` or `(batch, ...)`.
    """
    index = labels.to(predicted.device).long().reshape(-1, 1, *predicted.shape[2:])
    return _mean(predicted.gather(1, index)[:, 0])


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, between 0 and ln 2, `(batch,)`.

    Args:
        first: Distributions, `(batch, classes, ...)`.
        second: The same of the other model.
    """
    middle = (first + second) / 2
    entropy = torch.special.entr
    parts = entropy(middle) - (entropy(first) + entropy(second)) / 2
    # Rounding can leave a tiny negative number.
    return _mean(parts.sum(1).clamp_min(0.0))


def cosine_change(before: Tensor, after: Tensor) -> Tensor:
    """`1 - cosine` of two embeddings, `(batch,)`; 0 where they are equal.

    Args:
        before: `(batch, dim)`.
        after: Same shape.
    """
    before, after = before.double(), after.double()
    change = 1 - F.cosine_similarity(before, after, dim=1)
    return change.clamp_min(0.0).masked_fill((before == after).all(1), 0.0)


@contextmanager
def watch_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The last output of each named module."""
    seen: dict[str, Tensor] = {}
    modules = {n.replace("_orig_mod.", ""): m for n, m in model.named_modules()}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            found = first_tensor(output)
            if found is not None:
                seen[name] = found

        return hook

    hooks = [modules[name].register_forward_hook(watch(name)) for name in set(names)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first tensor of a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else output
    if isinstance(output, tuple | list | dict):
        return next((part for part in parts if isinstance(part, Tensor)), None)
    return None


def embedding(output: Tensor, pool: Pool, name: str) -> Tensor:
    """One vector a sample from the output of a layer, `(batch, dim)`.

    Args:
        output: `(batch, tokens, dim)` or `(batch, dim)`; any shape for a function.
        pool: `mean` over tokens, the number of the class token, or a function to `(batch, dim)`.
        name: Of the layer, for the message.

    Raises:
        ConfigError: The output has another shape.
    """
    if callable(pool):
        return pool(output)
    if output.dim() == 2:
        return output
    if output.dim() != 3:
        raise ConfigError(
            f"pool: {name} gives {tuple(output.shape)}, not (batch, tokens, dim); pass a function "
            "to (batch, dim), or None to leave the embeddings out"
        )
    return output[:, pool] if isinstance(pool, int) else output.mean(1)


def _squeezed(logits: Tensor) -> Tensor:
    return logits[:, 0] if logits.dim() == 2 and logits.shape[1] == 1 else logits


def _mean(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(1)
