"""Versions, commit and device: what a reader needs to repeat a number."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    "manyhead",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "jsonargparse",
    "numpy",
    "pandas",
    "scikit-learn",
    "safetensors",
)


def environment() -> dict[str, str]:
    """Name and version of what took part in a run, as strings."""
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    found |= {name: package_version(name) for name in PACKAGES}
    found["device"] = device_name()
    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()}"
    commit = git_commit()
    return found | ({"commit": commit} if commit else {})


def package_version(name: str) -> str:
    """Installed version, or `missing`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def device_name() -> str:
    """Name of the accelerator that torch sees, else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    if torch.backends.mps.is_available():
        return "Apple GPU"
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Commit of the checkout this package runs from; None for an installed wheel."""
    git = shutil.which("git")
    root = Path(__file__).resolve().parents[3]
    if git is None or not (root / ".git").exists():
        return None
    call = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    return done.stdout.strip() or None
