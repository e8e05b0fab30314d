"""Attention and class evidence of the patches of a slide, and the maps that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from manyhead.acmil.bag_output import MILOutput, attention_weights, one_bag
from manyhead.acmil.explain.evidence import EXACT, Shares, pooling_of, shares_of
from manyhead.acmil.model import ACMILConfig
from manyhead_core.errors import ConfigError

Floats = npt.NDArray[np.float64]
Kind = Literal["attention", "evidence"]


@dataclass(frozen=True)
class SlideScores:
    """What a network found in the patches of a slide.

    Args:
        weights: Attention, which sums to one over the patches, `(patches, branches, heads)`.
        evidence: What each patch adds to each logit, `(patches, outputs)`, or None.
        constant: What no patch adds, `(outputs,)`; with the evidence it gives `logits`.
        logits: Of the slide, `(outputs,)`; of several classes less their mean, which the
            softmax does not see.
        raw_logits: As the network gives them, `(outputs,)`.
        names: Of the outputs.
        slide_vector: Pooled patches, `(dim,)`, or None.
        branch_vectors: Of the branches, `(branches, dim)`, or None.
        how: In words, how far the evidence can be trusted.
    """

    weights: Floats
    evidence: Floats | None
    constant: Floats
    logits: Floats
    raw_logits: Tensor
    names: tuple[str, ...]
    slide_vector: Floats | None
    branch_vectors: Floats | None
    how: str = EXACT

    @property
    def mean(self) -> Floats:
        """Attention averaged over branches and heads, `(patches,)`; it sums to one."""
        return np.asarray(self.branches.mean(1))

    @property
    def branches(self) -> Floats:
        """Attention of each branch, averaged over its heads, `(patches, branches)`."""
        return np.asarray(self.weights.mean(2))

    @property
    def heads(self) -> Floats:
        """Attention of each head, averaged over the branches, `(patches, heads)`."""
        return np.asarray(self.weights.mean(1))

    def maps(self) -> list[str]:
        """Names of the maps that say something of their own, but for the single heads."""
        branches = self.weights.shape[1]
        found = ["mean"] + [f"branch:{k}" for k in range(branches) if branches > 1]
        classes = [] if self.evidence is None else [f"class:{name}" for name in self.names]
        return found + classes

    def map(self, name: str) -> tuple[Floats, Kind]:
        """Values of a map, `(patches,)`, and what they are.

        Args:
            name: `mean`, `branch:K`, `head:K`, or `class:NAME`.

        Raises:
            ConfigError: The network has no such map.
        """
        kind, _, key = name.partition(":")
        if kind == "mean" and not key:
            return self.mean, "attention"
        if kind in ("branch", "head"):
            columns = self.branches if kind == "branch" else self.heads
            if key.isdigit() and int(key) < columns.shape[1]:
                return columns[:, int(key)], "attention"
            plural = "branches" if kind == "branch" else "heads"
            raise ConfigError(
                f"map: there is no {name}; the network has {columns.shape[1]} {plural}, from 0"
            )
        if kind == "class":
            return self._class(key), "evidence"
        raise ConfigError(f"map: {name!r} is unknown; use mean, branch:K, head:K or class:NAME")

    def _class(self, name: str) -> Floats:
        if self.evidence is None:
            raise ConfigError("map: this network gives no class maps; use --map mean")
        if name not in self.names:
            raise ConfigError(f"map: there is no class {name!r}; known: {', '.join(self.names)}")
        return np.asarray(self.evidence[:, self.names.index(name)])


class Explainer:
    """A network that says why.

    Args:
        net: Any network over bags with attention, or mean pooling; it is put into evaluation mode,
            because training masks the patches that matter most.
        class_names: Of the classes, in order.

    Raises:
        ConfigError: The network has no map to show.
    """

    def __init__(self, net: nn.Module, class_names: Sequence[str]) -> None:
        self.net = net.eval()
        config: Any = net.config
        self.config: ACMILConfig = config
        self.names = output_names(self.config, class_names)
        self.pooling = pooling_of(net)

    def __call__(self, features: Tensor) -> SlideScores:
        """Scores of the patches of one slide.

        Args:
            features: `(patches, feature_dim)`, at least one.
        """
        # Somebody may have trained on in between.
        self.net.eval()
        with torch.no_grad():
            output: MILOutput = self.net(features, one_bag(features))
        weights = self._weights(output, features)
        shares = None
        if self.pooling is not None:
            shares = shares_of(self.pooling, features, weights.flatten(1))
        return self._scores(output, weights, shares)

    def _weights(self, output: MILOutput, features: Tensor) -> Tensor:
        if output.attention is not None:
            return attention_weights(output.attention, cu_seqlens=one_bag(features))
        if self.pooling is None:
            kind = type(self.net).__name__
            raise ConfigError(f"weights: {kind} has no attention over the patches to show")
        return torch.full((len(features), 1, 1), 1 / len(features), device=features.device)

    def _scores(self, output: MILOutput, weights: Tensor, shares: Shares | None) -> SlideScores:
        parts: list[Tensor] = [output.logits[0]]
        if shares is not None:
            parts = [shares.logits, shares.constant, shares.patches]
        parts = [part.double() for part in parts]
        if self.config.target == "classes":
            parts = [part - part.mean(-1, keepdim=True) for part in parts]
        vector = output.features
        return SlideScores(
            weights=_array(weights),
            evidence=None if shares is None else _array(parts[2]),
            constant=np.zeros(0) if shares is None else _array(parts[1]),
            logits=_array(parts[0]),
            raw_logits=output.logits[0].float().cpu(),
            names=self.names,
            slide_vector=None if vector is None else _array(vector[0]),
            branch_vectors=None if shares is None else _array(shares.branches),
            how="" if self.pooling is None else self.pooling.how,
        )


def output_names(config: ACMILConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """What the outputs of a network are called.

    Args:
        config: Sizes and target.
        class_names: Of the classes; empty names them by number.
    """
    if config.target in ("regression", "survival"):
        return ("score",)
    names = tuple(class_names) or tuple(str(k) for k in range(config.num_classes))
    return names if config.target == "classes" else tuple(f"above {name}" for name in names[:-1])


def percentiles(values: npt.NDArray[Any]) -> Floats:
    """Rank of each patch among all of its slide, in (0, 1]; equal values share their mean rank."""
    return np.asarray(rankdata(values, "average") / max(1, len(values)), np.float64)


def _array(tensor: Tensor) -> Floats:
    return tensor.detach().double().cpu().numpy()
