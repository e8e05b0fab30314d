"""`group`: attention within each group of tokens, then across groups (Group Pose)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.softmax import Attention


class GroupAttention(TokenMixer):
    """Every token attends to its own instance, then to its own type in all instances.

    The tokens are a table of `grid=(instances, types)`: people × joints, frames × joints, channels
    × time, items × fields. Two softmax layers follow each other, each with a residual connection
    and a layer norm after it; they equal masked attention over all tokens with
    `SameId(instance)`, then `SameId(type)`, at a cost of tokens × (instances + types). Section 3.2
    of Liu et al., "Group Pose", ICCV 2023 (arXiv 2308.07313).

    Args:
        dim: Model width.
        num_heads: Heads of both layers.
        qkv_bias: Whether query, key and value projections have a bias.
        pos_to_value: Add the position codes to values and residual as well, as the published
            weights need it.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of a layer's output while training.
    """

    name = "group"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}),
        layouts=frozenset({"2d"}),
        mask="any",
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        pos_to_value: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pos_to_value = pos_to_value
        self.within, self.across = (
            Attention(
                dim,
                num_heads,
                qkv_bias=qkv_bias,
                attention_dropout=attention_dropout,
                dropout=dropout,
            )
            for _ in range(2)
        )
        self.within_norm = nn.LayerNorm(dim)
        self.across_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | None = None,
        grid: tuple[int, int] | None = None,
        memory: Any = None,
        maps: MapRequest | None = None,
        head_gate: Tensor | None = None,
        position: Tensor | None = None,
    ) -> MixerOutput:
        """Mix tokens; see `TokenMixer.forward`.

        Args:
            x: Tokens, `(batch, tokens, dim)`, all types of the first instance first.
            context: Not supported.
            mask: Which pairs may attend; pairs that share neither instance nor type never do.
            grid: Instances and types; `tokens` is their product.
            memory: Not supported.
            maps: Not supported.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the heads of both layers.
            position: Position codes, broadcastable to `x`, for queries and keys of the layer
                within instances.

        Raises:
            UnsupportedPattern: The mixer does not declare this use.
        """
        self._check(x, context, mask, grid, memory, maps)
        return self.mix(
            x,
            context,
            mask=mask,
            grid=grid,
            memory=memory,
            maps=maps,
            head_gate=head_gate,
            position=position,
        )

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
        head_gate: Tensor | None = None,
        position: Tensor | None = None,
    ) -> MixerOutput:
        """The two layers; `position` as in `forward`."""
        assert grid is not None  # noqa: S101 - forward has checked it
        if position is not None:
            position = position.expand_as(x)
            if self.pos_to_value:
                x, position = x + position, None
        within, across = _allowed(mask, x, grid, self.num_heads)
        table, codes = (None if t is None else _instances(t, grid) for t in (x, position))
        assert table is not None  # noqa: S101 - x is a tensor
        table = self.within_norm(table + _layer(self.within, table, codes, within, head_gate))
        table = table.unflatten(0, (-1, grid[0])).transpose(1, 2).flatten(0, 1)
        table = self.across_norm(table + _layer(self.across, table, None, across, head_gate))
        table = table.unflatten(0, (-1, grid[1])).transpose(1, 2)
        return MixerOutput(table.flatten(1, 2), {})


def _instances(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """`(batch * instances, types, dim)`."""
    return tokens.unflatten(1, grid).flatten(0, 1)


def _layer(
    attention: Attention,
    tokens: Tensor,
    codes: Tensor | None,
    allowed: Tensor | None,
    head_gate: Tensor | None,
) -> Tensor:
    """Self-attention whose queries and keys, but not values, carry position codes."""
    if codes is None:
        query, key, value = attention.project(tokens, tokens)
    else:
        # Values first: projecting x + codes as context would put the codes into them.
        width = attention.widths[2]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        biases = (None, None) if bias is None else (bias[:-width], bias[-width:])
        placed = nn.functional.linear(tokens + codes, weight[:-width], biases[0])
        plain = nn.functional.linear(tokens, weight[-width:], biases[1])
        parts = (*placed.split(attention.widths[:2], -1), plain)
        query, key, value = (
            part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in parts
        )
    out = attention.attend(query, key, value, mask=allowed, head_gate=head_gate).out
    mixed: Tensor = attention.dropout(attention.proj(out.transpose(1, 2).flatten(2)))
    return mixed


def _allowed(
    mask: Mask | None, x: Tensor, grid: tuple[int, int], heads: int
) -> tuple[Tensor | None, Tensor | None]:
    """The mask for each instance, `(batch * instances, ...)`, and for each type."""
    if mask is None:
        return None, None
    batch, tokens = x.shape[:2]
    if isinstance(mask, KeyPadding):
        valid = mask.keys(tokens).unflatten(1, grid)
        return tuple(v.flatten(0, 1)[:, None, None] for v in (valid, valid.transpose(1, 2)))
    dense = mask.dense(Shape(batch, heads, tokens, tokens, x.device))
    dense = dense.expand(batch, heads, tokens, tokens).unflatten(3, grid).unflatten(2, grid)
    within = dense.diagonal(dim1=2, dim2=4)
    across = dense.diagonal(dim1=3, dim2=5)
    return tuple(d.permute(0, 4, 1, 2, 3).flatten(0, 1) for d in (within, across))
