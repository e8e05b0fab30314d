"""Where the newest segment of a window looked: attention over time, channels and their distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.tracks import Readable
from manyhead.mvpformer.windows import Windows
from manyhead_core.attention.capture import attention_sites, capture
from manyhead_core.attention.maps import MapRequest
from manyhead_core.errors import WeightsError

Array = npt.NDArray[np.float64]
Method = Literal["attention", "rollout"]


@dataclass(frozen=True)
class WindowAttention:
    """Attention of the newest segment of a window, the mean over its channels and over heads.

    Args:
        layers: Of each layer, `(layers, segments, channels)`; every layer sums to one.
        rollout: Through all layers, `(segments, channels)`, or None if nobody asked.
        distance: Of each layer by the distance between two channels in the list, 1 where channels
            get equal shares, `(layers, channels)`.
        probability: Of a seizure; NaN for a network without classes.
    """

    layers: Array
    rollout: Array | None
    distance: Array
    probability: float

    @property
    def shown(self) -> Array:
        """Rollout where there is one, else the mean over the layers, `(segments, channels)`."""
        return self.layers.mean(0) if self.rollout is None else self.rollout


def sites_of(net: torch.nn.Module) -> list[str]:
    """Attention layers, from the first to the last.

    Raises:
        WeightsError: The network has none.
    """
    names = list(attention_sites(net))
    if not names:
        raise WeightsError(
            f"weights: {type(net).__name__} has no attention to explain; use those of mvpformer"
        )
    return names


def window_attention(
    stream: Stream, recording: Readable, windows: Windows, method: Method = "attention"
) -> list[WindowAttention]:
    """Attention in some windows; memory for the rows of one segment at a time, unless rolled out.

    Args:
        stream: Network, and the orders of the channels to average over.
        recording: The prepared recording.
        windows: In the order of time.
        method: `rollout` multiplies the maps of all layers, each averaged with the residual
            connection; it holds all pairs of tokens of a layer.

    Raises:
        WeightsError: The network has no attention.
    """
    names = sites_of(stream.net)
    found: list[list[WindowAttention]] = [[] for _ in range(len(windows))]
    for shown in stream.show(recording, windows):
        for number, tokens in zip(shown.number.tolist(), shown.tokens, strict=True):
            one = _attention(stream.net, names, tokens[None], shown.order, method)
            found[number].append(one)
    return [_mean(parts) for parts in found]


@torch.inference_mode()
def _attention(
    net: Any, names: list[str], tokens: Tensor, order: Tensor | None, method: Method
) -> WindowAttention:
    _, segments, channels = tokens.shape[:3]
    total = segments * channels
    newest = torch.arange(total - channels, total, device=tokens.device)
    with capture(net, names, MapRequest(queries=newest, reduce="head_mean")) as captured:
        output = net(tokens=tokens)
    maps = torch.stack([captured.maps[name][0][0].double() for name in names])
    grids = maps.view(len(names), channels, segments, channels)
    rolled = None
    if method == "rollout":
        rolled = _placed(_rollout(net, names, tokens).view(1, channels, segments, -1), order)[0]
    probability = float("nan")
    if output.logits is not None:
        probability = float(output.logits[0].double().softmax(-1)[1])
    return WindowAttention(_placed(grids, order), rolled, _by_distance(grids), probability)


def _placed(grids: Tensor, order: Tensor | None) -> Array:
    """Mean over the queries, channels in the order of the recording, `(layers, T, C)`."""
    mean = grids.mean(1)
    found: Array = (mean if order is None else mean[..., order]).cpu().numpy()
    return found


def _rollout(net: Any, names: list[str], tokens: Tensor) -> Tensor:
    """Share of each token in those of the newest segment, `(channels, tokens)`."""
    channels = tokens.shape[2]
    total = tokens.shape[1] * channels
    reached = torch.eye(total, dtype=torch.float64, device=tokens.device)[-channels:]
    # The last layer first, one at a time: all pairs of tokens of a layer fill the memory.
    for name in reversed(names):
        with capture(net, [name], MapRequest(reduce="head_mean")) as captured:
            net(tokens=tokens)
        reached = (reached + reached @ captured.maps[name][0][0].double()) / 2
    return reached


def _by_distance(grids: Tensor) -> Array:
    """Mean share of a pair of channels by distance, times the channels, `(layers, C)`."""
    pairs = grids.sum(2)
    channel = torch.arange(pairs.shape[-1], device=pairs.device)
    apart = (channel[:, None] - channel).abs()
    shares = [pairs[:, apart == d].mean(-1) for d in range(len(channel))]
    found: Array = (torch.stack(shares, -1) * len(channel)).cpu().numpy()
    return found


def _mean(parts: list[WindowAttention]) -> WindowAttention:
    """Over the orders of the channels."""
    rolled = [part.rollout for part in parts if part.rollout is not None]
    return WindowAttention(
        np.mean([part.layers for part in parts], 0),
        np.mean(rolled, 0) if rolled else None,
        np.mean([part.distance for part in parts], 0),
        float(np.mean([part.probability for part in parts])),
    )
