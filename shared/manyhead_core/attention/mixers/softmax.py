"""`softmax`: the plain multi-head layer of Vaswani et al., NeurIPS 2017."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from manyhead_core.attention.biases import Bias
from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.mixers.shifts import start_linear
from manyhead_core.attention.rotary import rotate
from manyhead_core.errors import ConfigError, WeightsError


class Attention(TokenMixer):
    """Multi-head softmax attention: every query averages the values of all visible keys.

    Args:
        dim: Model width.
        num_heads: Heads.
        head_dim: Width of a head; None means `dim / num_heads`.
        num_key_heads: Heads of keys and values; None means `num_heads`. Consecutive query heads
            share one.
        fused_qkv: Whether they are projected by one matrix, `qkv`, or by two, `q` and `kv`.
        qkv_bias: Whether query, key and value projections have a bias.
        qk_norm: Normalise queries and keys of each head (layer norm) before the product.
        rotary: Turn queries and keys by their position (rotary embedding, half-split, base 1e4);
            for self-attention.
        bias: Added to the scores; one that is a module learns with the layer. A module that is
            no `Bias` is called without arguments to give one.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.
    """

    name = "softmax"
    capabilities = Capabilities(
        patterns=frozenset({"NS", "CS", "NC", "CC"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="any",
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        num_key_heads: int | None = None,
        fused_qkv: bool = True,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        rotary: bool = False,
        bias: Bias | Callable[[], Bias] | None = None,
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
        if rotary and self.head_dim % 2:
            raise ConfigError(f"rotary: needs an even head_dim, got {self.head_dim}")
        self.rotary, self.fused_qkv, self.bias = rotary, fused_qkv, bias
        self.widths = widths = [heads * self.head_dim for heads in self.sizes]
        if fused_qkv:
            self.qkv = nn.Linear(dim, sum(widths), bias=qkv_bias)
        else:
            self.q = nn.Linear(dim, widths[0], bias=qkv_bias)
            self.kv = nn.Linear(dim, sum(widths[1:]), bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.attend = Attend(attention_dropout)
        self.proj = nn.Linear(widths[0], dim)
        self.dropout = nn.Dropout(dropout)
        start_linear(*((self.qkv,) if fused_qkv else (self.q, self.kv)), self.proj)

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
        """Project, attend, project."""
        query, key, value = self.project(x, x if context is None else context)
        bias = self.bias if self.bias is None or isinstance(self.bias, Bias) else self.bias()
        found = self.attend(query, key, value, mask=mask, bias=bias, maps=maps, head_gate=head_gate)
        out, aux = self.between(found.out, x, context, query=query, mask=mask)
        y = self.proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(self.dropout(y), aux, found.maps)

    def between(
        self,
        heads: Tensor,
        x: Tensor,  # noqa: ARG002
        context: Tensor | None,  # noqa: ARG002
        *,
        query: Tensor,  # noqa: ARG002
        mask: Mask | None,  # noqa: ARG002
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What happens to head outputs before their projection, here nothing, and its losses.

        Args:
            heads: `(batch, heads, tokens, head_dim)`.
            x: Tokens, `(batch, tokens, dim)`.
            context: Source of keys and values; None for self-attention.
            query: `(batch, heads, tokens, head_dim)`.
            mask: Which pairs may attend.
        """
        return heads, {}

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, keys and values of `context`, `(batch, heads, tokens, head_dim)`."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self._parts(x, context)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        return (rotate(query), rotate(key), value) if self.rotary else (query, key, value)

    def _parts(self, x: Tensor, context: Tensor) -> Sequence[Tensor]:
        if not self.fused_qkv:
            return (self.q(x), *self.kv(context).split(self.widths[1:], -1))
        if context is x:
            return self.qkv(x).split(self.widths, -1)
        weights = self.qkv.weight.split(self.widths)
        biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.split(self.widths)
        return [
            nn.functional.linear(source, weight, bias)
            for source, weight, bias in zip((x, context, context), weights, biases, strict=True)
        ]

    def _check(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,
        maps: MapRequest | None,
    ) -> None:
        super()._check(x, context, mask, grid, memory, maps)
        if context is not None and self.rotary:
            raise ConfigError(
                f"{self.name}: rotary=True is for self-attention; pass no context, or set "
                "rotary=False"
            )

    def load_foreign(
        self, state: Mapping[str, Tensor], style: Literal["timm", "multihead_attention"]
    ) -> None:
        """Load the state dict of another library's layer; a `bias` with weights keeps its own.

        Args:
            state: Its tensors by name.
            style: `timm` has `qkv` and `proj`; `multihead_attention` is torch's own module with
                `in_proj_weight`, `in_proj_bias`, `out_proj`.

        Raises:
            WeightsError: Names are missing or left over, or a shape is another one.
        """
        names = FOREIGN[style]
        ours = {names.get(name, name): tensor for name, tensor in state.items()}
        if not self.fused_qkv:
            ours = self._split(ours)
        own = self.state_dict()
        wanted = {name for name in own if not name.startswith("bias.")}
        if ours.keys() != wanted:
            wrong = ", ".join(sorted(ours.keys() ^ wanted))
            raise WeightsError(f"{self.name}: weights of style {style} do not fit: {wrong}")
        for name, tensor in ours.items():
            if tensor.shape != own[name].shape:
                raise WeightsError(
                    f"{self.name}: {name} is {tuple(tensor.shape)} there, {tuple(own[name].shape)} "
                    "here; build the layer with the same sizes"
                )
        self.load_state_dict(own | ours)

    def _split(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fused projection as that of queries and that of keys and values."""
        parts = {}
        for name, tensor in state.items():
            if name in ("qkv.weight", "qkv.bias"):
                parts[name.replace("qkv", "q")] = tensor[: self.widths[0]]
                parts[name.replace("qkv", "kv")] = tensor[self.widths[0] :]
            else:
                parts[name] = tensor
        return parts


FOREIGN: dict[str, dict[str, str]] = {
    "timm": {},
    "multihead_attention": {
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj.weight": "proj.weight",
        "out_proj.bias": "proj.bias",
    },
}
