"""Hyper-parameters as plain values, and back to the config dataclasses of a signature."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and enums as dicts, lists and strings.

    A checkpoint that holds a dataclass object is refused by `torch.load(weights_only=True)`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, Enum) else value


def from_plain(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `function` from the plain values that `to_plain` made of them.

    Args:
        function: Class or function whose annotations say which values are config dataclasses.
        values: Plain values by parameter name.
    """
    target = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(target)
    return {name: _restore(hints.get(name), value) for name, value in values.items()}


def _restore(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return hint(**from_plain(hint, value))
    if isinstance(value, list) and "tuple" in str(hint):
        return tuple(value)
    return value
