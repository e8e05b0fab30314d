"""Which mixer each layer of a model has, from a short plan."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from manyhead_core.app import find
from manyhead_core.attention.registry import MIXERS, build, mixer_class
from manyhead_core.errors import ConfigError, UserError

Entry = str | Mapping[str, Any]
Plan = Entry | Sequence[Entry]

_EVERY = ("default", "every", "name", "layers")


def wide_config(layers: int, heads: int, d_head: int) -> tuple[int, int, int]:
    """One wide layer with as many heads as a deep model has in all its layers.

    Brown et al., "Wide Attention Is The Way Forward For Transformers?", 2022 (arXiv 2210.00640):
    on average as accurate on text classification with one feed-forward network instead of many.

    Args:
        layers: Layers of the deep model.
        heads: Heads of each of them.
        d_head: Width of a head.

    Returns:
        Layers, heads and width of a head of the wide model.

    Raises:
        ConfigError: A number is below one.
    """
    for name, value in (("layers", layers), ("heads", heads), ("d_head", d_head)):
        if value < 1:
            raise ConfigError(f"{name}: must be 1 or more, got {value}")
    return 1, layers * heads, d_head


def hybrid(plan: Plan, layers: int | None = None) -> list[dict[str, Any]]:
    """The configuration of the mixer of each layer.

    Args:
        plan: `"spectral*4,softmax*8"`; or a list of names and mappings with `name` and options,
            one for each layer, where `"softmax*2"` stands for two; or
            `{"default": "dynamic_mask", "every": 3, "name": "softmax"}`, which makes every third
            layer, counted from one, `softmax` and the rest `dynamic_mask`. Its `default` and
            `name` may be mappings with options too.
        layers: Number of layers. The form with `every` needs it, here or as its entry `layers`;
            the others are checked against it.

    Returns:
        Mappings for `build`, first layer first.

    Raises:
        UserError: A mixer does not exist.
        ConfigError: The plan cannot be read or has another number of layers.
    """
    if isinstance(plan, Mapping) and "every" in plan:
        return _every(plan, layers)
    entries: Sequence[Entry] = [plan] if isinstance(plan, Mapping | str) else plan
    found = [config for entry in entries for config in _expand(entry)]
    if not found:
        raise ConfigError("plan: has no layers; write for example 'spectral*4,softmax*8'")
    if layers is not None and len(found) != layers:
        raise ConfigError(f"plan: gives {len(found)} layers, but layers={layers}")
    return found


def build_layers(
    plan: Plan, dim: int, num_heads: int, *, layers: int | None = None, **shared: Any
) -> nn.ModuleList:
    """Build the mixers of a plan.

    Args:
        plan: As in `hybrid`.
        dim: Model width of all layers.
        num_heads: Heads of all layers whose entry does not say otherwise.
        layers: As in `hybrid`.
        **shared: Options for all mixers that have them; those of an entry win.

    Raises:
        UserError: A mixer does not exist.
        ConfigError: The plan cannot be read, an option is unknown to a mixer or to all of them, or
            a mixer cannot be built; the message names the layer, counted from one.
    """
    configs = hybrid(plan, layers)
    accepted = [set(inspect.signature(mixer_class(c["name"])).parameters) for c in configs]
    for option in shared:
        if not any(option in names for names in accepted):
            kinds = ", ".join(sorted({c["name"] for c in configs}))
            raise ConfigError(f"{option}: no mixer of the plan has this option ({kinds})")
    mixers = nn.ModuleList()
    for number, (config, names) in enumerate(zip(configs, accepted, strict=True), 1):
        fitting = {name: value for name, value in shared.items() if name in names}
        try:
            mixers.append(build(config, dim=dim, num_heads=num_heads, **fitting))
        except UserError as error:
            raise ConfigError(f"layer {number} ({config['name']}): {error}") from error
    return mixers


def _every(plan: Mapping[str, Any], layers: int | None) -> list[dict[str, Any]]:
    """Each `every`-th layer `name`, the rest `default`."""
    unknown = sorted(plan.keys() - set(_EVERY))
    if unknown:
        raise ConfigError(f"plan: unknown entry {unknown[0]!r}; it accepts {', '.join(_EVERY)}")
    missing = [name for name in ("default", "name") if name not in plan]
    if missing:
        raise ConfigError(f"plan: 'every' needs {missing[0]!r} too, the name of a mixer")
    step = _count(plan["every"], "every")
    given = plan.get("layers", layers)
    if given is None:
        raise ConfigError("plan: 'every' does not say how many layers; pass layers=12")
    total = _count(given, "layers")
    if layers is not None and total != layers:
        raise ConfigError(f"plan: gives {total} layers, but layers={layers}")
    return [
        _config(plan["name"] if number % step == 0 else plan["default"])
        for number in range(1, total + 1)
    ]


def _expand(entry: Entry) -> list[dict[str, Any]]:
    """The layers of a list entry or of a string with commas."""
    if not isinstance(entry, str):
        return [_config(entry)]
    found = []
    for part in entry.split(","):
        name, star, count = (piece.strip() for piece in part.partition("*"))
        if not name:
            raise ConfigError(f"plan: {entry!r} has a part without a name; write name or name*4")
        times = _count(count, f"plan: the count of {part.strip()!r}") if star else 1
        found += [_config(name) for _ in range(times)]
    return found


def _config(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"plan: {entry!r} is neither a name nor a mapping with 'name'")
    return {**entry, "name": find(entry["name"], MIXERS, "mixer")}


def _count(value: Any, what: str) -> int:
    """A whole number from one."""
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{what}: must be a whole number from 1, got {value!r}")
    return int(text)
