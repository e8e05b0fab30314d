"""What tools do at the calls of layers in this thread; `capture` is made of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.attend import AttendOutput
from manyhead_core.attention.maps import MapRequest, pick_rows, reduce_weights
from manyhead_core.errors import ConfigError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Watch:
    """What to do at the calls of some layers.

    Args:
        names: The layers and their names.
        edits: Changes of attention weights, by name.
        gates: Factors of head outputs, by name.
        request: Maps to take.
        keep: Takes name, head outputs and maps of a call.
    """

    names: Mapping[nn.Module, str]
    edits: Mapping[str, Edit] = field(default_factory=dict)
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    request: MapRequest | None = None
    keep: Callable[[str, Tensor, Tensor | None], None] | None = None


class Watched(NamedTuple):
    """A layer in the eyes of a `Watch`."""

    watch: Watch
    name: str

    @property
    def gate(self) -> Tensor | None:
        """Factor of the head outputs."""
        return self.watch.gates.get(self.name)

    def keep(self, out: Tensor, maps: Tensor | None) -> None:
        """Hand over what a call gave."""
        if self.watch.keep is not None:
            self.watch.keep(self.name, out, maps)


class _Entered(threading.local):
    watches: tuple[Watch, ...] = ()


_entered = _Entered()


def enter(watch: Watch) -> None:
    """Watch the calls in this thread, until `leave`."""
    _entered.watches = (*_entered.watches, watch)


def leave(watch: Watch) -> None:
    """End what `enter` began."""
    _entered.watches = tuple(other for other in _entered.watches if other is not watch)


def watching(layer: nn.Module) -> tuple[Watched, ...]:
    """Who watches a layer in this thread, outermost first; nobody looks into compiled graphs."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(Watched(w, w.names[layer]) for w in _entered.watches if layer in w.names)


def gated(out: Tensor, gate: Tensor | None) -> Tensor:
    """Head outputs times a gate.

    Args:
        out: `(batch, heads, queries, value_dim)`. The windows of a sample may be batch elements
            that follow one another.
        gate: `(heads,)`, or `(batch, heads)` with a row for each sample; None changes nothing.

    Raises:
        ConfigError: Their sizes do not fit.
    """
    if gate is None:
        return out
    batch, heads = out.shape[:2]
    rows = gate.shape[0] if gate.dim() == 2 else 1
    if gate.dim() not in (1, 2) or gate.shape[-1] != heads or not rows or batch % rows:
        raise ConfigError(
            f"gate: {tuple(gate.shape)} does not fit {heads} heads and a batch of {batch}; pass "
            "(heads,) or (batch, heads)"
        )
    if 1 < rows < batch:
        gate = gate.repeat_interleave(batch // rows, 0)
    return out * gate[..., None, None].to(out.dtype)


def watched_heads(
    out: Tensor,
    head_gate: Tensor | None,
    maps: Callable[[MapRequest], Tensor] | None,
    watched: tuple[Watched, ...],
) -> Tensor:
    """Head outputs with all gates, after the watches took what they want."""
    for one in watched:
        out = gated(out, one.gate)
    out = gated(out, head_gate)
    for one in watched:
        request = one.watch.request
        one.keep(out, None if maps is None or request is None else maps(request))
    return out


class Run(Protocol):
    """`attend` on the tensors of a call."""

    def __call__(self, *, dropout_p: float, maps: MapRequest | None) -> AttendOutput:
        """Compute."""


def watched_attend(
    run: Run,
    value: Tensor,
    dropout_p: float,
    maps: MapRequest | None,
    head_gate: Tensor | None,
    watched: tuple[Watched, ...],
) -> AttendOutput:
    """A call of `attend` with all edits and gates, after the watches took what they want."""
    edits = [(w.name, w.watch.edits[w.name]) for w in watched if w.name in w.watch.edits]
    if edits:
        found, weights = _edited(run, value, dropout_p, edits)
        found = found._replace(maps=None if maps is None else _reduced(weights, maps))
        out = watched_heads(found.out, head_gate, lambda r: _reduced(weights, r), watched)
        return found._replace(out=out)
    wanted = [w.watch.request for w in watched if w.watch.request is not None]
    # One request rides on the main call; further ones need calls of their own.
    riding = maps if maps is not None or not wanted else wanted[0]
    found = run(dropout_p=dropout_p, maps=riding)

    def give(request: MapRequest) -> Tensor:
        given = found.maps if request is riding else run(dropout_p=0.0, maps=request).maps
        assert given is not None  # noqa: S101 - just asked for
        return given

    out = watched_heads(found.out, head_gate, give, watched)
    return found._replace(out=out, maps=None if maps is None else found.maps)


def _edited(
    run: Run, value: Tensor, dropout_p: float, edits: list[tuple[str, Edit]]
) -> tuple[AttendOutput, Tensor]:
    """A call with edited weights, and those weights, `(batch, heads, queries, keys)`."""
    precise = torch.promote_types(value.dtype, torch.float32)
    found = run(dropout_p=0.0, maps=MapRequest(dtype=precise, detach=False))
    assert found.maps is not None  # noqa: S101 - just asked for
    weights = found.maps
    for name, edit in edits:
        before, weights = weights.shape, edit(weights)
        if weights.shape != before:
            raise ConfigError(
                f"edits: {name!r} made weights {tuple(weights.shape)} of {tuple(before)}; keep "
                "the shape"
            )
    groups = weights.shape[1] // value.shape[1]
    with torch.autocast(value.device.type, enabled=False):
        wide = value.to(precise).repeat_interleave(groups, 1)
        out = F.dropout(weights.to(precise), dropout_p) @ wide
    return found._replace(out=out.to(value.dtype)), weights


def _reduced(weights: Tensor, request: MapRequest) -> Tensor:
    picked = pick_rows(weights.detach() if request.detach else weights, request)
    return reduce_weights(picked, request.reduce).to(request.dtype)
