"""Weights as users have them: a weights folder, a checkpoint file, or the folder of a run."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyhead_core.app import App
from manyhead_core.errors import WeightsError
from manyhead_core.evaluate.files import read_json
from manyhead_core.hub.artefact import State
from manyhead_core.hub.locate import locate


@dataclass
class Loaded:
    """A network ready for use.

    Args:
        net: The network, in evaluation mode, on the CPU.
        preprocessor: State of the fitted preprocessor, or None when the weights carry none.
        task: Hyper-parameters of the training, empty for a weights folder.
        source: Checkpoint file or weights folder.
    """

    net: nn.Module
    preprocessor: State | None
    task: dict[str, Any]
    source: Path

    def need_preprocessor(self) -> State:
        """The preprocessor's state.

        Raises:
            WeightsError: The weights carry none.
        """
        if self.preprocessor is None:
            raise WeightsError(
                f"weights: {self.source} carries no preprocessor, so raw data cannot be encoded; "
                "export it from a checkpoint of fit"
            )
        return self.preprocessor


def load_weights(app: App, weights: str | Path) -> Loaded:
    """Load a weights folder, a `.ckpt` file, or the best checkpoint of a run folder.

    Args:
        app: Row of the app.
        weights: Path, or `owner/name` on the hub.

    Raises:
        WeightsError: There are no such weights, or they belong to another app.
    """
    path = Path(weights).expanduser()
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        path = best
    if path.suffix == ".ckpt":
        return _from_checkpoint(app, path)
    if (path / "checkpoints").is_dir():
        raise WeightsError(f"weights: run folder {path} has no checkpoints/best.ckpt yet")
    folder = locate(weights)
    net = app.load("model").from_pretrained(folder)
    return Loaded(net, net.preprocessor_state, {}, folder)


def read_checkpoint(app: App, path: Path) -> dict[str, Any]:
    """Content of a checkpoint that fit has written; nothing in it is executed.

    Raises:
        WeightsError: There is no such file, or it is damaged, foreign or of another app.
    """
    if not path.is_file():
        raise WeightsError(f"weights: no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, IndexError, RuntimeError, EOFError, OSError, ValueError) as err:
        raise WeightsError(f"weights: {path} is damaged or no checkpoint of fit") from err
    if not isinstance(content, dict) or "manyhead" not in content:
        raise WeightsError(f"weights: {path} was not written by fit; convert it with import")
    found = content["manyhead"].get("app")
    if found and found != app.name:
        raise WeightsError(f"weights: {path} belongs to the app {found}, not to {app.name}")
    return content


def _from_checkpoint(app: App, path: Path) -> Loaded:
    content = read_checkpoint(app, path)
    task = app.load("task").load_from_checkpoint(path)
    saved = content["manyhead"]["preprocessor"]
    state = None
    if saved is not None:
        meta = json.loads(saved["meta"]) | calibration_of(path)
        state = meta, dict(saved["tensors"])
    net = task.net.eval()
    if hasattr(net, "preprocessor_state"):
        net.preprocessor_state = state
    return Loaded(net, state, dict(content["hyper_parameters"]), path)


def calibration_of(path: Path) -> dict[str, Any]:
    """What `calibrate` has fitted for this very checkpoint, as an entry of the preprocessor."""
    file = path.parent.parent / "calibration.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    if content.get("checkpoint_hash") != hashlib.sha256(path.read_bytes()).hexdigest():
        return {}
    return {"calibration": {name: content[name] for name in ("temperature", "bias")}}
