"""`linear`: normalised linear attention of Katharopoulos et al., ICML 2020."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manyhead_core.attention.layer import HeadOutputs
from manyhead_core.attention.linear_attend import LinearState, linear_attend, linear_weights
from manyhead_core.attention.maps import MapRequest, pick_rows, reduce_weights
from manyhead_core.attention.masks import Both, Causal, KeyPadding, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.errors import ConfigError


class LinearAttention(TokenMixer):
    """Attention with weights `phi(q) . phi(k)`, `phi = elu + 1`, at a cost linear in the tokens.

    The causal form works on chunks with prefix sums. Its state, the sums over all keys so far, is
    returned detached and taken back as `memory`.

    Args:
        dim: Model width.
        num_heads: Heads.
        qkv_bias: Whether query, key and value projections have a bias.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "linear"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "CS", "NC"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="keys",
        maps=True,
        heads=True,
        stateful=True,
    )

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.heads = HeadOutputs()
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        start_linear(self.q, self.kv, self.proj)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """Project, attend with sums, project."""
        source = x if context is None else context
        query = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(source).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        causal, padding = _parts(mask)
        valid = None
        for part in padding:
            keys = part.keys(key.shape[2])
            valid = keys if valid is None else valid & keys
        out, state = linear_attend(query, key, value, valid=valid, causal=causal, state=memory)
        weigh = partial(_maps, query, key, mask, memory)
        out = self.heads(out, weigh, head_gate=head_gate)
        weights = None if maps is None else weigh(maps)
        y = self.dropout(self.proj(out.transpose(1, 2).flatten(2)))
        return MixerOutput(y, {}, weights, LinearState(*(s.detach() for s in state)))

    def _check(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,
        maps: MapRequest | None,
    ) -> None:
        # Causality is a pattern here, not a mask: only what is left of the mask has to be keys.
        if context is None and _simple(mask):
            _, padding = _parts(mask)
            mask = padding[0] if padding else None
        super()._check(x, context, mask, grid, memory, maps)


def _simple(mask: Mask | None) -> bool:
    if isinstance(mask, Both):
        return _simple(mask.first) and _simple(mask.second)
    return mask is None or isinstance(mask, Causal | KeyPadding)


def _parts(mask: Mask | None) -> tuple[bool, list[KeyPadding]]:
    """Whether a mask is causal, and its parts about keys."""
    if isinstance(mask, Both):
        first, second = _parts(mask.first), _parts(mask.second)
        return first[0] or second[0], first[1] + second[1]
    return isinstance(mask, Causal), [mask] if isinstance(mask, KeyPadding) else []


def _maps(
    query: Tensor, key: Tensor, mask: Mask | None, memory: LinearState | None, request: MapRequest
) -> Tensor:
    shape = Shape.of(query, key)
    with torch.no_grad() if request.detach else nullcontext():
        allowed = None
        if mask is not None:
            size = (shape.batch, shape.heads, shape.queries, shape.keys)
            allowed = pick_rows(mask.dense(shape).expand(size), request)
        if request.heads is not None:
            heads = list(request.heads)
            key = key[:, heads]
            memory = None if memory is None else LinearState(*(s[:, heads] for s in memory))
        weights = linear_weights(pick_rows(query, request), key, allowed=allowed, state=memory)
        return reduce_weights(weights, request.reduce).to(request.dtype)
