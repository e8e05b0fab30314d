"""Features as a tensor (.pt) or an array (.npy), with or without coordinates."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from manyhead.acmil.layouts.feature_file import FeatureFile, two_dimensional
from manyhead_core.errors import DataError

NAMES = ("features", "feats", "feat")


class ArrayFeatures(FeatureFile):
    """Features of a file that is mapped into memory, not read.

    Args:
        path: The file.
        slide_id: The slide.
    """

    def __init__(self, path: Path, slide_id: str) -> None:
        load = _load_npy if path.suffix == ".npy" else _load_pt
        self._array, self._coords = load(path)
        shape = two_dimensional(self._array.shape, slide_id)
        super().__init__(path, slide_id, path.suffix[1:], shape)

    def _features(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        if self._array.ndim == 1:
            return np.empty((0, 0), np.float32)
        return np.asarray(self._array[0, rows] if self._array.ndim == 3 else self._array[rows])

    def coords(self) -> npt.NDArray[np.int64] | None:
        """As `FeatureFile.coords`."""
        return None if self._coords is None else self._coords.astype(np.int64).reshape(-1, 2)


def _load_npy(path: Path) -> tuple[npt.NDArray[Any], None]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False), None
    except (OSError, ValueError) as err:
        raise DataError(f"{path.name}: is no readable .npy file ({err})") from err


def _load_pt(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):
        content = _load_legacy(path)
    except (pickle.UnpicklingError, OSError, EOFError) as err:
        raise DataError(f"{path.name}: is no readable .pt file of tensors") from err
    corners = None
    if isinstance(content, dict):
        corners = content.get("coords")
        content = next((content[name] for name in NAMES if name in content), None)
    if not isinstance(content, torch.Tensor):
        raise DataError(f"{path.name}: holds no tensor of features")
    return _numpy(content), None if corners is None else np.asarray(corners)


def _load_legacy(path: Path) -> Any:
    """Files of old versions of torch cannot be mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as err:
        raise DataError(f"{path.name}: is no readable .pt file of tensors") from err


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    # bfloat16 has no counterpart.
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
