"""`glca`: global-local cross-attention of Zhu et al., CVPR 2022, arXiv 2205.02151."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.late_interaction import share_of
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Dense, KeyPadding, Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class Picked(NamedTuple):
    """Tokens that were chosen as queries, in the order of the sequence.

    Args:
        places: Their indices, int `(batch, queries)`; class tokens first.
        real: Boolean `(batch, queries)`: False where a padded sample has fewer.
    """

    places: Tensor
    real: Tensor

    def of(self, tokens: Tensor) -> Tensor:
        """The chosen ones of tokens `(batch, tokens, dim)`; zero where there is none."""
        place = self.places[..., None].expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, place).masked_fill(~self.real[..., None], 0.0)


class GlobalLocalCrossAttention(Attention):
    """The tokens that matter most for the class token ask all tokens once more.

    `mixer(tokens, rollout=reached)` ranks the tokens by their share in the class token after the
    layers before, `reached` being what `rollout` gives for their maps. The class token and the
    `share` of highest rank become queries, keys and values are all tokens, and the weights are the
    layer's own (section 3.2; 0.1 for fine-grained classes, 0.3 for re-identification). `y` has
    these tokens only, in the order of the sequence; `state` is a `Picked`, whose `of(tokens)` is
    what a residual connection adds. With share 1 this is an ordinary layer.

    `mixer(queries, tokens)` takes queries that were chosen elsewhere.

    Args:
        dim: Model width.
        num_heads: Heads.
        share: Share of the tokens that become queries, rounded up, class tokens not counted.
        class_tokens: Tokens at the start that are always queries. With 0 the tokens are ranked by
            their share in the mean of all tokens, which is what a model without a class token
            reads.
        qkv_bias: Whether query, key and value projections have a bias.
        attention_dropout: Probability of dropping a weight while training.
        dropout: Probability of dropping an entry of the output while training.

    Raises:
        ConfigError: The share is not in (0, 1], or `class_tokens` is negative.
    """

    name = "glca"
    capabilities = Capabilities(
        patterns=frozenset({"NC"}),
        layouts=frozenset({"1d", "2d", "set"}),
        mask="keys",
        maps=True,
        heads=True,
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        share: float = 0.1,
        class_tokens: int = 1,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            attention_dropout=attention_dropout,
            dropout=dropout,
        )
        if not 0 < share <= 1:
            raise ConfigError(f"share: {share} is not in (0, 1]")
        if class_tokens < 0:
            raise ConfigError(f"class_tokens: must be 0 or more, got {class_tokens}")
        self.share = share
        self.class_tokens = class_tokens

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
        rollout: Tensor | None = None,
    ) -> MixerOutput:
        """Let the most important tokens ask all of them.

        Args:
            x: Tokens, `(batch, tokens, dim)`, or queries if there is a context.
            context: Tokens, `(batch, tokens, dim)`; None takes those of `x`.
            mask: Which tokens are real.
            grid: Height and width of `x` in a 2-D layout.
            memory: Not used.
            maps: Attention weights to return.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
            rollout: Rollout of the layers before, `(batch, tokens, tokens)`, or the importance of
                the tokens, `(batch, tokens)`.

        Raises:
            ConfigError: There is neither a context nor a rollout.
        """
        tokens = x if context is None else context
        self._check(x, tokens, mask, grid, memory, maps)
        if context is not None:
            return self.mix(
                x, tokens, mask=mask, grid=None, memory=None, maps=maps, head_gate=head_gate
            )
        if rollout is None:
            raise ConfigError(
                "glca: has no rollout to choose queries by; pass rollout=rollout(maps) of the "
                "layers before, or mixer(queries, tokens)"
            )
        real = mask.keys(x.shape[1]) if isinstance(mask, KeyPadding) else None
        picked = self.pick(rollout, real)
        seen = None
        if real is not None:
            seen = Dense(real[:, None, None] & picked.real[:, None, :, None])
        found = self.mix(
            picked.of(x), x, mask=seen, grid=None, memory=None, maps=maps, head_gate=head_gate
        )
        y = found.y.masked_fill(~picked.real[..., None], 0.0)
        return found._replace(y=y, state=picked)

    def pick(self, rollout: Tensor, real: Tensor | None = None) -> Picked:
        """Choose the queries; there is no gradient through the choice.

        Args:
            rollout: `(batch, tokens, tokens)`, or importance `(batch, tokens)`.
            real: Real tokens, boolean `(batch, tokens)`; None for all.
        """
        first = self.class_tokens
        score = rollout.detach().to(torch.promote_types(rollout.dtype, torch.float32))
        if real is None:
            real = torch.ones(score.shape[:2], dtype=torch.bool, device=score.device)
        if score.dim() == 3:
            asked = real[:, :first] if first else real
            rows = score[:, :first] if first else score
            score = rows.masked_fill(~asked[..., None], 0.0).sum(1)
        local, score = real[:, first:], score[:, first:]
        count = score.shape[1]
        most = share_of(self.share, count)
        order = score.masked_fill(~local, float("-inf")).topk(most, 1).indices
        wanted = torch.tensor([share_of(self.share, n) for n in range(count + 1)])
        wanted = wanted.to(score.device)[local.sum(1)]
        kept = torch.arange(most, device=score.device) < wanted[:, None]
        # Those that a padded sample has not go last, so that the others keep their places.
        order = order.masked_fill(~kept, count).sort(1).values
        kept = order < count
        start = torch.arange(first, device=score.device).expand(score.shape[0], -1)
        places = torch.cat([start, order.clamp(max=max(count - 1, 0)) + first], 1)
        return Picked(places, torch.cat([real[:, :first], kept], 1))
