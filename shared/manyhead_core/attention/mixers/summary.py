"""`summary`: a few learned summaries of the tokens for every task, arXiv 2405.15633."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.attend import AttendOutput
from manyhead_core.attention.layer import Attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Dense, KeyPadding, Mask, SameId
from manyhead_core.attention.mixer import Capabilities, MixerOutput
from manyhead_core.attention.mixers.cross import CrossMixer
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class SummaryAttention(CrossMixer, Attention):
    """Every task sums the tokens up in a few of its own and attends among these.

    The stream of a task is its class token and `num_selectors` learned selectors `e`:

        a = softmax(e x^T / sqrt(dim)) over the tokens,  summaries = a x
        z = [class, summaries],  y = z + attention(z)

    The scores see `x` without its gradient, the sum with it. Tasks do not see each other, so a
    task can be added or left out. `prefix` adds learned keys and values to each task.

    `mixer(tokens)` starts with the layer's own class tokens and selectors; `mixer(stream, tokens)`
    continues with `stream`. Both streams and `y` are
    `(batch, num_tasks * (1 + num_selectors), dim)`, task by task, class token first. `reappend`
    puts the selectors back for the next layer, and `summarise_in_turn` runs a stack. Maps are
    those of the attention among the tokens of the stream; `summarise` gives the selection's.

    Args:
        dim: Model width.
        num_heads: Heads of the attention within a task.
        num_tasks: Tasks.
        num_selectors: Summaries of a task.
        prefix: Learned keys and values of a task.
        own_stream: Whether the layer has class tokens and selectors: the first one of a stack.
        residual: Add the stream `z` to the output, which a block around the layer cannot do.
        attention_dropout: Probability of dropping a weight of the attention while training.

    Raises:
        ConfigError: There are no tasks or no selectors.
    """

    name = "summary"
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
        num_tasks: int = 1,
        num_selectors: int = 4,
        prefix: int = 0,
        own_stream: bool = True,
        residual: bool = True,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, attention_dropout=attention_dropout)
        if num_tasks < 1 or num_selectors < 1 or prefix < 0:
            raise ConfigError(
                "num_tasks, num_selectors, prefix: need 1, 1 and 0 or more, got "
                f"{num_tasks}, {num_selectors} and {prefix}"
            )
        self.num_tasks = num_tasks
        self.num_selectors = num_selectors
        self.residual = residual
        self.select = Attend(scale=dim**-0.5, site=False)
        self.stream: nn.Parameter | None = None
        if own_stream:
            self.stream = _small(num_tasks, 1 + num_selectors, dim)
        self.prefix_key: nn.Parameter | None = None
        self.prefix_value: nn.Parameter | None = None
        if prefix:
            self.prefix_key = _small(num_tasks, num_heads, prefix, self.head_dim)
            self.prefix_value = _small(num_tasks, num_heads, prefix, self.head_dim)

    def own_queries(
        self,
        tokens: Tensor,
        mask: Mask | None,
        **given: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Mask | None]:
        """The layer's own class tokens and selectors."""
        if self.stream is None:
            raise ConfigError(
                "summary: has own_stream=False; pass mixer(stream, tokens) with the stream of the "
                "layer before"
            )
        return self.stream.flatten(0, 1).expand(tokens.shape[0], -1, -1), mask

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
        """Sum up, then attend; `context` may also be each task's own tokens, 4-D."""
        tokens = x if context is None else context
        summaries, _ = self.summarise(x, tokens, mask=mask)
        z = torch.cat([self._by_task(x)[:, :, :1], summaries], 2)
        real = mask.keys(tokens.shape[-2]).any(1) if isinstance(mask, KeyPadding) else None
        found = self._attend(z, real, maps, head_gate)
        y = self.dropout(self.proj(found.out.transpose(1, 2).flatten(2)))
        return MixerOutput(z.flatten(1, 2) + y if self.residual else y, {}, found.maps)

    def summarise(
        self,
        stream: Tensor,
        tokens: Tensor,
        *,
        mask: Mask | None = None,
        maps: MapRequest | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Summaries `(batch, num_tasks, num_selectors, dim)`, and maps if asked for.

        Args:
            stream: `(batch, num_tasks * (1 + num_selectors), dim)`.
            tokens: `(batch, tokens, dim)`, or of each task `(batch, num_tasks, tokens, dim)`.
            mask: Which tokens are real.
            maps: Selection weights to return.
        """
        selectors = self._by_task(stream)[:, :, 1:]
        if tokens.dim() == 3:
            # All tasks read the same tokens: one head with the selectors of all of them.
            selectors, tokens = selectors.flatten(1, 2)[:, None], tokens[:, None]
        found = self.select(selectors, tokens.detach(), tokens, mask=mask, maps=maps)
        return found.out.reshape(stream.shape[0], self.num_tasks, -1, stream.shape[-1]), found.maps

    def reappend(self, y: Tensor, stream: Tensor) -> Tensor:
        """Stream of the next layer: the class tokens of `y` with the selectors of `stream`."""
        parts = [self._by_task(y)[:, :, :1], self._by_task(stream)[:, :, 1:]]
        return torch.cat(parts, 2).flatten(1, 2)

    def _by_task(self, stream: Tensor) -> Tensor:
        """`(batch, tasks, 1 + selectors, dim)`."""
        if stream.shape[1] % self.num_tasks:
            raise ConfigError(
                f"summary: a stream of {stream.shape[1]} tokens is none of num_tasks="
                f"{self.num_tasks}; pass num_tasks * (1 + num_selectors) tokens"
            )
        return stream.unflatten(1, (self.num_tasks, -1))

    def _attend(
        self,
        z: Tensor,
        real: Tensor | None,
        maps: MapRequest | None,
        head_gate: Tensor | None,
    ) -> AttendOutput:
        """Attention within the tasks of `z`, `(batch, tasks, 1 + selectors, dim)`."""
        batch, tasks, size, _ = z.shape
        rows = z.flatten(1, 2)
        query, key, value = self.project(rows, rows)
        task = torch.arange(tasks, device=z.device)
        owner = task.repeat_interleave(size)
        key_owner = owner
        if self.prefix_key is not None and self.prefix_value is not None:
            length = self.prefix_key.shape[2]
            added = [
                part.transpose(0, 1).flatten(1, 2).expand(batch, -1, -1, -1)
                for part in (self.prefix_key, self.prefix_value)
            ]
            key, value = torch.cat([added[0], key], 2), torch.cat([added[1], value], 2)
            key_owner = torch.cat([task.repeat_interleave(length), owner])
        allowed: Mask | None = None
        if tasks > 1:
            # One sequence with a mask, so that the batch axis of maps and gates is that of `x`.
            allowed = SameId(owner, key_owner)
        if real is not None:
            # Without a real token the summaries are zeros; they count for nothing.
            summary = torch.arange(size, device=z.device).repeat(tasks) > 0
            summary = F.pad(summary.long(), (key.shape[2] - len(summary), 0)).bool()
            counted = Dense((real[:, None] | ~summary)[:, None, None])
            allowed = counted if allowed is None else allowed & counted
        return self.attend(query, key, value, mask=allowed, maps=maps, head_gate=head_gate)


def summarise_in_turn(
    layers: Sequence[SummaryAttention],
    tokens: Tensor | Sequence[Tensor],
    *,
    mask: Mask | None = None,
) -> Tensor:
    """Run a stack in which every layer selects anew with the same selectors.

    Args:
        layers: The first one with its own stream, the others without.
        tokens: Those of each layer, `(batch, tokens, dim)`, such as the patch tokens of a frozen
            backbone; one tensor is read by the first layer only, and each task of a later layer
            then selects from its own output of the layer before, class token left out.
        mask: Which of the given tokens are real.

    Returns:
        Output of the last layer, `(batch, num_tasks * (1 + num_selectors), dim)`.

    Raises:
        ConfigError: The numbers of layers and tokens differ, or there are no layers.
    """
    given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    if not layers or (not isinstance(tokens, Tensor) and len(given) != len(layers)):
        raise ConfigError(f"layers: {len(layers)} layers do not fit {len(given)} sets of tokens")
    stream, _ = layers[0].own_queries(given[0], None)
    y = stream
    for index, layer in enumerate(layers):
        if index < len(given):
            y_next = layer(stream, given[index], mask=mask).y
        else:
            own = y.unflatten(1, (layer.num_tasks, -1))[:, :, 1:]
            y_next = layer.mix(stream, own, mask=None, grid=None, memory=None, maps=None).y
        stream, y = layer.reappend(y_next, stream), y_next
    return y


def _small(*shape: int) -> nn.Parameter:
    tensor = torch.empty(shape)
    nn.init.trunc_normal_(tensor, std=0.02, a=-0.04, b=0.04)
    return nn.Parameter(tensor)
