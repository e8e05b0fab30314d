"""The checkpoint of a command line: is it ours, and what does it say about the model."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from manyhead_core.errors import WeightsError


def hyper_parameters(path: Path, app: str) -> dict[str, Any]:
    """Hyper-parameters in a checkpoint that a fit of this app has written.

    Args:
        path: The file.
        app: Name of the app.

    Raises:
        WeightsError: The file is unreadable, foreign, or of another app.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, IndexError, RuntimeError, EOFError, OSError, ValueError) as err:
        raise WeightsError(f"--ckpt_path: {path} is damaged or not a checkpoint") from err
    ours = content.get("manyhead") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or "hyper_parameters" not in content:
        raise WeightsError(
            f"--ckpt_path: {path} was not written by fit; convert foreign weights with import"
        )
    found = ours.get("app")
    if found and found != app:
        raise WeightsError(f"--ckpt_path: {path} belongs to the app {found}, not to {app}")
    return dict(content["hyper_parameters"])


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
