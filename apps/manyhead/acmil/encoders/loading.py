"""Find an encoder: built in, made by a function of the user, or in a local weight file."""

from __future__ import annotations

import pickle
import pkgutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manyhead.acmil.encoders.encoder import Encoder, TileTransform, as_rows, hash_weights
from manyhead.acmil.encoders.transform import Transform, TransformOptions
from manyhead_core.errors import ConfigError, WeightsError

BUILT_IN = {"handcrafted32": "manyhead.acmil.encoders.handcrafted32:Handcrafted32"}
FILES = (".pt", ".pth", ".ckpt", ".bin", ".ts", ".torchscript", ".safetensors")
# Where checkpoints keep the state dict of the network.
PLACES = ("state_dict", "model_state_dict", "model", "teacher")


def open_encoder(
    name: str,
    builder: str | None = None,
    transform: TransformOptions | None = None,
    tile_size: int = 224,
) -> Encoder:
    """An encoder ready for use; nothing is ever downloaded.

    A TorchScript file holds a compiled network; loading runs its serialised TorchScript and no
    Python. A file with a state dict is read without executing anything and needs a builder.

    Args:
        name: `handcrafted32`; or `package.module:callable`, which returns a module or a module
            and its transform; or a local weight file.
        builder: `package.module:callable` that returns the network for a file with a state dict.
        transform: What is done to a tile; the transform that a callable returns wins.
        tile_size: Side of the tiles in pixels, to try the encoder on one.

    Raises:
        ConfigError: There is no such encoder, or it returns something else than features.
        WeightsError: The file is missing, damaged, or does not fit the builder.
    """
    own: TileTransform | None
    if name in BUILT_IN:
        module, own, label = pkgutil.resolve_name(BUILT_IN[name])(), _unchanged, name
    elif Path(name).suffix.lower() in FILES:
        module, own = _from_file(Path(name), builder)
        label = Path(name).stem
    elif ":" in name:
        module, own = _called(name, "encoder")
        label = name
    else:
        raise ConfigError(
            f"encoder: {name!r} is unknown; use {', '.join(BUILT_IN)}, package.module:callable, or "
            f"a weight file ending in {', '.join(FILES)}"
        )
    if builder is not None and Path(name).suffix.lower() not in FILES:
        raise ConfigError("builder: belongs to a weight file; leave it out")
    chosen = own if own is not None else Transform(transform or TransformOptions())
    module = module.eval()
    width = _width(module, chosen, tile_size, label)
    described = str(chosen.options) if isinstance(chosen, Transform) else "of the encoder"
    return Encoder(module, chosen, width, label, hash_weights(module), described)


def _unchanged(tiles: Tensor) -> Tensor:
    return tiles


@torch.inference_mode()
def _width(module: nn.Module, transform: TileTransform, size: int, name: str) -> int:
    """Width of a feature, tried on two white tiles: with one, a batch norm or squeeze may hide."""
    tiles = torch.full((2, 3, size, size), 255, dtype=torch.uint8)
    try:
        return int(as_rows(module(transform(tiles)), 2, name).shape[1])
    except (RuntimeError, TypeError, ValueError, AssertionError) as err:
        if isinstance(err, ConfigError):
            raise
        reason = str(err).strip().splitlines()[-1] if str(err).strip() else type(err).__name__
        raise ConfigError(
            f"encoder: {name} fails on tiles of {size} pixels ({reason}); check resize and crop"
        ) from err


def _called(name: str, option: str) -> tuple[nn.Module, TileTransform | None]:
    """Module, and transform or None, of `package.module:callable`."""
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as err:
        raise ConfigError(
            f"{option}: cannot import {name} ({err}); write package.module:callable and put the "
            "folder of the package on PYTHONPATH"
        ) from err
    if not callable(function) or isinstance(function, nn.Module):
        raise ConfigError(f"{option}: {name} is no function; name one that returns a module")
    try:
        made = function()
    except Exception as err:
        text = " ".join(f"{type(err).__name__}: {err}".split())
        raise ConfigError(
            f"{option}: {name}() fails ({text}); it is called without arguments"
        ) from err
    module, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module) or not (transform is None or callable(transform)):
        raise ConfigError(
            f"{option}: {name} returns {type(made).__name__}, not a module or a module and its "
            "transform"
        )
    return module, transform


def _from_file(path: Path, builder: str | None) -> tuple[nn.Module, TileTransform | None]:
    if not path.is_file():
        raise WeightsError(f"encoder: no file {path}")
    if _is_torchscript(path):
        if builder is not None:
            raise ConfigError(f"builder: {path.name} is TorchScript and brings its network")
        return _load_torchscript(path), None
    if builder is None:
        raise ConfigError(
            f"builder: {path.name} holds weights only; pass --builder package.module:callable that "
            "returns the network"
        )
    module, transform = _called(builder, "builder")
    _fill(module, _read_state(path), path)
    return module, transform


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry for entry in archive.namelist())


def _load_torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # New versions of torch would rather export otherwise; files of users are as they are.
            warnings.simplefilter("ignore", DeprecationWarning)
            module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        return module
    except (RuntimeError, ValueError) as err:
        raise WeightsError(f"encoder: {path.name} is damaged TorchScript") from err


def _read_state(path: Path) -> dict[str, Tensor]:
    content = _read(path)
    for place in PLACES:
        if isinstance(content, dict) and isinstance(content.get(place), dict):
            content = content[place]
            break
    if not isinstance(content, dict):
        raise WeightsError(f"encoder: {path.name} holds no state dict; save model.state_dict()")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"encoder: {path.name} holds no tensors by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise WeightsError(
            f"encoder: {path.name} holds more than weights and is not executed; save "
            "model.state_dict()"
        ) from err
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, SafetensorError) as err:
        raise WeightsError(f"encoder: {path.name} is damaged or no weight file") from err


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for names, what in (
        (missing, "lacks"), (surplus, "has, beside the network of the builder,"),
        (sorted(wrong), "has with another shape"),
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WeightsError(f"encoder: {path.name} {what} {names[0]}{more}; check the builder")
    module.load_state_dict(state)
