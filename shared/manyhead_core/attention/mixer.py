"""One calling convention for everything that mixes tokens, and what each mixer can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import KeyPadding, Mask
from manyhead_core.errors import ConfigError

Pattern = Literal["NS", "CS", "NC", "CC"]
Layout = Literal["1d", "2d", "set"]
MaskKind = Literal["none", "keys", "any"]
PATTERNS: dict[Pattern, str] = {
    "NS": "non-causal self-attention",
    "CS": "causal self-attention",
    "NC": "non-causal cross-attention",
    "CC": "causal cross-attention",
}


class UnsupportedPattern(ConfigError):  # noqa: N818 - it names a state, as the docs do
    """A call that a mixer does not declare: names mixer, pattern and the mixers that can do it."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a mixer can do.

    Args:
        patterns: Of `NS`, `CS`, `NC`, `CC`: (non-)causal, self or cross.
        leaky: Causal patterns that it accepts although later tokens have some influence on earlier
            outputs; its docstring says which.
        layouts: `1d` sequence, `2d` row-major grid, `set` without order.
        mask: `none`; `keys`: which keys are real; `any`: any mask.
        maps: Whether it can return attention maps.
        heads: Whether it has heads and takes `head_gate`.
        stateful: Whether it takes `memory` and returns a state.
        fixed_size: Whether a module works for one number of tokens only.
        export: Whether `torch.export` and ONNX are tested.
    """

    patterns: frozenset[Pattern]
    layouts: frozenset[Layout]
    mask: MaskKind = "none"
    maps: bool = False
    heads: bool = False
    stateful: bool = False
    fixed_size: bool = False
    export: bool = True
    leaky: frozenset[Pattern] = frozenset()


class MixerOutput(NamedTuple):
    """What a mixer gives.

    Args:
        y: `(batch, tokens, dim)`.
        aux: Losses by name, scalars; `weighted_aux` makes one term of them.
        maps: Attention weights in the form of the `MapRequest`, or None.
        state: What the next segment needs, or None.
    """

    y: Tensor
    aux: dict[str, Tensor]
    maps: Tensor | None = None
    state: Any = None


class TokenMixer(nn.Module):
    """Base of all mixers.

    Attributes:
        name: Name in the registry.
        capabilities: What the mixer can do; `forward` refuses everything else.
        aux_weights: Factors of the losses in `aux`, those of the paper. A loss without one carries
            its weight already.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    aux_weights: ClassVar[Mapping[str, float]] = {}

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
    ) -> MixerOutput:
        """Mix tokens.

        Args:
            x: Tokens, `(batch, tokens, dim)`, for all layouts.
            context: Source of keys and values, `(batch, keys, dim)`; None for self-attention.
            mask: Which pairs may attend.
            grid: Height and width of a 2-D layout; `tokens` is their product, row-major.
            memory: State of an earlier segment.
            maps: Attention weights to return.
            head_gate: `(heads,)` or `(batch, heads)`, multiplies the outputs of the heads before
                their projection; zero removes a head.

        Raises:
            UnsupportedPattern: The mixer does not declare this use.
        """
        self._check(x, context, mask, grid, memory, maps)
        if head_gate is None:
            return self.mix(x, context, mask=mask, grid=grid, memory=memory, maps=maps)
        if not self.capabilities.heads:
            self._refuse("head gates", "heads=True")
        # Only mixers with heads have this argument.
        mix: Callable[..., MixerOutput] = self.mix
        return mix(x, context, mask=mask, grid=grid, memory=memory, maps=maps, head_gate=head_gate)

    def after_step(self) -> None:
        """Called once after each optimiser step, by `after_step`; for state that is no weight."""

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,
        maps: MapRequest | None,
    ) -> MixerOutput:
        """The mechanism itself, after the checks of `forward`; what a subclass writes.

        With `heads` among its capabilities it also takes `head_gate`, which may be left out.
        """
        raise NotImplementedError

    def _check(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask | None,
        grid: tuple[int, int] | None,
        memory: Any,
        maps: MapRequest | None,
    ) -> None:
        able = self.capabilities
        pattern = pattern_of(context, mask)
        if pattern not in able.patterns | able.leaky:
            self._refuse(PATTERNS[pattern], f"pattern={pattern!r}")
        if mask is not None and able.mask == "none":
            self._refuse("masks", "mask=True")
        if mask is not None and able.mask == "keys" and not isinstance(mask, KeyPadding):
            self._refuse("masks other than KeyPadding", "mask=True")
        if maps is not None and not able.maps:
            self._refuse("attention maps", "maps=True")
        if memory is not None and not able.stateful:
            self._refuse("memory", "stateful=True")
        if able.layouts == {"2d"} and grid is None:
            raise ConfigError(f"{self.name}: works on a grid of tokens; pass grid=(height, width)")
        if grid is not None and grid[0] * grid[1] != x.shape[1]:
            raise ConfigError(f"{self.name}: grid {grid} does not hold {x.shape[1]} tokens")

    def _refuse(self, what: str, query: str) -> None:
        from manyhead_core.attention.registry import supporting

        others = ", ".join(supporting(query)) or "none"
        raise UnsupportedPattern(f"{self.name}: does not support {what}; mixers that do: {others}")


def pattern_of(context: Tensor | None, mask: Mask | None) -> Pattern:
    """The pattern of a call."""
    causal = mask is not None and mask.causal
    if context is None:
        return "CS" if causal else "NS"
    return "CC" if causal else "NC"


def weighted_aux(outputs: Iterable[tuple[TokenMixer, MixerOutput]]) -> Tensor | Literal[0]:
    """The term that the mixers of a model add to its loss.

    Each loss is averaged over the layers that give it, weighted as the mixer says, and added.

    Args:
        outputs: The mixers of the model with what they gave in this forward pass.

    Returns:
        A scalar; the number 0 if there is no loss.
    """
    losses: dict[tuple[float, str], list[Tensor]] = {}
    for mixer, output in outputs:
        for name, loss in output.aux.items():
            losses.setdefault((mixer.aux_weights.get(name, 1.0), name), []).append(loss)
    total: Tensor | Literal[0] = 0
    for (weight, _), parts in losses.items():
        total = total + weight * sum(parts[1:], parts[0]) / len(parts)
    return total


def after_step(model: nn.Module) -> None:
    """Let all mixers of a model do what follows an optimiser step, such as moving cluster means.

    Args:
        model: Any model; call this once after each optimiser step, on every replica.
    """
    for module in model.modules():
        if isinstance(module, TokenMixer):
            module.after_step()
