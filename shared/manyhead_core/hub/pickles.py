"""Checkpoints that are pickles, read without executing anything that they name.

`torch.load(weights_only=True)` refuses files that hold an object of the authors' own classes, as
their options. Here such an object becomes an empty stand-in, and only the functions that put
tensors together are called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from manyhead_core.errors import WeightsError

ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    **{
        ("torch._utils", name): getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}
# Where checkpoints keep the state dict of the network.
PLACES = ("model", "state_dict", "model_state_dict", "net")
# What other tools wrap a network in leaves its name in the keys.
WRAPPERS = ("module.",)


def read_pickled_state(path: Path) -> dict[str, Tensor]:
    """State dict of a `.pt`, `.pth` or `.ckpt` file; `module.` is taken out of its names.

    Args:
        path: The file.

    Raises:
        WeightsError: The file is missing, damaged, or holds no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"weights: no file {path}")
    content = read_pickle(path)
    for place in PLACES:
        if isinstance(content, dict) and isinstance(content.get(place), dict):
            content = content[place]
            break
    if not isinstance(content, dict):
        raise WeightsError(f"weights: {path} holds no state dict; save model.state_dict()")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"weights: {path} holds no tensors by name; save model.state_dict()")
    return {_plain(name): tensor.detach() for name, tensor in tensors.items()}


def read_pickle(path: Path) -> Any:
    """Content of a file of `torch.save`, with stand-ins for objects of unknown classes.

    Args:
        path: The file.

    Raises:
        WeightsError: The file is damaged or no file of `torch.save`.
    """
    module = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="restricted")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except Exception as err:
        raise WeightsError(f"weights: {path} is damaged or no file of torch.save") from err


class Inert:
    """Stands for an object whose class is not known; keeps and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:  # noqa: D102
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Entries of a list of its own class."""

    def extend(self, values: Any) -> None:
        """Entries of a list of its own class."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return ALLOWED.get((module, name), Inert)


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
