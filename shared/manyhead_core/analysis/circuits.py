"""Circuits: what the weights of a head say without any data.

Elhage et al., "A mathematical framework for transformer circuits", 2021: a head looks with
`W_Q W_K^T` and writes with `W_V W_O`, two `dim x dim` matrices of low rank. Biases take no part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError

Array = NDArray[np.float64]


class HeadWeights(NamedTuple):
    """Projections of the heads of one layer, acting on rows: `x @ query[a]`.

    Args:
        query: `(heads, dim, head_dim)`.
        key: `(heads, dim, head_dim)`.
        value: `(heads, dim, head_dim)`.
        output: `(heads, head_dim, dim)`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class Circuits:
    """Circuits of all heads.

    Args:
        table: One row for each layer, head and circuit (`qk`, `ov`) with the numbers of
            `describe`.
        spectra: Singular values by circuit, `(heads, head_dim)` for each layer in turn.
        overlap: CKA between all heads by circuit, `(heads, heads)` in the order of the table.
        heads: Layer and head of each row of the overlaps.
    """

    table: pd.DataFrame
    spectra: dict[str, list[Array]]
    overlap: dict[str, Array]
    heads: list[tuple[int, int]]


def circuits(model: nn.Module | Iterable[HeadWeights]) -> Circuits:
    """Spectra, copying, symmetry and overlap of the circuits of every head.

    Args:
        model: A model with plain attention layers, in module order, or the weights of any layers.

    Raises:
        ConfigError: There is no layer whose weights can be read.
    """
    layers = weights_of(model) if isinstance(model, nn.Module) else list(model)
    if not layers:
        raise ConfigError("model: no layer of plain attention in it; pass its HeadWeights instead")
    frames: list[pd.DataFrame] = []
    spectra: dict[str, list[Array]] = {"qk": [], "ov": []}
    factors: dict[str, list[Tensor]] = {"qk": [], "ov": []}
    for number, layer in enumerate(layers):
        pairs = {"qk": (layer.query, layer.key.mT), "ov": (layer.value, layer.output)}
        for kind, (left, right) in pairs.items():
            left, right = left.detach().double(), right.detach().double()
            values = spectrum(left, right)
            spectra[kind].append(values.cpu().numpy())
            factors[kind].extend(compressed(left, right))
            content = {n: v.cpu().numpy() for n, v in describe(left, right, values).items()}
            names = {"layer": number, "head": np.arange(len(left)), "circuit": kind}
            frames.append(pd.DataFrame(names | content))
    heads = [(number, a) for number, one in enumerate(layers) for a in range(len(one.query))]
    overlap = {kind: cka(found).cpu().numpy() for kind, found in factors.items()}
    return Circuits(pd.concat(frames, ignore_index=True), spectra, overlap, heads)


def weights_of(model: nn.Module) -> list[HeadWeights]:
    """Projections of every plain attention layer, in module order.

    Args:
        model: Holds `Attention` mixers. A normalisation of queries and keys is not included.
    """
    return [_of(layer) for layer in model.modules() if isinstance(layer, Attention)]


def _of(layer: Attention) -> HeadWeights:
    parts = layer.qkv.weight.detach().split(layer.widths)
    query, key, value = (part.unflatten(0, (-1, layer.head_dim)).mT for part in parts)
    groups = len(query) // len(key)
    key, value = (x.repeat_interleave(groups, 0) for x in (key, value))
    return HeadWeights(
        query, key, value, layer.proj.weight.detach().T.unflatten(0, query.shape[::2])
    )


def spectrum(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of `left @ right`, largest first, without the large product.

    Args:
        left: `(..., dim, rank)`.
        right: `(..., rank, dim)`.

    Returns:
        `(..., rank)` where the rank is at most `dim`.
    """
    return torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right.mT).R.mT)


def compressed(left: Tensor, right: Tensor) -> Tensor:
    """A narrow matrix whose rows have the same inner products as those of `left @ right`.

    Args:
        left: `(..., dim, rank)`.
        right: `(..., rank, dim)`.

    Returns:
        `(..., dim, rank)`.
    """
    return left @ torch.linalg.qr(right.mT).R.mT


def describe(left: Tensor, right: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Numbers of circuits `M = left @ right`, `(heads,)` each.

    Args:
        left: `(heads, dim, rank)`.
        right: `(heads, rank, dim)`.
        values: Singular values, `(heads, rank)`.

    Returns:
        norm (Frobenius); largest singular value; rank, the exponential of the entropy of the
        singular values; copying, `trace(M) / norm`; symmetric, the squared norm of
        `(M + M^T) / 2` over that of M. NaN where a matrix of zeros leaves them open.
    """
    inner = right @ left
    square = values.square().sum(-1)
    share = values / values.sum(-1, keepdim=True)
    trace = inner.diagonal(dim1=-2, dim2=-1).sum(-1)
    # |(M + M^T) / 2|^2 = (|M|^2 + trace(M M)) / 2, and the trace is that of the inner product.
    mixed = (inner @ inner).diagonal(dim1=-2, dim2=-1).sum(-1)
    return {
        "norm": square.sqrt(),
        "largest": values[..., 0],
        "rank": torch.special.entr(share).sum(-1).exp(),
        "copying": trace / square.sqrt(),
        "symmetric": (1 + mixed / square) / 2,
    }


def cka(matrices: Iterable[Tensor]) -> Tensor:
    """Linear CKA between matrices, `(matrices, matrices)`: 1 for equal up to rotation and scale.

    Kornblith et al., ICML 2019, equation 3 with linear kernels. The rows of a matrix, what the
    head does to each input direction, are the samples.

    Args:
        matrices: `(dim, any)` each.
    """
    centred = [matrix - matrix.mean(0) for matrix in matrices]
    rows = [torch.stack([(one.T @ other).square().sum() for other in centred]) for one in centred]
    products = torch.stack(rows)
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms)
