"""Saliency of inputs: input times gradient, integrated gradients, occlusion with random masks.

All take `forward` from inputs to logits and float inputs `(batch, ...)`. For inputs that are no
numbers, such as ids, pass their embeddings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.analysis.relevance import chosen_logit
from manyhead_core.errors import ConfigError

Forward = Callable[[Tensor], Tensor]
# Inputs and tokens to keep, boolean `(batch, tokens)` -> inputs without the other tokens.
Replace = Callable[[Tensor, Tensor], Tensor]

STEPS = 32
MASKS = 256


def input_gradient(forward: Forward, inputs: Tensor, target: Tensor | None = None) -> Tensor:
    """Input times the gradient of the chosen logit, in the shape of `inputs`.

    Args:
        forward: From inputs to logits, `(batch,)` or `(batch, classes)`.
        inputs: `(batch, ...)`.
        target: Class of each sample, `(batch,)`; None takes the predicted one.
    """
    return inputs.detach() * _gradient(forward, inputs, target)


def integrated_gradients(
    forward: Forward,
    inputs: Tensor,
    target: Tensor | None = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = STEPS,
) -> Tensor:
    """Gradients along the line from a baseline, averaged, times the way from the baseline.

    Sundararajan et al., ICML 2017, equation 3, with the midpoint rule: entries sum to the
    difference of the logits up to the error of the steps.

    Args:
        forward: From inputs to logits, `(batch,)` or `(batch, classes)`.
        inputs: `(batch, ...)`.
        target: Class of each sample, `(batch,)`; None takes the one predicted for `inputs`.
        baseline: Where the line starts, a number or broadcastable to `inputs`.
        steps: Points on the line.

    Raises:
        ConfigError: No steps.
    """
    if steps < 1:
        raise ConfigError(f"steps: {steps} is no number of points; take 1 or more")
    target = _fixed(forward, inputs, target)
    start = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device)
    way = inputs.detach() - start
    total = torch.zeros_like(inputs)
    for step in range(steps):
        total += _gradient(forward, start + way * ((step + 0.5) / steps), target)
    return way * total / steps


def occlusion(
    forward: Forward,
    inputs: Tensor,
    replace: Replace,
    num_tokens: int,
    target: Tensor | None = None,
    *,
    masks: int = MASKS,
    keep: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """Mean logit with a token less that without it, over random masks, `(batch, tokens)`.

    Masks keep each token with probability `keep`, the same masks for all samples. After Petsiuk et
    al., BMVC 2018, with the contrast of both means instead of the first only, which takes out the
    common level. A token that was kept always or never is undefined (NaN).

    Args:
        forward: From inputs to logits, `(batch,)` or `(batch, classes)`.
        inputs: `(batch, ...)`.
        replace: Takes the inputs and the kept tokens, boolean `(batch, tokens)`; gives the inputs
            without the others, such as `blank_tokens` or `blank_patches`.
        num_tokens: Tokens.
        target: Class of each sample, `(batch,)`; None takes the one predicted for `inputs`.
        masks: Number of masks.
        keep: Probability of keeping a token.
        seed: Seed of the masks.
    """
    target = _fixed(forward, inputs, target)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(masks, num_tokens, generator=generator) < keep
    kept = kept.to(inputs.device)
    scores = []
    with torch.no_grad():
        for mask in kept:
            rows = mask.expand(inputs.shape[0], -1)
            scores.append(chosen_logit(forward(replace(inputs, rows)), target))
    score, weight = torch.stack(scores, 1).double(), kept.double()
    present = score @ weight / weight.sum(0)
    absent = score @ (1 - weight) / (1 - weight).sum(0)
    return (present - absent).to(inputs.dtype)


def blank_tokens(inputs: Tensor, kept: Tensor, value: float = 0.0) -> Tensor:
    """Sequences `(batch, tokens, ...)` with the other tokens set to a value.

    Args:
        inputs: `(batch, tokens, ...)`.
        kept: Boolean `(batch, tokens)`.
        value: What stands for nothing.
    """
    mask = kept.view(*kept.shape, *[1] * (inputs.dim() - 2))
    return torch.where(mask, inputs, torch.full_like(inputs, value))


def blank_patches(grid: tuple[int, int], value: float = 0.0) -> Replace:
    """A `Replace` for images `(batch, channels, height, width)` cut into a grid of patches.

    Args:
        grid: Patches down and across.
        value: What stands for nothing.
    """

    def replace(inputs: Tensor, kept: Tensor) -> Tensor:
        mask = kept.unflatten(1, grid)[:, None].to(inputs.dtype)
        whole = F.interpolate(mask, inputs.shape[-2:], mode="nearest") > 0.5
        return torch.where(whole, inputs, torch.full_like(inputs, value))

    return replace


def to_tokens(saliency: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Saliency pooled to tokens by sum of magnitudes, `(batch, tokens)`.

    The signed sum over the features or channels of one place comes first, so that what cancels
    within a token's features counts as nothing.

    Args:
        saliency: `(batch, tokens, dim)` or `(batch, tokens)`; with a grid
            `(batch, channels, height, width)`.
        grid: Patches down and across an image; it divides height and width.

    Raises:
        ConfigError: The grid does not divide the image.
    """
    if grid is None:
        return (saliency.flatten(2).sum(2) if saliency.dim() > 2 else saliency).abs()
    height, width = saliency.shape[-2:]
    if height % grid[0] or width % grid[1]:
        raise ConfigError(f"grid: {grid} does not divide an image of {height} x {width}")
    places = saliency.sum(1).abs()
    patches = places.unflatten(1, (grid[0], -1)).unflatten(3, (grid[1], -1))
    return patches.sum((2, 4)).flatten(1)


def _gradient(forward: Forward, inputs: Tensor, target: Tensor | None) -> Tensor:
    start = inputs.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logit = chosen_logit(forward(start), target)
        return torch.autograd.grad(logit.sum(), start)[0]


def _fixed(forward: Forward, inputs: Tensor, target: Tensor | None) -> Tensor | None:
    """The class that stays the same however the inputs change."""
    if target is not None:
        return target
    with torch.no_grad():
        logits = forward(inputs)
    return None if logits.dim() == 1 else logits.argmax(-1)
