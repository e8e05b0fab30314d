"""Weights of the TensorFlow 1 implementation, in both directions.

Its variables are numbered in order of creation, so that a name's meaning depends on the rest of
the network: tower first, then output units, then per layer query, key, value, residual and layer
norm, beta before gamma.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.hub.artefact import FORMAT
from manyhead_core.hub.pretrained import load_strictly
from manyhead_core.hub.reading import read_arrays

# Optimiser state and counters that a TensorFlow checkpoint holds beside the weights.
SKIPPED = re.compile(r"(.*/)?(Adam(_\d+)?|Adagrad|Momentum|beta[12]_power(_\d+)?|global_step)$")


class Piece(NamedTuple):
    """One official variable and its place in our state dict.

    Args:
        official: Name of the variable.
        ours: Key in the state dict.
        part: Which of `parts` equal slices of our first axis it is.
        parts: Number of slices.
        kernel: True for matrices, which are stored as (in, out).
    """

    official: str
    ours: str
    part: int = 0
    parts: int = 1
    kernel: bool = False


def pieces(config: AutoIntConfig) -> list[Piece]:
    """Every official variable of a network of this shape.

    Raises:
        ConfigError: The network has options that the official one does not know.
    """
    _check_official(config)
    tower = [
        Piece(_variable(2 * layer + bias), f"tower.hidden.{layer}.{kind}", kernel=kind == "weight")
        for layer in range(len(config.tower))
        for bias, kind in enumerate(("weight", "bias"))
    ]
    if tower:
        tower.append(Piece("prediction_dense", "tower.output.weight", kernel=True))
        tower.append(Piece("prediction_bias_dense", "tower.output.bias"))
    parts = 4 if config.residual else 3
    layers = [
        Piece(
            _dense(parts * layer + part, kind), f"layers.{layer}.project.{ours}", part, parts, ker
        )
        for layer in range(len(config.widths))
        for part in range(parts)
        for kind, ours, ker in (("kernel", "weight", True), ("bias", "bias", False))
    ]
    norms = [
        Piece(_variable(2 * len(config.tower) + 2 * layer + gamma), f"layers.{layer}.norm.{ours}")
        for layer in range(len(config.widths))
        for gamma, ours in enumerate(("bias", "weight"))
    ]
    table = Piece("feature_embeddings", "embedding.table.weight")
    head = [
        Piece("prediction", "output.weight", kernel=True),
        Piece("prediction_bias", "output.bias"),
    ]
    return [table, *tower, *head, *layers, *norms]


def from_official(weights: Mapping[str, Tensor], config: AutoIntConfig) -> dict[str, Tensor]:
    """Our state dict from official variables.

    Args:
        weights: Official variables by name.
        config: Architecture, as from `infer_config`.

    Raises:
        WeightsError: Variables are missing or unknown.
    """
    table = pieces(config)
    weights = {name: tensor for name, tensor in weights.items() if not SKIPPED.match(name)}
    _compare_names({piece.official for piece in table}, weights.keys())
    found: dict[str, list[Tensor]] = {}
    for piece in table:
        tensor = weights[piece.official].float()
        if piece.kernel:
            tensor = tensor.T
        elif piece.ours != "embedding.table.weight":
            tensor = tensor.reshape(-1)  # scalars and the rows of the tower's biases
        found.setdefault(piece.ours, []).append(tensor)
    return {name: torch.cat(tensors).contiguous() for name, tensors in found.items()}


def to_official(state: Mapping[str, Tensor], config: AutoIntConfig) -> dict[str, Tensor]:
    """Official variables from our state dict; the inverse of `from_official`."""
    official = {}
    for piece in pieces(config):
        tensor = state[piece.ours].chunk(piece.parts)[piece.part]
        if piece.kernel:
            tensor = tensor.T
        elif piece.ours.startswith("tower.hidden"):
            tensor = tensor[None]  # the official tower keeps its biases as rows
        official[piece.official] = tensor.contiguous()
    return official


def infer_config(weights: Mapping[str, Tensor], num_heads: int = 2) -> AutoIntConfig:
    """Architecture from the shapes of official variables.

    Args:
        weights: Official variables by name.
        num_heads: Attention heads: the one size that no shape tells.

    Raises:
        WeightsError: These are no AutoInt variables.
    """
    for name in ("feature_embeddings", "prediction", "dense/kernel"):
        if name not in weights:
            raise WeightsError(
                f"weights: variable {name} is missing; is this an AutoInt checkpoint?"
            )
    num_features, dim = weights["feature_embeddings"].shape
    shapes = _kernels(weights)
    # A residual projection has the input width of its layer, as the first projection of the next
    # layer has; the layer norms, two a layer, tell the number of layers.
    tower = _tower(weights)
    num_norms = sum(1 for name in weights if re.fullmatch(r"Variable(_\d+)?", name)) - 2 * len(
        tower
    )
    num_layers = num_norms // 2
    if not num_layers or len(shapes) not in (3 * num_layers, 4 * num_layers):
        raise WeightsError(
            f"weights: {len(shapes)} projections and {num_norms} layer norm variables fit no "
            "AutoInt network"
        )
    parts = len(shapes) // num_layers
    widths = tuple(shapes[parts * layer][1] for layer in range(num_layers))
    return AutoIntConfig(
        num_features=num_features,
        num_fields=weights["prediction"].shape[0] // widths[-1],
        dim=dim,
        widths=widths,
        num_heads=num_heads,
        residual=parts == 4,
        tower=tower,
    )


def import_official(official: Path, out: Path, /, num_heads: int = 2) -> None:
    """Convert a TensorFlow checkpoint given as .npz or .safetensors into a weights folder.

    Args:
        official: File with the variables under their TensorFlow names.
        out: Folder to write; must not exist.
        num_heads: Attention heads: the one size that the shapes do not tell.
    """
    if out.exists():
        raise WeightsError(f"out: {out} exists; choose another folder")
    arrays = read_arrays(official)
    net = infer_config(arrays, num_heads)
    model = AutoInt(net)
    load_strictly(model, from_official(arrays, net), str(official))
    model.save_pretrained(out)
    skipped = sum(1 for name in arrays if SKIPPED.match(name))
    console.result(
        f"imported {len(pieces(net))} variables ({skipped} of the optimiser left out): "
        f"{net.num_features} features, {net.num_fields} fields, widths {net.widths}, "
        f"tower {net.tower or 'none'}; written: {out} (format {FORMAT})"
    )


def _check_official(config: AutoIntConfig) -> None:
    for name, only in (
        ("qkv_activation", "relu"),
        ("qkv_bias", True),
        ("scale", "head_dim"),
        ("norm", "layer"),
        ("tower_norm", False),
        ("linear_term", False),
    ):
        if getattr(config, name) != only:
            raise ConfigError(f"{name}: the official network has {only!r} only")


def _compare_names(wanted: set[str], found: Iterable[str]) -> None:
    missing, surplus = sorted(wanted - set(found)), sorted(set(found) - wanted)
    for what, names in (("missing", missing), ("unknown", surplus)):
        if names:
            raise WeightsError(f"weights: variables {what}: {', '.join(names)}")


def _kernels(weights: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    while (name := _dense(len(shapes), "kernel")) in weights:
        rows, columns = weights[name].shape
        shapes.append((rows, columns))
    return shapes


def _tower(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    if "prediction_dense" not in weights:
        return ()
    sizes: list[int] = []
    # Tower matrices are the only two-dimensional ones with more than one row.
    while (name := _variable(2 * len(sizes))) in weights and weights[name].ndim == 2:
        sizes.append(int(weights[name].shape[1]))
    return tuple(sizes)


def _dense(number: int, kind: str) -> str:
    return f"dense_{number}/{kind}" if number else f"dense/{kind}"


def _variable(number: int) -> str:
    return f"Variable_{number}" if number else "Variable"
