"""Layers without parameters at which tools read, gate and edit the heads of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from manyhead_core.attention.attend import AttendOutput, attend
from manyhead_core.attention.backend import Backend
from manyhead_core.attention.biases import Bias, ScoreMod
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.watch import gated, watched_attend, watched_heads, watching


class Attend(nn.Module):
    """`attend` as a layer without parameters: the one place that turns dropout off in evaluation.

    Args:
        dropout: Probability of dropping an attention weight while training.
        scale: Factor of the scores; None means `head_dim ** -0.5`.
        backend: Kernel; `auto` takes the fastest that can do it.
        site: Whether tools find it. A mixer whose heads are not those of its kernel calls has
            `HeadOutputs` instead.
    """

    def __init__(
        self,
        dropout: float = 0.0,
        *,
        scale: float | None = None,
        backend: Backend = "auto",
        site: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale
        self.backend: Backend = backend
        self.site = site

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | Mask | None = None,
        bias: Tensor | Bias | None = None,
        score_mod: ScoreMod | None = None,
        maps: MapRequest | None = None,
        head_gate: Tensor | None = None,
    ) -> AttendOutput:
        """Arguments and result are those of `attend`, but for the gate.

        Args:
            query: `(batch, heads, queries, head_dim)`.
            key: `(batch, key_heads, keys, head_dim)`.
            value: `(batch, key_heads, keys, value_dim)`.
            mask: Which pairs may attend.
            bias: Added to the scaled scores.
            score_mod: Change of a score with its bias.
            maps: Attention weights to return.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
        """
        run = partial(
            attend,
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            score_mod=score_mod,
            scale=self.scale,
            backend=self.backend,
        )
        # The fused kernels take dropout as given, in evaluation mode too.
        dropout_p = self.dropout if self.training else 0.0
        watched = watching(self)
        if watched:
            return watched_attend(run, value, dropout_p, maps, head_gate, watched)
        found = run(dropout_p=dropout_p, maps=maps)
        return found if head_gate is None else found._replace(out=gated(found.out, head_gate))

    def extra_repr(self) -> str:
        """Settings for `print(model)`."""
        return f"dropout={self.dropout}, scale={self.scale}, backend={self.backend!r}"


class HeadOutputs(nn.Module):
    """Passes head outputs on; here tools find the heads of a mixer that does not use softmax."""

    def forward(
        self,
        out: Tensor,
        maps: Callable[[MapRequest], Tensor] | None = None,
        *,
        head_gate: Tensor | None = None,
    ) -> Tensor:
        """The head outputs, gated.

        Args:
            out: `(batch, heads, queries, value_dim)`.
            maps: Gives the weights of the heads for a request; None if they have none.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
        """
        watched = watching(self)
        return watched_heads(out, head_gate, maps, watched) if watched else gated(out, head_gate)
