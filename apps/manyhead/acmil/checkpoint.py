"""Checkpoints of the published codes, in both directions: ACMIL, ABMIL, MHA, CLAM, DSMIL, TransMIL.

A table per network says how official names and ours go together; `{}` stands for a number. All
sizes are read off the shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.acmil.baselines.clam import CLAM
from manyhead.acmil.baselines.dsmil import DSMIL
from manyhead.acmil.model import ACMILConfig
from manyhead.acmil.networks import build_network
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.hub.pickles import read_pickled_state
from manyhead_core.hub.pretrained import PretrainedModel, load_strictly
from manyhead_core.hub.reading import read_arrays
from manyhead_core.training.plain import to_plain

# Weights of losses, which the network does not need.
SKIPPED = re.compile(r"instance_loss_fn\.")

_REDUCTION = {
    "dimreduction.fc1.weight": "reduction.linear.weight",
    "dimreduction.resBlocks.{}.block.0.weight": "reduction.blocks.{}.first.weight",
    "dimreduction.resBlocks.{}.block.2.weight": "reduction.blocks.{}.second.weight",
}
_GATED = {
    "attention.attention_V.0": "attention.content",
    "attention.attention_U.0": "attention.gate",
    "attention.attention_weights": "attention.score",
}
_BRANCH = {"v_proj": "value", "out_proj": "output", "layer_norm": "norm"}
_CLAM = {
    "attention_net.0": "reduction",
    "attention_net.3.attention_a.0": "content",
    "attention_net.3.attention_b.0": "gate",
    "attention_net.3.attention_c": "score",
    "instance_classifiers.{}": "instance_heads.{}",
}
_TRANSMIL_LAYER = {
    "norm": "norm",
    "attn.to_out.0": "output",
}

# Official name -> ours; a name without a last part stands for its weight and its bias.
TABLES: dict[str, dict[str, str]] = {
    "acmil_gated": _REDUCTION
    | _GATED
    | {"classifier.{}.fc": "branch_heads.{}", "Slide_classifier.fc": "slide_head"},
    "acmil_multihead": _REDUCTION
    | {"q": "attention.queries"}
    | {"sub_attention.{}.q_proj": "attention.query.{}"}
    | {"sub_attention.{}.k_proj": "attention.key.{}"}
    | {f"sub_attention.{{}}.{a}": f"attention.branches.{{}}.{b}" for a, b in _BRANCH.items()}
    | {f"bag_attention.{a}": f"attention.bag.{b}" for a, b in _BRANCH.items()}
    | {"classifier.{}.fc": "branch_heads.{}", "Slide_classifier.fc": "slide_head"},
    "abmil": _REDUCTION | _GATED | {"classifier.fc": "head"},
    "mha": _REDUCTION
    | {"q": "attention.queries"}
    | {"attention.q_proj": "attention.query.0", "attention.k_proj": "attention.key.0"}
    | {f"attention.{a}": f"attention.branches.0.{b}" for a, b in _BRANCH.items()}
    | {"classifier.fc": "head"},
    "clam_sb": _CLAM | {"classifiers": "head"},
    "clam_mb": _CLAM | {"classifiers.{}": "head.{}"},
    "dsmil": {
        "i_classifier.fc.0": "instance_head",
        "b_classifier.q": "query",
        "b_classifier.q.0": "query.0",
        "b_classifier.q.2": "query.2",
        "b_classifier.fcc": "head",
    },
    "transmil": {"_fc1.0": "reduction", "cls_token": "class_token", "norm": "norm", "_fc2": "head"}
    | {
        f"layer{number}.{a}": f"{block}.{b}"
        for number, block in ((1, "first"), (2, "second"))
        for a, b in _TRANSMIL_LAYER.items()
    }
    | {
        f"layer{number}.attn.{a}.weight": f"{block}.{b}.weight"
        for number, block in ((1, "first"), (2, "second"))
        for a, b in (("to_qkv", "qkv"), ("res_conv", "local"))
    }
    | {f"pos_layer.{a}": f"position.convs.{n}" for n, a in enumerate(("proj", "proj1", "proj2"))},
}


@dataclass(frozen=True)
class Official:
    """What the shapes of a checkpoint tell.

    Args:
        table: Key in `TABLES`.
        network: Key in `NETWORKS`.
        config: Sizes.
        options: Further constructor options of the network.
    """

    table: str
    network: str
    config: ACMILConfig
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        if self.network == "dsmil":
            return DSMIL(self.config, **self.options)
        if self.network.startswith("clam"):
            maps = 1 if self.network == "clam_sb" else self.config.num_outputs
            return CLAM(self.config, maps, **self.options)
        return build_network(self.network, self.config)


def from_official(weights: Mapping[str, Tensor], official: Official) -> dict[str, Tensor]:
    """Our state dict from an official one.

    Args:
        weights: Official tensors by name.
        official: As from `recognise`.

    Raises:
        WeightsError: Names are unknown.
    """
    rules = list(_rules(TABLES[official.table]))
    found: dict[str, Tensor] = {}
    rows: dict[str, dict[int, Tensor]] = {}
    unknown = []
    for name, tensor in weights.items():
        ours = _translate(name, rules)
        if ours is None:
            unknown.append(name)
        elif (row := re.fullmatch(r"head\.(\d+)\.(\w+)", ours)) and official.table == "clam_mb":
            rows.setdefault(f"head.{row[2]}", {})[int(row[1])] = tensor
        else:
            found[ours] = tensor.float()
    if unknown:
        raise WeightsError(f"weights: names unknown: {', '.join(sorted(unknown))}")
    for name, parts in rows.items():
        found[name] = _cat([parts[number].float() for number in sorted(parts)])
    if "attention.queries" in found:
        found["attention.queries"] = found["attention.queries"][0]
    return found


def to_official(state: Mapping[str, Tensor], table: str) -> dict[str, Tensor]:
    """Official tensors by name from our state dict; the inverse of `from_official`.

    Args:
        state: Ours.
        table: Key in `TABLES`.
    """
    rules = [(re.compile(_pattern(ours)), theirs) for _, theirs, ours in _templates(TABLES[table])]
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if table == "clam_mb" and name in ("head.weight", "head.bias"):
            part = name.rpartition(".")[2]
            official |= {f"classifiers.{n}.{part}": row[None] for n, row in enumerate(tensor)}
            continue
        theirs = _translate(name, rules)
        assert theirs is not None, name  # noqa: S101 - the tables cover all of ours
        official[theirs] = tensor[None] if name == "attention.queries" else tensor
    return official


def recognise(weights: Mapping[str, Tensor]) -> Official:
    """Network and sizes from the names and shapes of an official checkpoint.

    Args:
        weights: Official tensors by name.

    Raises:
        WeightsError: The checkpoint is of none of the known networks.
    """
    if "_fc1.0.weight" in weights:
        return _transmil(weights)
    if "i_classifier.fc.0.weight" in weights:
        return _dsmil(weights)
    if "attention_net.0.weight" in weights:
        return _clam(weights)
    if "dimreduction.fc1.weight" not in weights:
        raise WeightsError(
            "weights: neither ACMIL, ABMIL, MHA, CLAM, DSMIL nor TransMIL; no known name among "
            f"{', '.join(sorted(weights)[:3])}"
        )
    return _acmil(weights)


def import_official(official: Path, out: Path, /, class_names: str = "") -> None:
    """Convert a published checkpoint into weights of the suite, without executing anything in it.

    Both results are what `predict` and `explain` take as weights.

    Args:
        official: Checkpoint of ACMIL, ABMIL, MHA, CLAM, DSMIL or TransMIL: .pt, .pth, .ckpt,
            .npz or .safetensors.
        out: Weights folder for ACMIL, file ending in .ckpt for a baseline; must not exist.
        class_names: Names of the classes in order, separated by commas; default: their numbers.
    """
    if out.exists():
        raise WeightsError(f"out: {out} exists; choose another name")
    kept = _read(official)
    found = recognise(kept)
    network = found.build()
    load_strictly(network, from_official(kept, found), str(official))
    preprocessor = BagPreprocessor(found.config.feature_dim, _names(class_names, found.config))
    if isinstance(network, PretrainedModel):
        network.preprocessor_state = preprocessor.state()
        network.save_pretrained(out)
    else:
        _write_baseline(network, found, preprocessor, out)
    config = found.config
    console.result(
        f"imported {len(kept)} tensors of {found.network}: {config.feature_dim} features, width "
        f"{config.width}, {config.num_classes} classes; written: {out}"
    )


def _names(class_names: str, config: ACMILConfig) -> tuple[str, ...]:
    names = tuple(name.strip() for name in class_names.split(",") if name.strip())
    if names and len(names) != config.num_classes:
        raise ConfigError(
            f"class_names: {len(names)} names, but the checkpoint has {config.num_classes} classes"
        )
    return names or tuple(str(number) for number in range(config.num_classes))


def _write_baseline(
    network: nn.Module, found: Official, preprocessor: BagPreprocessor, out: Path
) -> None:
    """A checkpoint as `fit` writes it: a weights folder holds ACMIL only."""
    if out.suffix != ".ckpt":
        raise WeightsError(f"out: {out} has to end in .ckpt; {found.network} is a baseline")
    if any(found.options.values()):
        raise WeightsError(
            "weights: DSMIL with a second layer of queries is no baseline of fit; load it in "
            "Python with manyhead.acmil.checkpoint.load_official"
        )
    meta, tensors = preprocessor.state()
    content = {
        "state_dict": {f"net.{name}": tensor for name, tensor in network.state_dict().items()},
        "hyper_parameters": to_plain({"net": found.config, "network": found.network}),
        "manyhead": {
            "app": "acmil",
            "version": version("manyhead"),
            "format": 1,
            "preprocessor": {"meta": json.dumps(meta, sort_keys=True), "tensors": tensors},
        },
    }
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, partial)
    partial.replace(out)


def _read(path: Path) -> dict[str, Tensor]:
    arrays = path.suffix in (".npz", ".safetensors")
    return canonical(read_arrays(path) if arrays else read_pickled_state(path))


def canonical(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names without what loss buffers and models built without dropout change in them."""
    renamed = {
        re.sub(r"^attention_net\.2\.attention", "attention_net.3.attention", name): tensor
        for name, tensor in weights.items()
        if not SKIPPED.match(name)
    }
    return {
        re.sub(r"(attention_[ab])\.module\.", r"\1.", name): tensor
        for name, tensor in renamed.items()
    }


def load_official(path: Path) -> nn.Module:
    """A network with the weights of a published checkpoint, in evaluation mode.

    Args:
        path: .pt, .pth, .ckpt, .npz or .safetensors.

    Raises:
        WeightsError: The file is unreadable or of no known network.
    """
    kept = _read(path)
    found = recognise(kept)
    network = found.build()
    load_strictly(network, from_official(kept, found), str(path))
    return network.eval()


def _acmil(weights: Mapping[str, Tensor]) -> Official:
    dim, features = weights["dimreduction.fc1.weight"].shape
    blocks = {n.split(".")[2] for n in weights if n.startswith("dimreduction.resBlocks.")}
    common: dict[str, Any] = {"feature_dim": features, "dim": dim, "num_residual": len(blocks)}
    if "Slide_classifier.fc.weight" in weights:
        classes = len(weights["Slide_classifier.fc.bias"])
        branches = sum(1 for n in weights if re.fullmatch(r"classifier\.\d+\.fc\.weight", n))
        common |= {"num_classes": classes, "num_branches": branches}
        if "q" in weights:
            config = ACMILConfig(attention="multihead", **common)
            return Official("acmil_multihead", "acmil", config)
        hidden = len(weights["attention.attention_V.0.bias"])
        return Official("acmil_gated", "acmil", ACMILConfig(hidden_dim=hidden, **common))
    common["num_classes"] = len(weights["classifier.fc.bias"])
    if "q" in weights:
        return Official("mha", "mha", ACMILConfig(attention="multihead", **common))
    hidden = len(weights["attention.attention_V.0.bias"])
    return Official("abmil", "abmil", ACMILConfig(hidden_dim=hidden, **common))


def _clam(weights: Mapping[str, Tensor]) -> Official:
    dim, features = weights["attention_net.0.weight"].shape
    single = "classifiers.weight" in weights
    rows = sum(1 for n in weights if re.fullmatch(r"classifiers\.\d+\.weight", n))
    config = ACMILConfig(
        feature_dim=features,
        dim=dim,
        hidden_dim=len(weights["attention_net.3.attention_a.0.bias"]),
        num_classes=len(weights["classifiers.bias"]) if single else rows,
    )
    name = "clam_sb" if single else "clam_mb"
    return Official(name, name, config)


def _dsmil(weights: Mapping[str, Tensor]) -> Official:
    outputs, features = weights["i_classifier.fc.0.weight"].shape
    nonlinear = "b_classifier.q.0.weight" in weights
    first = weights["b_classifier.q.0.weight" if nonlinear else "b_classifier.q.weight"]
    # One output is the published model for tumour or not: a sigmoid.
    config = ACMILConfig(
        feature_dim=features,
        dim=first.shape[0],
        num_classes=max(2, outputs),
        target="classes" if outputs > 1 else "ordinal",
    )
    return Official("dsmil", "dsmil", config, {"nonlinear": nonlinear})


def _transmil(weights: Mapping[str, Tensor]) -> Official:
    dim, features = weights["_fc1.0.weight"].shape
    config = ACMILConfig(feature_dim=features, dim=dim, num_classes=len(weights["_fc2.bias"]))
    return Official("transmil", "transmil", config)


def _templates(table: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for official, ours in table.items():
        whole = official in ("q", "cls_token") or official.endswith(".weight")
        for part in ("",) if whole else (".weight", ".bias"):
            yield part, official + part, ours + part


def _rules(table: Mapping[str, str]) -> Iterator[tuple[re.Pattern[str], str]]:
    for _, official, ours in _templates(table):
        yield re.compile(_pattern(official)), ours


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{\}", r"(\d+)")


def _translate(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        if found := pattern.fullmatch(name):
            return target.format(*found.groups())
    return None


def _cat(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows)
