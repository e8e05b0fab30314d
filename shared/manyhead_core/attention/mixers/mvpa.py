"""`mvpa`: multi-variate parallel attention over time steps and channels, arXiv 2506.20354."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from manyhead_core.attention.backend import AttendInfo
from manyhead_core.attention.layer import HeadOutputs
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.attention.multivariate.choice import DropoutKind, Form, choose_form
from manyhead_core.attention.multivariate.eager import attend_eagerly
from manyhead_core.attention.multivariate.fused import attend_fused
from manyhead_core.attention.multivariate.inputs import Parts, Rules, check, kept_keys
from manyhead_core.attention.multivariate.maps import row_maps
from manyhead_core.attention.settings import enforce
from manyhead_core.errors import ConfigError

Positions = tuple[Tensor, Tensor]


class ParallelAttention(TokenMixer):
    """Scores are the sum of content, distance in time and distance between channels.

    With query `(t, c)` and key `(t', c')`, `t' <= t`, and three learned biases u, b, w:

        content = (q + u) k             if t - t' <= window or t is the newest step, else 0
        time    = (q + b) Wt Pt[T - 1 - (t - t')]
        channel = (q + w) Wc Pc[C - 1 - |c - c'|]
        P = softmax(head_dim^-1/2 (content + time + channel))

    A token sees all channels of its own and of earlier steps. Beyond the window only the content
    part is dropped; the key stays. Distance 0 takes the last row of a table that is in use, so
    what a row means depends on the numbers of steps and channels.

    Args:
        dim: Model width.
        num_heads: Heads of queries.
        num_key_heads: Heads of keys and values; None means `num_heads`. Consecutive query heads
            share one.
        max_steps: Rows of the time table.
        max_channels: Rows of the channel table.
        window: Steps back up to which keys keep their content part.
        content: Whether there is a content part.
        score_scale: Further factor of the scores.
        own_positions: Whether the layer has tables of its own; otherwise every call passes
            `positions`, which layers then share.
        attention_dropout: Probability of dropping a weight while training.
        dropout_kind: `weights` drops each on its own. `keys` drops all weights of whole steps and
            of whole channels, the same in the batch and in all heads, and works in every form.
        form: How it is computed; `auto` takes the fastest that can do a call. All give the same
            result. `eager` holds all scores; `chunked` holds those of a few query steps, on any
            device; `flex` and `triton` are fused kernels for CUDA.

    Raises:
        ConfigError: Sizes do not fit; a call has more steps or channels than the tables have rows;
            the named form cannot do a call.
    """

    name = "mvpa"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}), layouts=frozenset({"2d"}), maps=True, heads=True
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_key_heads: int | None = None,
        max_steps: int = 110,
        max_channels: int = 128,
        window: int = 10,
        content: bool = True,
        score_scale: float = 1.0,
        own_positions: bool = True,
        attention_dropout: float = 0.0,
        dropout_kind: DropoutKind = "weights",
        form: Form = "auto",
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_heads is None else num_key_heads
        if dim % num_heads:
            raise ConfigError(f"dim: {dim} is no multiple of num_heads={num_heads}")
        if num_heads % key_heads:
            raise ConfigError(f"num_key_heads: {key_heads} does not divide num_heads={num_heads}")
        if not 0 <= attention_dropout < 1:
            raise ConfigError(
                f"attention_dropout: {attention_dropout} is no probability below 1; use 0 to 0.9"
            )
        for option, chosen, known in (
            ("dropout_kind", dropout_kind, get_args(DropoutKind)),
            ("form", form, get_args(Form)),
        ):
            if chosen not in known:
                raise ConfigError(f"{option}: {chosen!r} is unknown; use one of {', '.join(known)}")
        self.head_dim = dim // num_heads
        self.max_steps, self.max_channels = max_steps, max_channels
        self.rules = Rules(window=window, content=content, scale=score_scale * self.head_dim**-0.5)
        self.attention_dropout, self.dropout_kind = attention_dropout, dropout_kind
        self.form: Form = form
        width = key_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.kv_proj = nn.Linear(dim, 2 * width, bias=False)
        self.step_proj = nn.Linear(dim, width, bias=False)
        self.channel_proj = nn.Linear(dim, width, bias=False)
        self.biases = nn.Parameter(torch.empty(3, key_heads, self.head_dim))
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.positions = PositionTables(dim, max_steps, max_channels) if own_positions else None
        self.heads = HeadOutputs()
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)

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
        positions: Positions | None = None,
    ) -> MixerOutput:
        """As for every mixer, with tables that layers may share.

        Args:
            x: Tokens, `(batch, steps * channels, dim)`, time-major.
            context: None.
            mask: None.
            grid: Steps and channels.
            memory: None.
            maps: Attention weights to return.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads.
            positions: Rows of the time and the channel table in use, `(steps, dim)` and
                `(channels, dim)`; None takes the layer's own.
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
            positions=positions,
        )

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,
        head_gate: Tensor | None = None,
        positions: Positions | None = None,
    ) -> MixerOutput:
        """The mechanism."""
        assert grid is not None  # noqa: S101 - checked
        parts = self.parts(x, self._positions(grid, positions))
        check(parts)
        info = self._choose(parts)
        enforce(info)
        out = self._attend(info.backend, parts)
        out = self.heads(out, partial(row_maps, parts, self.rules), head_gate=head_gate)
        y = self.o_proj(out.transpose(1, 2).flatten(2))
        return MixerOutput(y, {}, None if maps is None else row_maps(parts, self.rules, maps))

    def explain(
        self, x: Tensor, grid: tuple[int, int], *, positions: Positions | None = None
    ) -> AttendInfo:
        """The form that a call takes, and why the faster ones are not taken.

        Args:
            x: Tokens, `(batch, steps * channels, dim)`.
            grid: Steps and channels.
            positions: Rows of both tables; None takes the layer's own.
        """
        return self._choose(self.parts(x, self._positions(grid, positions)))

    @property
    def _dropped(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def _choose(self, parts: Parts) -> AttendInfo:
        drops_weights = self._dropped > 0 and self.dropout_kind == "weights"
        return choose_form(parts, self.form, drops_weights=drops_weights)

    def _attend(self, form: str, parts: Parts) -> Tensor:
        dropout = self._dropped
        if dropout > 0 and self.dropout_kind == "keys":
            # A key whose weights are all dropped after the softmax is one without a value.
            parts = parts._replace(value=parts.value * kept_keys(parts, dropout))
            dropout = 0.0
        if form == "eager":
            return attend_eagerly(parts, self.rules, dropout=dropout)[0]
        if form == "flex":
            # Most processes never need it, and its import takes time.
            from manyhead_core.attention.multivariate.flex import attend_by_flex

            return attend_by_flex(parts, self.rules)
        return attend_fused(form, parts, self.rules, dropout=dropout)

    def extra_repr(self) -> str:
        """Settings for `print(model)`."""
        return f"form={self.form!r}, window={self.rules.window}, dropout={self.attention_dropout}"

    def parts(self, x: Tensor, positions: Positions) -> Parts:
        """Projected tokens, positions and biases.

        Args:
            x: Tokens, `(batch, tokens, dim)`.
            positions: Rows of the two tables in use, `(steps, dim)` and `(channels, dim)`.
        """

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)

        key, value = self.kv_proj(x).chunk(2, -1)
        return Parts(
            heads(self.q_proj(x)),
            heads(key),
            heads(value),
            heads(self.step_proj(positions[0])),
            heads(self.channel_proj(positions[1])),
            *self.biases.unbind(0),
        )

    def _positions(self, grid: tuple[int, int], given: Positions | None) -> Positions:
        if given is not None:
            return given
        if self.positions is None:
            raise ConfigError("mvpa: the layer has no tables of its own; pass positions")
        found: Positions = self.positions(grid)
        return found


class PositionTables(nn.Module):
    """Learned vectors for distances in time and between channels.

    Args:
        dim: Width.
        max_steps: Rows of the time table.
        max_channels: Rows of the channel table.
    """

    def __init__(self, dim: int, max_steps: int, max_channels: int) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.empty(max_steps, dim))
        self.channel = nn.Parameter(torch.empty(max_channels, dim))
        nn.init.normal_(self.step, std=0.02)
        nn.init.normal_(self.channel, std=0.02)

    def forward(self, grid: tuple[int, int]) -> Positions:
        """The rows in use, `(steps, dim)` and `(channels, dim)`.

        Args:
            grid: Steps and channels.

        Raises:
            ConfigError: A table has fewer rows.
        """
        for name, size, table in zip(
            ("steps", "channels"), grid, (self.step, self.channel), strict=True
        ):
            if size > len(table):
                raise ConfigError(
                    f"{name}: {size} are more than the {len(table)} rows of the table; "
                    f"use fewer {name}, or a model with a larger table"
                )
        return self.step[: grid[0]], self.channel[: grid[1]]
