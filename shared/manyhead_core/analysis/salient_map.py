"""Salient-relevance maps: which regions of a relevance map stand out from all the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.errors import ConfigError

PATCH = 7
SCALES = (1.0, 0.8, 0.5, 0.3)
NEAREST = 64
FOCUS = 0.8
# Weight of the distance in space against that in value.
SPREAD = 3.0
_ROWS = 1024


def salient_relevance(
    relevance: Tensor,
    *,
    side: int | None = 64,
    patch: int = PATCH,
    scales: Sequence[float] = SCALES,
    nearest: int = NEAREST,
    focus: float = FOCUS,
) -> Tensor:
    """How much each place of a relevance map stands out, near 1 for the foci and 0 far from them.

    Context-aware saliency (Goferman et al., CVPR 2010) of the positive relevance, scaled to 0..1.
    For patches p and q of one scale, with the Euclidean distance of their values and that of their
    places in units of the map's larger side,

        d(p, q) = d_value / (1 + 3 d_place);  S(p) = 1 - exp(-mean of the 64 smallest d)

    is averaged over the scales. Places with S above 0.8 are foci, and S is multiplied by one less
    the distance to the nearest focus; a map without focus stays as it is. A patch is not compared
    with itself.

    Args:
        relevance: `(batch, height, width)`, summed over channels.
        side: Larger maps are reduced to this many pixels on their larger side, because all pairs
            of patches are compared; None keeps the size.
        patch: Side of a patch in pixels, odd.
        scales: Factors of the size at which patches are compared.
        nearest: How many of the smallest distances count.
        focus: Threshold of the foci.

    Returns:
        `(batch, height, width)`, in the size of the input.

    Raises:
        ConfigError: The patch has an even side.
    """
    if patch % 2 == 0:
        raise ConfigError(f"patch: {patch} is even; give it an odd side")
    size = relevance.shape[-2:]
    positive = relevance.detach().clamp(min=0).to(torch.promote_types(relevance.dtype, torch.float))
    factor = 1.0 if side is None else min(1.0, side / max(size))
    image = _resized(positive, factor)
    image = image / image.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(image.dtype).tiny)
    found = [
        _fit(distinctness(_resized(image, scale), patch, nearest), image.shape[-2:])
        for scale in scales
    ]
    return _fit(near_foci(torch.stack(found).mean(0), focus), size)


def distinctness(image: Tensor, patch: int = PATCH, nearest: int = NEAREST) -> Tensor:
    """`S(p)` of every place on one scale, `(batch, height, width)`.

    Args:
        image: Values of 0..1, `(batch, height, width)`; beyond the edge they are repeated.
        patch: Side of a patch, odd.
        nearest: How many of the smallest distances count.
    """
    height, width = image.shape[-2:]
    edge = patch // 2
    padded = F.pad(image[:, None], (edge, edge, edge, edge), mode="replicate")
    patches = F.unfold(padded, patch).transpose(1, 2)
    places = _places(height, width, image)
    count = min(nearest, height * width - 1)
    if count < 1:
        return torch.zeros_like(image)
    parts = [
        _mean_distance(patches, places, slice(start, start + _ROWS), count)
        for start in range(0, height * width, _ROWS)
    ]
    return (1 - torch.exp(-torch.cat(parts, 1))).view_as(image)


def near_foci(salience: Tensor, focus: float = FOCUS) -> Tensor:
    """Salience times one less the distance to the nearest focus, `(batch, height, width)`.

    Args:
        salience: `(batch, height, width)`.
        focus: Places above it are foci.
    """
    height, width = salience.shape[-2:]
    places = _places(height, width, salience)
    rows = []
    for one in salience:
        chosen = places[(one > focus).flatten()]
        if len(chosen) == 0:
            rows.append(one)
            continue
        distance = torch.cdist(places, chosen).amin(1).view_as(one)
        rows.append(one * (1 - distance.clamp(max=1)))
    return torch.stack(rows)


def _mean_distance(patches: Tensor, places: Tensor, rows: slice, count: int) -> Tensor:
    # The fast form loses the last digits of small distances, which are the ones that count.
    exact = "donot_use_mm_for_euclid_dist"
    value = torch.cdist(patches[:, rows], patches, compute_mode=exact)
    apart = torch.cdist(places[rows], places, compute_mode=exact)
    distance = value / (1 + SPREAD * apart)
    own = torch.arange(len(places), device=places.device)
    distance = distance.masked_fill(own[rows, None] == own, float("inf"))
    return distance.topk(count, -1, largest=False).values.mean(-1)


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """Coordinates of all pixels in units of the larger side, `(pixels, 2)`."""
    sides = [torch.arange(length, device=like.device) for length in (height, width)]
    return torch.cartesian_prod(*sides).to(like.dtype) / max(height, width)


def _resized(image: Tensor, factor: float) -> Tensor:
    size = [max(1, round(length * factor)) for length in image.shape[-2:]]
    return _fit(image, size)


def _fit(image: Tensor, size: Sequence[int]) -> Tensor:
    if list(image.shape[-2:]) == list(size):
        return image
    smaller = image.shape[-1] > size[1]
    return F.interpolate(
        image[:, None], list(size), mode="bilinear", align_corners=False, antialias=smaller
    )[:, 0]
