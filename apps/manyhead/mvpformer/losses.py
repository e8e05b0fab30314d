"""The contrastive loss of pre-training, and how its negatives are drawn."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Negatives = Literal["any", "same_recording", "other_recordings", "mixed"]

COSINE_EPS = 1e-8
# A negative this close to the positive, relative and absolute, is no negative.
SAME_RELATIVE, SAME_ABSOLUTE = 1e-5, 1e-8
# Numbers of the negatives that are held at once.
CHUNK_NUMBERS = 2**26


class Contrast(NamedTuple):
    """What the contrastive loss gives.

    Args:
        loss: Mean cross-entropy, scalar.
        accuracy: Share of predictions closest to their own next token, scalar.
        logits: Scaled cosines with the positive and the negatives,
            `(batch * (segments - 1) * channels, 1 + negatives)`; minus infinity for a negative
            that equals the positive.
    """

    loss: Tensor
    accuracy: Tensor
    logits: Tensor


def contrastive_loss(
    prediction: Tensor, tokens: Tensor, negatives: Tensor, temperature: float = 0.1
) -> Contrast:
    """How well each next token is told from others.

    The gradient reaches the encoder through the positives, not through the negatives.

    Args:
        prediction: Of the next token of each channel, `(batch, segments, channels, dim)`.
        tokens: Outputs of the encoder, same shape.
        negatives: Flat numbers of the tokens that the token of a row is to be told from, int
            `(batch * segments * channels, count)`, as `draw_negatives` gives them.
        temperature: Divides the cosines.
    """
    batch, segments, channels, dim = tokens.shape
    # Cosines and losses stay in float32 under autocast.
    with torch.autocast(tokens.device.type, enabled=False):
        guess = prediction[:, :-1].reshape(-1, dim).float()
        positive = tokens[:, 1:].reshape(-1, dim).float()
        pool = tokens.detach().reshape(-1, dim).float()
        rows = negatives.view(batch, segments, channels, -1)[:, 1:].reshape(len(guess), -1)
        step = max(1, CHUNK_NUMBERS // max(1, rows.shape[1] * dim))
        parts = [
            _chunk(guess[i : i + step], positive[i : i + step], rows[i : i + step], pool, step)
            for i in range(0, len(guess), step)
        ]
        logits = torch.cat(parts) / temperature
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        loss = F.cross_entropy(logits, target)
        accuracy = (logits.argmax(-1) == 0).float().mean()
    return Contrast(loss, accuracy, logits)


def _chunk(guess: Tensor, positive: Tensor, rows: Tensor, pool: Tensor, step: int) -> Tensor:
    # What does not fit at once is computed once more in the backward pass instead of being kept.
    if torch.is_grad_enabled() and rows[:1].numel() * pool.shape[1] * step > CHUNK_NUMBERS // 2:
        found: Tensor = checkpoint(_cosines, guess, positive, rows, pool, use_reentrant=False)
        return found
    return _cosines(guess, positive, rows, pool)


def _cosines(guess: Tensor, positive: Tensor, rows: Tensor, pool: Tensor) -> Tensor:
    own = F.cosine_similarity(guess, positive, dim=-1, eps=COSINE_EPS)
    others = pool[rows]
    cosines = F.cosine_similarity(guess[:, None], others, dim=-1, eps=COSINE_EPS)
    with torch.no_grad():
        gap = (others - positive[:, None]).norm(dim=-1)
        least = SAME_ABSOLUTE + SAME_RELATIVE * positive.norm(dim=-1)
        same = gap < least[:, None]
    return torch.cat([own[:, None], cosines.masked_fill(same, -torch.inf)], 1)


def draw_negatives(
    shape: tuple[int, int, int],
    count: int,
    source: Negatives = "any",
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Uniform numbers of other tokens for every token of a batch, never its own.

    Published training draws from all but the last batch element and needs two of them; here all
    other tokens are equally likely, and one window is enough.

    Args:
        shape: Batch, segments and channels.
        count: Negatives of each token.
        source: `any` other token of the batch; those of the `same_recording`, that is the same
            batch element; of `other_recordings`; `mixed` takes half of each. With one batch element
            all of them are drawn from it.
        generator: Source of the draw.
        device: Where the numbers are needed.

    Returns:
        int64 `(batch * segments * channels, count)`.
    """
    batch, each = shape[0], shape[1] * shape[2]
    own = torch.arange(batch * each, device=device)[:, None]
    if source == "mixed":
        half = count // 2
        options = {"generator": generator, "device": device}
        near = draw_negatives(shape, half, "same_recording", **options)  # type: ignore[arg-type]
        far = draw_negatives(shape, count - half, "other_recordings", **options)  # type: ignore[arg-type]
        return torch.cat([near, far], 1)

    def uniform(below: int) -> Tensor:
        size = (batch * each, count)
        return torch.randint(max(1, below), size, generator=generator, device=device)

    if source == "other_recordings" and batch > 1:
        start = own // each * each
        drawn = uniform((batch - 1) * each)
        return drawn + each * (drawn >= start)
    if source == "any" and batch > 1:
        drawn = uniform(batch * each - 1)
        return drawn + (drawn >= own)
    drawn = uniform(each - 1) + own // each * each
    return drawn + (drawn >= own)


def next_token_quality(prediction: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Mean cosine of predictions with the next token and with two others, scalars.

    Args:
        prediction: Of the next token, `(batch, segments, channels, dim)`, segments 3 or more for a
            token two steps ahead.
        tokens: Outputs of the encoder, same shape.
    """
    guess = prediction[:, :-1].float()

    def cosine(other: Tensor, steps: int) -> Tensor:
        return F.cosine_similarity(guess[:, :steps], other.float(), dim=-1).mean()

    steps = guess.shape[1]
    found = {"next": cosine(tokens[:, 1:], steps)}
    if steps > 1:
        found["two_ahead"] = cosine(tokens[:, 2:], steps - 1)
    # Rolling pairs each prediction with another token of its window.
    shift = max(1, steps // 2)
    found["other"] = cosine(tokens[:, 1:].roll(shift, 1), steps)
    return found
