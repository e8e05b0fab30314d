"""A reference file and how close one has to come to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor


@dataclass
class Reference:
    """Tensors and header of a safetensors file; remembers what was compared.

    A JSON file is a case as well, named after itself, which reads its content on its own.

    Args:
        path: The file.
        data_dir: Folder of the real data sets, for cases that name a file of theirs.
    """

    path: Path
    data_dir: Path | None = None
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)
    compared: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.path.suffix == ".json":
            self.tensors, self.config = {}, {"case": self.path.stem}
            return
        with safe_open(self.path, "pt") as file:
            header = file.metadata() or {}
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.config = json.loads(header.get("config", "{}"))
        self.config.setdefault("case", header.get("case"))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below `prefix/`, by the rest of their names."""
        prefix += "/"
        names = (name for name in self.tensors if name.startswith(prefix))
        return {name.removeprefix(prefix): self.tensors[name] for name in names}

    def data_file(self, name: str) -> Path:
        """The one file below the data folder whose path ends in `name`."""
        if self.data_dir is None:
            pytest.skip(f"pass --data-dir DIR with {name}")
        found = [f for f in self.data_dir.rglob(Path(name).name) if str(f).endswith(name)]
        assert len(found) == 1, f"{name}: {len(found)} files of that name below {self.data_dir}"
        return found[0]

    def output(self, name: str, ours: Tensor) -> None:
        """Outputs agree to 1e-5 of the largest one, or of 1."""
        reference = self._take(f"output/{name}", ours)
        hidden = reference <= -1e9
        assert torch.equal(hidden, ours.double() <= -1e9), f"{name}: minus infinities differ"
        reference, ours = reference[~hidden], ours.double()[~hidden]
        bound = 1e-5 * max(1.0, _largest(reference))
        self._check(name, ours, reference, bound)

    def gradient(self, name: str, ours: Tensor, group: str = "grad") -> None:
        """Gradients agree to 1e-4 of the largest one, plus rounding."""
        reference = self._take(f"{group}/{name}", ours)
        self._check(name, ours.double(), reference, 1e-4 * _largest(reference) + 2e-7)

    def after(self, group: str, name: str, ours: Tensor, gradient: Tensor) -> None:
        """Weights after optimiser steps, where the gradient is more than rounding."""
        reference = self._take(f"{group}/{name}", ours)
        clear = gradient.reshape(reference.shape).abs() >= 1e-7
        bound = 1e-5 * max(1.0, _largest(reference))
        self._check(f"{group}/{name}", ours.double()[clear], reference[clear], bound)

    def assert_complete(self, *groups: str) -> None:
        """Fail for a result in the file that nobody has compared."""
        left = {n for n in self.tensors if n.split("/")[0] in groups} - self.compared
        assert not left, f"not replayed: {sorted(left)}"

    def _take(self, name: str, ours: Tensor) -> Tensor:
        self.compared.add(name)
        reference = self.tensors[name].double()
        assert reference.shape == ours.shape, f"{name}: {ours.shape} instead of {reference.shape}"
        return reference

    def _check(self, name: str, ours: Tensor, reference: Tensor, bound: float) -> None:
        assert torch.isfinite(ours).all(), f"{name}: not finite"
        worst = _largest(ours - reference)
        assert worst <= bound, f"{name}: off by {worst:.2e}, allowed {bound:.2e}"


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def shaped_like(
    tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`tensors` in the shapes of the reference, where they hold the same numbers of elements."""
    return {
        name: tensor.reshape(reference[name].shape) if name in reference else tensor
        for name, tensor in tensors.items()
    }
