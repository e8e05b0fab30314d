"""What each patch adds to the logits of its slide.

Behind the attention every network here is pooling: a weighted sum of patch vectors, and a function
of that sum. Where the function is linear, as after gated attention, a logit splits into one share
per patch without a rest: `logit_c = constant_c + sum_n p_n (X_n . w_c)`.

Multi-head attention has a layer norm behind the sum. It is taken as linear by holding its standard
deviation at the value of the slide, as Ali et al. 2022 (arXiv:2202.07304) do; a share is then the
gradient of the logit times the patch's part of the sum. The shares and the constant still give the
logit exactly, but a share says what the patch did at this deviation, not what would happen without
the patch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyhead.acmil.baselines.attention_pooling import AttentionPooling
from manyhead.acmil.baselines.clam import CLAM
from manyhead.acmil.baselines.dsmil import DSMIL
from manyhead.acmil.baselines.pooling import MeanPooling
from manyhead.acmil.model import ACMIL, CHUNK, GatedAttention, LatentAttention
from manyhead.acmil.streaming import weighted_sums

EXACT = "exact: a logit is a constant plus the sum over the patches"
FROZEN = (
    "gradient times input, with the deviation of the layer norm held constant: the shares and a "
    "constant still sum to the logit"
)


@dataclass(frozen=True)
class Pooling:
    """A network as a weighted sum of patch vectors and what comes after it.

    Args:
        embed: Features to patch vectors, `(patches, feature_dim)` to `(patches, dim)`.
        branches: Sums, `(1, rows, dim)`, to vectors of the branches, `(branches, dim)`.
        logits: Sums to the logits, `(outputs,)`, affine in the sums.
        how: In words, how far the shares can be trusted.
    """

    embed: Callable[[Tensor], Tensor]
    branches: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    how: str = EXACT


@dataclass(frozen=True)
class Shares:
    """Logits of a slide split over its patches.

    Args:
        patches: `(patches, outputs)`.
        constant: What no patch is the reason of, `(outputs,)`.
        logits: Of the slide, `(outputs,)`.
        branches: Vectors of the branches, `(branches, dim)`.
    """

    patches: Tensor
    constant: Tensor
    logits: Tensor
    branches: Tensor


def pooling_of(net: nn.Module) -> Pooling | None:
    """How a network pools, or None for one whose prediction is no weighted sum of patches."""
    if isinstance(net, ACMIL):
        return _latent_or_gated(net.reduction, net.attention, net.slide_head)
    if isinstance(net, AttentionPooling):
        return _latent_or_gated(net.reduction, net.attention, net.head)
    if isinstance(net, CLAM) and not net.softmax_plus_one:
        return _clam(net)
    if isinstance(net, DSMIL):
        how = f"{EXACT}; of the bag's stream, not of the highest patch's"
        return Pooling(lambda x: x.float(), _rows, lambda sums: net.head(sums)[0, :, 0], how)
    if isinstance(net, MeanPooling):
        hidden, head = net.classifier[:3], net.classifier[3]
        return Pooling(lambda x: hidden(x.float()), _rows, lambda sums: head(sums[:, 0])[0])
    return None


def shares_of(pooling: Pooling, features: Tensor, weights: Tensor) -> Shares:
    """Split the logits of one slide; memory does not grow with its patches, but for the result.

    Args:
        pooling: The network.
        features: `(patches, feature_dim)`.
        weights: Of the patches in each sum, `(patches, rows)`.
    """
    bounds = torch.tensor([0, len(features)], device=features.device)
    with torch.no_grad():
        sums = weighted_sums(pooling.embed, features, weights, bounds, CHUNK)
        branches = pooling.branches(sums)
    with torch.enable_grad():
        sums = sums.detach().requires_grad_()
        logits = pooling.logits(sums)
        slopes = [torch.autograd.grad(x, sums, retain_graph=True)[0][0] for x in logits]
    slope = torch.stack(slopes)  # (outputs, rows, dim)
    with torch.no_grad():
        parts = [
            torch.einsum(
                "nd,ord,nr->no", pooling.embed(features[at : at + CHUNK]), slope,
                weights[at : at + CHUNK],
            )
            for at in range(0, len(features), CHUNK)
        ]  # fmt: skip
        constant = logits - (slope * sums).sum((1, 2))
    return Shares(torch.cat(parts), constant.detach(), logits.detach(), branches)


def _latent_or_gated(
    reduction: nn.Module, attention: GatedAttention | LatentAttention, head: nn.Module
) -> Pooling:
    linear = _with_constant_deviation(attention) if isinstance(attention, LatentAttention) else None
    return Pooling(
        reduction,
        lambda sums: attention.pooled(sums)[0][0],
        lambda sums: head((linear or attention).pooled(sums)[1])[0],
        EXACT if linear is None else FROZEN,
    )


def _clam(net: CLAM) -> Pooling:
    def logits(sums: Tensor) -> Tensor:
        found: Tensor = (sums[0] * net.head.weight).sum(-1) + net.head.bias
        return found

    single: Callable[[Tensor], Tensor] = lambda sums: net.head(sums[:, 0])[0]  # noqa: E731
    return Pooling(
        lambda x: net.reduction(x.float()).relu(), _rows, single if net.maps == 1 else logits
    )


def _rows(sums: Tensor) -> Tensor:
    return sums[0]


class ConstantDeviation(nn.Module):
    """A layer norm that is linear around its input: no gradient runs through the deviation.

    Args:
        norm: The layer norm.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` to the same numbers as the layer norm gives."""
        variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
        scale = (variance + self.norm.eps).rsqrt().detach()
        return (x - mean) * scale * self.norm.weight + self.norm.bias


def _with_constant_deviation(attention: LatentAttention) -> LatentAttention:
    found = copy.deepcopy(attention).eval()
    for parent in list(found.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, ConstantDeviation(child))
    return found
