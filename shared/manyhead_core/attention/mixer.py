"""One calling convention for everything that mixes tokens, and what each mixer can do."""

from __future__ import annotations

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
        layouts: `1d` sequence, `2d` row-major grid, `set` without order.
        mask: `none`; `keys`: which keys are real; `any`: any mask.
        maps: Whether it can return attention maps.
        stateful: Whether it takes `memory` and returns a state.
        fixed_size: Whether a module works for one number of tokens only.
        export: Whether `torch.export` and ONNX are tested.
    """

    patterns: frozenset[Pattern]
    layouts: frozenset[Layout]
    mask: MaskKind = "none"
    maps: bool = False
    stateful: bool = False
    fixed_size: bool = False
    export: bool = True


class MixerOutput(NamedTuple):
    """What a mixer gives.

    Args:
        y: `(batch, tokens, dim)`.
        aux: Losses by name, scalars; the task adds them with the weight that the mechanism's
            paper gives.
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
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | None = None,
        grid: tuple[int, int] | None = None,
        memory: Any = None,
        maps: MapRequest | None = None,
    ) -> MixerOutput:
        """Mix tokens.

        Args:
            x: Tokens, `(batch, tokens, dim)`, for all layouts.
            context: Source of keys and values, `(batch, keys, dim)`; None for self-attention.
            mask: Which pairs may attend.
            grid: Height and width of a 2-D layout; `tokens` is their product, row-major.
            memory: State of an earlier segment.
            maps: Attention weights to return.

        Raises:
            UnsupportedPattern: The mixer does not declare this use.
        """
        self._check(x, context, mask, grid, memory, maps)
        return self.mix(x, context, mask=mask, grid=grid, memory=memory, maps=maps)

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
        """The mechanism itself, after the checks of `forward`; what a subclass writes."""
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
        if pattern not in able.patterns:
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
