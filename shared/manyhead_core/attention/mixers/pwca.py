"""`pwca`: pair-wise cross-attention for training, of Zhu et al., CVPR 2022, arXiv 2205.02151."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from manyhead_core.attention.masks import Dense, Mask, Shape
from manyhead_core.attention.mixer import MixerOutput
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class PairwiseCrossAttention(nn.Module):
    """A training branch in which each sample also attends to the tokens of another sample.

    The queries of a sample meet its own keys and values and, under the same softmax, those of its
    pair. The foreign tokens are noise that the layer has to ignore, which regularises it. All
    weights are those of an ordinary self-attention layer, given with each call, so that they are
    stored once; in evaluation the branch is that layer and no pair is looked at. It owns
    no weights, so it is no mixer of the registry.
    """

    def forward(
        self,
        layer: Attention,
        x: Tensor,
        pair: Tensor | None = None,
        *,
        mask: Mask | None = None,
        pair_mask: Mask | None = None,
    ) -> MixerOutput:
        """Attend to the sample and, in training, to its pair.

        Args:
            layer: The self-attention layer whose weights are used.
            x: Tokens, `(batch, tokens, dim)`.
            pair: Tokens of the other samples, `(batch, pair_tokens, dim)`; None takes a random
                other sample of the batch for each, with its mask. `x[order]` is one, too.
            mask: Which pairs of tokens of `x` may attend.
            pair_mask: Which tokens of `pair` the tokens of `x` may attend to.

        Raises:
            ConfigError: There is a `pair_mask` without a `pair`, or the layer has a bias.
        """
        if layer.bias is not None:
            raise ConfigError("layer: its bias is for its own tokens; build it with bias=None")
        if pair is None and pair_mask is not None:
            raise ConfigError("pair_mask: has no pair; pass both or neither")
        if not self.training:
            return layer(x, mask=mask)
        query, key, value = layer.project(x, x)
        own = _allowed(mask, query, key)
        if pair is None:
            order = pair_order(x.shape[0], x.device)
            other_key, other_value = key[order], value[order]
            other = None if own is None else _seen(own, x.shape[0], key.shape[2])[order]
        else:
            _, other_key, other_value = layer.project(pair, pair)
            other = _allowed(pair_mask, query, other_key)
        joined = _join(own, other, query, key, other_key)
        keys, values = torch.cat([key, other_key], 2), torch.cat([value, other_value], 2)
        found = layer.attend(query, keys, values, mask=joined)
        out, aux = layer.between(found.out, x, None, query=query, mask=mask)
        y = layer.proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(layer.dropout(y), aux)


class UncertaintyWeights(nn.Module):
    """Sum of losses with learned weights, `1/2 sum(exp(-w) loss + w)`, all `w` starting at zero.

    `w` is the logarithm of the variance of a task (Kendall, Gal & Cipolla, CVPR 2018). It needs
    no weight decay.

    Args:
        names: Names of the losses.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"names: need one or more different losses, got {list(names)}")
        self.names = tuple(names)
        self.log_variances = nn.Parameter(torch.zeros(len(names)))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the losses that are given; those of branches left out do not count.

        Raises:
            ConfigError: A loss is unknown, or there is none.
        """
        unknown = [name for name in losses if name not in self.names]
        if unknown or not losses:
            raise ConfigError(f"losses: got {list(losses)}, known are {list(self.names)}")
        terms = [
            losses[name] * (-weight).exp() + weight
            for name, weight in zip(self.names, self.log_variances, strict=True)
            if name in losses
        ]
        return 0.5 * torch.stack(terms).sum()


def pair_order(batch: int, device: torch.device | str = "cpu") -> Tensor:
    """Index `(batch,)` of a random other sample for each; every sample is taken once.

    A batch of one is its own pair.
    """
    circle = torch.randperm(batch, device=device)
    return torch.empty_like(circle).scatter(0, circle, circle.roll(1))


def _allowed(mask: Mask | None, query: Tensor, key: Tensor) -> Tensor | None:
    if mask is None:
        return None
    allowed = mask.dense(Shape.of(query, key))
    return allowed[(None,) * (4 - allowed.dim())]


def _seen(allowed: Tensor, batch: int, keys: int) -> Tensor:
    """Tokens that some token of their own sample sees, `(batch, 1, 1, keys)`."""
    seen = allowed.any(2, keepdim=True).any(1, keepdim=True)
    return seen.expand(batch, 1, 1, keys)


def _join(
    own: Tensor | None, other: Tensor | None, query: Tensor, key: Tensor, other_key: Tensor
) -> Dense | None:
    """Mask of the keys of both samples; a query that sees no own key sees no foreign one."""
    if own is None and other is None:
        return None
    batch, _, queries, _ = query.shape
    full = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=query.device)
    own = full if own is None else own
    other = full if other is None else other
    heads = max(own.shape[1], other.shape[1])
    own = own.expand(batch, heads, queries, key.shape[2])
    other = other.expand(batch, heads, queries, other_key.shape[2])
    return Dense(torch.cat([own, other & own.any(-1, keepdim=True)], -1))
