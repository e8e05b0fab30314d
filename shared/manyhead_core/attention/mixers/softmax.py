"""`softmax`: the plain multi-head layer of Vaswani et al., NeurIPS 2017."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from manyhead_core.attention.attend import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError, WeightsError


class Attention(TokenMixer):
    """Multi-head softmax attention: every query averages the values of all visible keys.

    Args:
        dim: Model width.
        num_heads: Heads.
        head_dim: Width of a head; None means `dim / num_heads`.
        num_key_heads: Heads of keys and values; None means `num_heads`. Consecutive query heads
            share one.
        qkv_bias: Whether query, key and value projections have a bias.
        qk_norm: Normalise queries and keys of each head (layer norm) before the product.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "softmax"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "CS", "NC", "CC"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="any",
        maps=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        num_key_heads: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_heads is None else num_key_heads
        if head_dim is None and dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}; set head_dim")
        if num_heads % key_heads:
            raise ConfigError(f"num_key_heads: {key_heads} does not divide num_heads={num_heads}")
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.sizes = (num_heads, key_heads, key_heads)
        widths = [heads * self.head_dim for heads in self.sizes]
        self.qkv = nn.Linear(dim, sum(widths), bias=qkv_bias)
        self.widths = widths
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.attend = Attend(attention_dropout)
        self.proj = nn.Linear(widths[0], dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,  # noqa: ARG002
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
    ) -> MixerOutput:
        """`head_gate`, `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads."""
        query, key, value = self.project(x, x if context is None else context)
        allowed = None if mask is None else mask.dense(Shape.of(query, key))
        found = self.attend(query, key, value, mask=allowed, maps=maps)
        out = found.out
        if head_gate is not None:
            out = out * head_gate[..., None, None]
        y = self.proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(self.dropout(y), {}, found.maps)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, keys and values of `context`, `(batch, heads, tokens, head_dim)`."""
        if context is x:
            parts = self.qkv(x).split(self.widths, -1)
        else:
            weights = self.qkv.weight.split(self.widths)
            biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.split(self.widths)
            sources = (x, context, context)
            parts = [
                nn.functional.linear(source, weight, bias)
                for source, weight, bias in zip(sources, weights, biases, strict=True)
            ]
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts
        )
        return self.q_norm(query), self.k_norm(key), value

    def load_foreign(
        self, state: Mapping[str, Tensor], style: Literal["timm", "multihead_attention"]
    ) -> None:
        """Load the state dict of another library's layer.

        Args:
            state: Its tensors by name.
            style: `timm` has `qkv` and `proj`; `multihead_attention` is torch's own module with
                `in_proj_weight`, `in_proj_bias`, `out_proj`.

        Raises:
            WeightsError: Names are missing or left over.
        """
        names = FOREIGN[style]
        ours = {names.get(name, name): tensor for name, tensor in state.items()}
        wanted = self.state_dict().keys()
        if ours.keys() != wanted:
            wrong = ", ".join(sorted(ours.keys() ^ wanted))
            raise WeightsError(f"softmax: weights of style {style} do not fit: {wrong}")
        self.load_state_dict(ours)


FOREIGN: dict[str, dict[str, str]] = {
    "timm": {},
    "multihead_attention": {
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj.weight": "proj.weight",
        "out_proj.bias": "proj.bias",
    },
}
