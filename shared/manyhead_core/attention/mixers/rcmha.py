"""`rcmha`: relative and convolutional attention with memory, arXiv 2308.03429."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError

# Queries whose relative scores are held at once: they need heads x queries x keys numbers.
CHUNK_QUERIES = 2048


class HeadProjection(nn.Module):
    """Linear layer whose output is split into heads.

    Args:
        dim: Width of the input and of all heads together.
        num_heads: Heads.
        bias: Whether it has a bias.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear = nn.Linear(dim, dim, bias=bias)
        _start(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """From `(batch, tokens, dim)` to `(batch, heads, tokens, head_dim)`."""
        heads: Tensor = self.linear(x).unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)


class CausalConv(nn.Module):
    """Depth-wise convolution over time that sees the past only, the same in every head.

    Args:
        head_dim: Channels.
        kernel_size: Time steps, the present one included.
    """

    def __init__(self, head_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.past = kernel_size - 1
        self.conv = nn.Conv1d(head_dim, head_dim, kernel_size, groups=head_dim)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Convolve `(batch, heads, tokens, head_dim)`.

        Args:
            x: Projected tokens.
            seen: Tokens that exist for later ones, boolean, broadcastable to `(batch, tokens)`;
                the others count as zeros, as does the time before the sequence.
        """
        past = x if seen is None else x * seen[:, None, :, None].to(x.dtype)
        time = F.pad(past.flatten(0, 1).transpose(1, 2), (self.past, 0))
        found = self.conv(time).transpose(1, 2).unflatten(0, x.shape[:2])
        if seen is None:
            return found
        # A token that no query sees is a query itself: it keeps its own step.
        return found + (x - past) * self.conv.weight[:, 0, -1]


class RelativeConvAttention(TokenMixer):
    """Attention over a segment and its memory with learned relative terms.

    Queries, keys and values of all heads pass a causal depth-wise convolution. With `M` keys of
    memory and the relative position `r = j - M - i`:

        S_ij = head_dim^-1/2 [(q_i + u) k_j + q_i E_r + b_r]

    The convolution of queries starts anew at the segment; those of keys and values run over memory
    and segment together. A mask covers memory and segment; tokens that no query may see are zeros
    to the convolutions.

    Args:
        dim: Model width, a multiple of `num_heads`.
        num_heads: Heads.
        memory_length: Tokens that the returned state holds at most; 0 returns none.
        max_distance: Relative positions from `-max_distance` to `max_distance - 1` have entries
            of their own in the tables.
        clamp: Whether farther positions share the outermost entries; otherwise they are an error.
        kernel_size: Time steps of the convolutions.
        attention_dropout: Probability of dropping a weight while training.

    Raises:
        ConfigError: Sizes do not fit.
    """

    name = "rcmha"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "CS"}),
        layouts=frozenset({"1d"}),
        mask="any",
        maps=True,
        heads=True,
        stateful=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        memory_length: int = 0,
        max_distance: int = 4096,
        clamp: bool = False,
        kernel_size: int = 3,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        for name, size, least in (
            ("memory_length", memory_length, 0),
            ("max_distance", max_distance, 1),
            ("kernel_size", kernel_size, 1),
        ):
            if size < least:
                raise ConfigError(f"{name}: must be {least} or more, got {size}")
        head_dim = dim // num_heads
        self.memory_length = memory_length
        self.max_distance = max_distance
        self.clamp = clamp
        self.scale = head_dim**-0.5

        def branch(*, bias: bool) -> nn.Sequential:
            conv = CausalConv(head_dim, kernel_size)
            return nn.Sequential(HeadProjection(dim, num_heads, bias=bias), conv)

        self.query = branch(bias=False)
        self.key = branch(bias=False)
        self.value = branch(bias=True)
        self.key_pos_embeddings = nn.Parameter(torch.zeros(2 * max_distance, num_heads, head_dim))
        self.key_pos_bias = nn.Parameter(torch.zeros(2 * max_distance, num_heads))
        self.query_pos_bias = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.attend = Attend(attention_dropout)
        self.output = nn.Linear(dim, dim)
        _start(self.output)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Tensor | None,
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """`memory` is the state of the segment before, `(batch, remembered, dim)`."""
        source = x if memory is None else torch.cat([memory.to(x.dtype), x], 1)
        tokens, keys = x.shape[1], source.shape[1]
        self._check_reach(tokens, keys)
        allowed = None
        if mask is not None:
            heads = self.query_pos_bias.shape[0]
            shape = Shape(x.shape[0], heads, tokens, keys, x.device)
            allowed = self._covering(mask.dense(shape), keys)
        # A token that no query sees is padding, and must not reach others through the convolution.
        seen = None if allowed is None else allowed.any(2).any(1).expand(-1, keys)
        query = _convolved(self.query, x, None if seen is None else seen[:, keys - tokens :])
        key, value = (_convolved(branch, source, seen) for branch in (self.key, self.value))
        out, weights = self._attend(query, key, value, allowed, maps, head_gate)
        y = self.output(out.transpose(1, 2).flatten(2))
        state = source[:, -self.memory_length :].detach() if self.memory_length else None
        return MixerOutput(y, {}, weights, state)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None,
        maps: MapRequest | None,
        head_gate: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        tokens, keys = query.shape[2], key.shape[2]
        whole = maps is not None or torch.compiler.is_compiling()
        step = tokens if whole or tokens <= CHUNK_QUERIES else CHUNK_QUERIES
        outs, weights = [], None
        for start in range(0, tokens, step):
            part = query[:, :, start : start + step]
            picked = allowed
            if allowed is not None and allowed.shape[2] > 1:
                picked = allowed[:, :, start : start + step]
            found = self.attend(
                part + self.query_pos_bias[:, None].to(part.dtype),
                key,
                value,
                mask=picked,
                bias=self.relative_scores(part, keys - tokens + start, keys),
                maps=maps,
                head_gate=head_gate,
            )
            outs.append(found.out)
            weights = found.maps
        return outs[0] if len(outs) == 1 else torch.cat(outs, 2), weights

    def relative_scores(self, query: Tensor, first: int, keys: int) -> Tensor:
        """The relative part of the scores, `(batch, heads, queries, keys)`.

        Every query is multiplied with all entries that any of them needs; reading the result with
        rows one shorter than they are moves row `i` by `i` places.

        Args:
            query: `(batch, heads, queries, head_dim)`, in consecutive positions.
            first: Position of the first query among the keys.
            keys: Number of keys.
        """
        rows = query.shape[2]
        columns = keys + rows
        relative = torch.arange(columns, device=query.device) - (first + rows - 1)
        entry = (relative + self.max_distance).clamp(0, 2 * self.max_distance - 1)
        embedding = self.key_pos_embeddings[entry].permute(1, 2, 0)
        bias = self.key_pos_bias[entry].transpose(0, 1)[:, None]
        scores = (query @ embedding.to(query.dtype) + bias) * self.scale
        flat = scores.flatten(2)[..., rows - 1 : rows * columns - 1]
        return flat.unflatten(2, (rows, columns - 1))[..., :keys]

    def _check_reach(self, tokens: int, keys: int) -> None:
        reach = max(keys - 1, tokens)
        if reach > self.max_distance and not self.clamp:
            raise ConfigError(
                f"max_distance: {self.max_distance} is short of {reach} for {tokens} tokens and "
                f"{keys - tokens} of memory; raise it or set clamp=True"
            )

    def _covering(self, allowed: Tensor, keys: int) -> Tensor:
        if allowed.shape[-1] not in (1, keys):
            raise ConfigError(
                f"mask: covers {allowed.shape[-1]} keys of {keys}; include those of the memory"
            )
        return allowed[(None,) * (4 - allowed.dim())]


def _convolved(branch: nn.Sequential, x: Tensor, seen: Tensor | None) -> Tensor:
    projection, convolution = branch
    found: Tensor = convolution(projection(x), seen)
    return found


def _start(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
