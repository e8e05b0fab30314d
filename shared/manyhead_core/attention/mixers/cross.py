"""What cross-attention layers have in common that can make their queries themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import MixerOutput, TokenMixer


class CrossMixer(TokenMixer):
    """Base of mixers whose queries are learned, or made of the tokens that they read.

    With `context`, `x` holds queries and `context` the tokens, as in every cross-attention. With
    `x` alone, `x` holds the tokens and the layer makes the queries: `y` then has as many tokens as
    there are queries. Both calls are cross-attention for the capabilities.
    """

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
        **given: Any,
    ) -> MixerOutput:
        """Read tokens.

        Args:
            x: Queries `(batch, queries, dim)`, or the tokens `(batch, tokens, dim)` if there is no
                context.
            context: Tokens, `(batch, tokens, dim)`; None makes the queries from `x`.
            mask: Which pairs may attend; the keys are the tokens.
            grid: Height and width of `x` in a 2-D layout.
            memory: State of an earlier segment.
            maps: Attention weights to return.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
            **given: What the mixer's `own_queries` takes beside tokens and mask.

        Raises:
            UnsupportedPattern: The mixer does not declare this use.
        """
        tokens = x if context is None else context
        self._check(x, tokens, mask, grid, memory, maps)
        if context is None:
            x, mask = self.own_queries(tokens, mask, **given)
        elif given:
            raise TypeError(f"{self.name}: {', '.join(given)} makes queries, but x holds them")
        # All of these mixers have heads.
        mix: Callable[..., MixerOutput] = self.mix
        return mix(x, tokens, mask=mask, grid=grid, memory=memory, maps=maps, head_gate=head_gate)

    def own_queries(
        self, tokens: Tensor, mask: Mask | None, **given: Any
    ) -> tuple[Tensor, Mask | None]:
        """Queries of the layer for these tokens, and the mask of queries and tokens.

        Args:
            tokens: `(batch, tokens, dim)`.
            mask: That of the call.
            **given: Further arguments of the call.

        Returns:
            Queries, `(batch, queries, dim)`; the mask between them and the tokens.
        """
        raise NotImplementedError
