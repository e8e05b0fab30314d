"""A weights folder: what it holds, written and read without executing code.

config.json               architecture, app and format version
model.safetensors         weights; app, version, task and metrics in the header
preprocessor.json         what turns raw data into the network's input (optional),
preprocessor.safetensors  and its tensors
README.md                 model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from manyhead_core.errors import WeightsError

FORMAT = 1

State = tuple[dict[str, Any], dict[str, Tensor]]


@dataclass
class Artefact:
    """Content of a weights folder.

    Args:
        app: Name of the app.
        config: Fields of the architecture's config.
        weights: State dict, on the CPU.
        task: Name of the task class that trained it, or empty.
        metrics: Test results as text, for the header and the card.
        preprocessor: JSON-able part and tensors of the fitted preprocessor.
        card: Text of the model card; empty keeps a card that is there.
    """

    app: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    task: str = ""
    metrics: dict[str, str] = field(default_factory=dict)
    preprocessor: State | None = None
    card: str = ""

    def write(self, folder: Path) -> None:
        """Write all files; those of an earlier save are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, "app": self.app, **self.config}
        _write_json(folder / "config.json", config)
        header = {
            "app": self.app,
            "manyhead": version("manyhead"),
            "task": self.task,
            "metrics": json.dumps(self.metrics),
            "format": str(FORMAT),
        }
        # Tied weights share memory, which the format refuses.
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.weights.items()}
        save_file(weights, folder / "model.safetensors", metadata=header)
        if self.preprocessor is not None:
            meta, tensors = self.preprocessor
            _write_json(folder / "preprocessor.json", meta)
            tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(tensors, folder / "preprocessor.safetensors", metadata={"app": self.app})
        if self.card:
            (folder / "README.md").write_text(self.card, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, app: str) -> Artefact:
        """Read a folder.

        Args:
            folder: A local folder.
            app: App that the weights must belong to.

        Raises:
            WeightsError: A file is missing or damaged, of another app or of a later version.
        """
        config = _read_json(folder / "config.json")
        header = _header(folder / "model.safetensors")
        found = config.pop("app", header.get("app", ""))
        if found != app:
            raise WeightsError(
                f"{folder}: holds weights of {found or 'another tool'}, not of {app}"
            )
        check_format(folder / "config.json", config.pop("format", 0))
        preprocessor = None
        if (folder / "preprocessor.json").is_file():
            meta = _read_json(folder / "preprocessor.json")
            preprocessor = meta, _tensors(folder / "preprocessor.safetensors")
        return cls(
            app=app,
            config=config,
            weights=_tensors(folder / "model.safetensors"),
            task=header.get("task", ""),
            metrics=json.loads(header.get("metrics", "{}")),
            preprocessor=preprocessor,
        )


def check_format(path: Path, found: Any) -> None:
    """Refuse a file of a later version.

    Raises:
        WeightsError: `found` is no version that this code knows.
    """
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise WeightsError(
            f"{path}: format {found!r} is not known here (up to {FORMAT}); "
            "update manyhead: pip install -U manyhead"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(
            f"{path.parent}: holds no {path.name}; pass a folder written by export or import"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise WeightsError(f"{path}: is no valid JSON; copy the folder again") from err
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: is no JSON object; copy the folder again")
    return content


def _tensors(path: Path) -> dict[str, Tensor]:
    _header(path)
    return load_file(path)


def _header(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise WeightsError(f"{path.parent}: holds no {path.name}; copy the folder again")
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as err:
        raise WeightsError(f"{path}: is damaged ({err}); copy the folder again") from err
