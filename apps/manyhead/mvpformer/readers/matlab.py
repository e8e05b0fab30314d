"""Variables of MATLAB files, old (to v7) and new (v7.3, which are HDF5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from manyhead_core.errors import DataError

# What scipy and h5py raise on files that are damaged or something else.
FAILURES = (OSError, ValueError, TypeError, NotImplementedError, MatReadError)


def is_hdf5(path: Path) -> bool:
    """Whether a MATLAB file is of version 7.3."""
    return bool(h5py.is_hdf5(path))


def shapes(path: Path, id: str) -> dict[str, tuple[int, ...]]:
    """Variables of a file and their shapes as MATLAB shows them; nothing is loaded.

    Raises:
        DataError: The file is no MATLAB file.
    """
    _exists(path, id)
    try:
        if is_hdf5(path):
            with h5py.File(path, "r") as file:
                return {
                    name: tuple(item.shape[::-1])
                    for name, item in file.items()
                    if isinstance(item, h5py.Dataset)
                }
        return {name: tuple(shape) for name, shape, _ in scipy.io.whosmat(path)}
    except FAILURES as error:
        raise _damaged(path, id) from error


def load(path: Path, id: str) -> dict[str, Any]:
    """Variables of a file, arrays in MATLAB's orientation.

    Raises:
        DataError: The file is no MATLAB file.
    """
    _exists(path, id)
    try:
        if is_hdf5(path):
            with h5py.File(path, "r") as file:
                return {
                    name: _value(file, item)
                    for name, item in file.items()
                    if isinstance(item, h5py.Dataset)
                }
        found = scipy.io.loadmat(path, squeeze_me=False, chars_as_strings=True)
    except FAILURES as error:
        raise _damaged(path, id) from error
    return {name: value for name, value in found.items() if not name.startswith("__")}


def texts(value: Any) -> list[str]:
    """Strings of a cell array, a string array or a single string."""
    flat = np.asarray(value, dtype=object).reshape(-1)
    found = []
    for item in flat:
        inner = item
        while isinstance(inner, np.ndarray):
            inner = inner.reshape(-1)[0] if inner.size else ""
        found.append(str(inner).strip())
    return found


def _value(file: h5py.File, item: h5py.Dataset) -> Any:
    if item.attrs.get("MATLAB_class") == b"char":
        return "".join(map(chr, np.asarray(item[()]).T.reshape(-1)))
    if item.dtype == h5py.ref_dtype:
        cells = [file[reference] for reference in np.asarray(item[()]).T.reshape(-1)]
        return [_value(file, cell) for cell in cells]
    return np.asarray(item[()]).T


def _exists(path: Path, id: str) -> None:
    if not path.is_file():
        raise DataError(f"{id}: no file {path.name}; check that it was copied")


def _damaged(path: Path, id: str) -> DataError:
    return DataError(f"{id}: {path.name} is no readable MATLAB file; save it again with -v7")
