"""Read, gate and edit the attention heads of a model from outside, for as long as a `with` lasts.

All act at the sites of `attention_sites`, in the thread that entered, and leave nothing behind.
They nest: edits and gates apply from the outermost `with` inwards, and `capture` takes what all of
them leave.

Compiled models run uncompiled inside, in all threads, with equal results up to rounding. A graph
that captures would break at every site and be compiled anew for each set of sites, so it is slower
for the few batches that a tool looks at, and a step of a later torch could break it silently.
Compile before the `with`, not in it. Under gradient checkpointing the repeated forward pass is
captured too, and a gate needs the backward pass inside the `with`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from manyhead_core.attention.layer import Attend, HeadOutputs
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.watch import Watch, enter, leave
from manyhead_core.errors import ConfigError

WHOLE_MAPS = MapRequest()


def attention_sites(model: nn.Module) -> dict[str, nn.Module]:
    """The places where a model's heads can be read and changed, by dotted name in module order.

    Args:
        model: Any model whose attention goes through `Attend` or `HeadOutputs`. A compiled one has
            the names of the model that it was made from.
    """
    return {
        name.replace("_orig_mod.", ""): module
        for name, module in model.named_modules()
        if isinstance(module, HeadOutputs) or (isinstance(module, Attend) and module.site)
    }


@dataclass(eq=False)
class Captured:
    """What the calls of each site gave, in the order of the calls.

    Args:
        maps: Attention weights in the form of the request.
        head_outputs: `(batch, heads, queries, value_dim)` after all gates, with their graph if
            there is one. The windows or groups of a mixer are batch elements, and the factors of
            a mixer's own router come later.
    """

    maps: dict[str, list[Tensor]] = field(default_factory=dict)
    head_outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget all tensors, such as between batches."""
        for kept in (*self.maps.values(), *self.head_outputs.values()):
            kept.clear()

    def keep(self, name: str, out: Tensor, maps: Tensor | None) -> None:
        """Add what a call of a site gave."""
        if maps is not None:
            self.maps[name].append(maps)
        if name in self.head_outputs:
            self.head_outputs[name].append(out)


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    request: MapRequest | None = WHOLE_MAPS,
    *,
    head_outputs: bool = False,
) -> Iterator[Captured]:
    """Collect attention maps and head outputs of the calls inside the `with`.

    Maps are those before dropout, from a pass of their own: outputs are the same bit for bit as
    without, or up to rounding where a mixer skips keys that a map has to show.

    Args:
        model: The model to look into.
        layers: Names from `attention_sites`; None takes all.
        request: Which maps, and in which form; None takes none.
        head_outputs: Whether to keep head outputs.

    Raises:
        ConfigError: There is no site of that name.
    """
    sites = _pick(model, "layers", attention_sites(model) if layers is None else layers)
    captured = Captured(
        {name: [] for name in sites if request is not None},
        {name: [] for name in sites if head_outputs},
    )
    with _watching(Watch(names=_names(sites), request=request, keep=captured.keep)):
        yield captured


@contextmanager
def gate_heads(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply head outputs, before the output projection, by gates inside the `with`.

    A gate of zero removes a head. Gates may need gradients.

    Args:
        model: The model to change.
        gates: By the names of `attention_sites`, `(heads,)` or `(batch, heads)`.

    Raises:
        ConfigError: There is no site of that name, or, when it is called, a gate does not fit.
    """
    with _watching(Watch(names=_names(_pick(model, "gates", gates)), gates=dict(gates))):
        yield


@contextmanager
def edit_weights(
    model: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Replace attention weights by a function of them inside the `with`.

    A site holds all its weights at once then. The function gets them before dropout, in float32
    at least, with their graph.

    Args:
        model: The model to change.
        edits: By the names of `attention_sites`: weights `(batch, heads, queries, keys)` to
            weights of the same shape.

    Raises:
        ConfigError: There is no site of that name, or it has no softmax weights.
    """
    sites = _pick(model, "edits", edits)
    for name, site in sites.items():
        if not isinstance(site, Attend):
            raise ConfigError(f"edits: {name!r} has no softmax weights; choose other layers")
    with _watching(Watch(names=_names(sites), edits=dict(edits))):
        yield


def _names(sites: Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    return {site: name for name, site in sites.items()}


def _pick(model: nn.Module, option: str, names: Iterable[str]) -> dict[str, nn.Module]:
    """Sites by name, in the order given."""
    sites = attention_sites(model)
    picked = {}
    for name in names:
        if name not in sites:
            near = ", ".join(get_close_matches(name, sites, n=3, cutoff=0.3)) or ", ".join(sites)
            closest = f"closest are {near}" if near else "the model has none"
            raise ConfigError(f"{option}: no attention site {name!r}; {closest}")
        picked[name] = sites[name]
    return picked


@contextmanager
def _watching(watch: Watch) -> Iterator[None]:
    with _EAGER:
        enter(watch)
        try:
            yield
        finally:
            leave(watch)


class _Eager:
    """Compiled models run eagerly while any thread is inside.

    The setting is one for the whole process, so threads that leave in another order than they
    came would otherwise put back each other's.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.stance: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        with self.lock:
            # Without the compiler imported nothing can be compiled, and importing it takes seconds.
            if self.stance is None and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


_EAGER = _Eager()
