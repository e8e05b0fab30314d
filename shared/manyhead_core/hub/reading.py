"""Checkpoints of other tools, read without executing anything in them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from manyhead_core.errors import WeightsError


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .npz or .safetensors file.

    Raises:
        WeightsError: The file is missing, damaged, holds pickled objects or has another suffix.
    """
    if not path.is_file():
        raise WeightsError(f"weights: no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as err:
            raise WeightsError(f"{path}: is damaged ({err})") from err
    if path.suffix == ".npz":
        return _npz(path)
    raise WeightsError(f"{path}: is neither .npz nor .safetensors; save the variables as .npz")


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as err:
        raise WeightsError(f"{path}: holds no plain arrays ({err}); save them with savez") from err
