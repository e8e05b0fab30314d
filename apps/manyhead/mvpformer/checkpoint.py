"""Checkpoints of the published code and of a re-hosted form, in both directions.

`{}` stands for the number of a layer. Released files name the trunk `genie`, the public code
`mvpformer`. The weight of the encoder's norm is always kept as it is stored: the published code
sets it to one when it loads a base for pre-training, and keeps it for classification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhead.mvpformer.lora import adapter_state
from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.wavelet import band_lengths
from manyhead_core.errors import WeightsError
from manyhead_core.hub.pickles import read_pickled_state
from manyhead_core.hub.pretrained import load_strictly
from manyhead_core.hub.reading import read_arrays

PREFIXES = ("mvpformer.", "genie.")
# Buffers and parameters that nothing uses, and the class weights of the loss.
IGNORED = re.compile(
    r"seizure_embeddings|class_loss\.weight|P\.h\.\d+\.(ln_2\.weight|attn\.(time|masked)_bias)"
)
_LAYER = {
    "ln_1.weight": "norm.weight",
    "attn.attn_bias": "attention.biases",
    "attn.q_attn": "attention.q_proj",
    "attn.c_attn": "attention.kv_proj",
    "attn.position_net.weight": "attention.step_proj.weight",
    "attn.channel_net.weight": "attention.channel_proj.weight",
    "attn.c_proj.weight": "attention.o_proj.weight",
    "mlp.gate_proj.weight": "mlp.gate.weight",
    "mlp.up_proj.weight": "mlp.up.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
}
# Names in a layer that end in one of these as well.
_ADAPTED = (".weight", ".lora_A", ".lora_B")


def _table(layer: str, others: Mapping[str, str]) -> dict[str, str]:
    found = dict(others)
    for theirs, ours in _LAYER.items():
        parts = _ADAPTED if theirs in ("attn.q_attn", "attn.c_attn") else ("",)
        found |= {f"{layer}.{theirs}{part}": f"layers.{{}}.{ours}{part}" for part in parts}
    return found


# Official name -> ours, the trunk's prefix written `P`.
OFFICIAL = _table(
    "P.h.{}",
    {
        "P.ln_f.weight": "norm.weight",
        "P.positional_embedding.weight": "positions.step",
        "P.channel_embedding.weight": "positions.channel",
        "encoder.ln.weight": "encoder.norm.weight",
        "encoder.proj.weight": "encoder.proj.weight",
        "head.head.weight": "head.weight",
    },
)
REHOSTED = _table(
    "blocks.{}",
    {
        "ln_f.weight": "norm.weight",
        "positional_embedding.weight": "positions.step",
        "channel_embedding.weight": "positions.channel",
        "patch_embed.ln.weight": "encoder.norm.weight",
        "patch_embed.proj.weight": "encoder.proj.weight",
        "final_layer.weight": "head.weight",
    },
)
# Width of the published sizes -> width of their heads, which no shape tells.
HEAD_DIMS = {768: 64, 2048: 128}


@dataclass
class Translated:
    """Official tensors under our names.

    Args:
        weights: By our names.
        ignored: Official names of tensors without a use, kept for a round trip.
        unknown: Official names that no table has.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    ignored: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def translate(weights: Mapping[str, Tensor]) -> Translated:
    """Our names for the tensors of a published or re-hosted file.

    Args:
        weights: Tensors by official name, base or adapters.
    """
    found = Translated()
    rehosted = any(name.startswith(("blocks.", "patch_embed.")) for name in weights)
    rules = _rules(REHOSTED if rehosted else OFFICIAL)
    for name, tensor in weights.items():
        plain = _canonical(name)
        ours = _renamed(plain, rules)
        if ours is not None:
            found.weights[ours] = tensor
        elif IGNORED.fullmatch(plain):
            found.ignored[name] = tensor
        else:
            found.unknown.append(name)
    return found


def from_official(
    base: Mapping[str, Tensor],
    adapters: Mapping[str, Tensor] | None = None,
    *,
    head_dim: int | None = None,
    lora_alpha: float = 16.0,
) -> tuple[MVPFormer, Translated]:
    """A model from a published base, with or without adapters of a fine-tuning.

    Adapters on the values alone and on keys and values are told apart by their rows. The head of
    the adapters replaces that of the base.

    Args:
        base: Tensors of the base by official name.
        adapters: Tensors of adapters and head by official name, or None.
        head_dim: Width of a head; None knows those of sizes S and M.
        lora_alpha: Scale of the adapters, which the files do not hold.

    Returns:
        The model in evaluation mode, adapters not merged, and what became of the names.

    Raises:
        WeightsError: Names are unknown, weights of the trunk are missing, or sizes do not fit.
    """
    found = translate(base)
    if adapters is not None:
        more = translate(adapters)
        _check_adapters(found, more)
        found.weights |= more.weights
        found.ignored |= more.ignored
        found.unknown += more.unknown
    if found.unknown:
        raise WeightsError(
            f"weights: names unknown: {_few(sorted(found.unknown))}; only published files need "
            "an import, those of fit and export do not"
        )
    model = MVPFormer(infer_config(found.weights, head_dim=head_dim, lora_alpha=lora_alpha))
    state = {name: x.to(torch.float32) for name, x in found.weights.items()}
    for name in state:
        if name.endswith(".biases"):  # content, time, channel, one after the other
            state[name] = state[name].view(3, model.config.num_key_heads, -1)
    load_strictly(model, state | {"threshold": model.threshold}, "weights")
    return model.eval(), found


def _check_adapters(base: Translated, adapters: Translated) -> None:
    if not any(".lora_" in name for name in adapters.weights):
        raise WeightsError(
            "adapters: the file has none (no name with lora_A); pass a base alone, or a file of "
            "adapters"
        )
    for name in adapters.weights:
        trunk = re.sub(r"\.lora_[AB]$", ".weight", name)
        if trunk not in base.weights:
            raise WeightsError(
                f"adapters: {name} belongs to a layer that the base does not have; use the base "
                "of the same size"
            )


def infer_config(
    weights: Mapping[str, Tensor], *, head_dim: int | None = None, lora_alpha: float = 16.0
) -> MVPFormerConfig:
    """Sizes from shapes.

    Args:
        weights: By our names.
        head_dim: Width of a head; None knows those of sizes S and M.
        lora_alpha: Scale of adapters, if there are any.

    Raises:
        WeightsError: The trunk is missing, or the width of a head has to be given.
    """
    missing = [n for n in ("encoder.proj.weight", "layers.0.mlp.up.weight") if n not in weights]
    if missing:
        raise WeightsError(
            f"weights: no {missing[0]}; the file holds no trunk: pass the base, and adapters with "
            "--adapters"
        )
    dim, width = weights["encoder.proj.weight"].shape
    head_dim = HEAD_DIMS.get(dim) if head_dim is None else head_dim
    if head_dim is None:
        raise WeightsError(
            f"head_dim: unknown for width {dim}; pass it: 64 for size S, 128 for size M"
        )
    values = weights["layers.0.attention.step_proj.weight"].shape[0]
    outputs = weights["head.weight"].shape[0]
    adapter = weights.get("layers.0.attention.kv_proj.lora_B")
    options: dict[str, Any] = {}
    if adapter is not None:
        on = "value" if adapter.shape[0] == values else "key_value"
        options = {"lora_rank": adapter.shape[1], "lora_alpha": lora_alpha, "lora_on": on}
    return MVPFormerConfig(
        segment_samples=_samples(width),
        dim=dim,
        num_layers=1 + max(int(n.split(".")[1]) for n in weights if n.startswith("layers.")),
        num_heads=dim // head_dim,
        num_key_heads=values // head_dim,
        hidden_dim=weights["layers.0.mlp.up.weight"].shape[0],
        max_segments=weights["positions.step"].shape[0],
        max_channels=weights["positions.channel"].shape[0],
        # A square head predicts tokens; no label has as many classes as a token has numbers.
        target="next_token" if outputs == dim else "classes",
        num_classes=2 if outputs == dim else outputs,
        **options,
    )


def _samples(width: int) -> int:
    """Length of a segment with so many coefficients; of several that have, the most even one."""
    fitting = [n for n in range(14, width + 1) if sum(band_lengths(n)) == width]
    if not fitting:
        raise WeightsError(f"weights: no segment has {width} wavelet coefficients")
    return max(fitting, key=lambda n: n & -n)


def official_names(model: MVPFormer, prefix: str = PREFIXES[0]) -> dict[str, str]:
    """Official name -> ours for the tensors of a model.

    Args:
        model: A model without an amplitude input, which the published code does not have.
        prefix: Of the trunk: `mvpformer.`, or `genie.` as in the released files.

    Raises:
        WeightsError: The model has an amplitude input.
    """
    if model.config.amplitude != "none":
        raise WeightsError("model: the amplitude input has no place in a published checkpoint")
    rules = [(re.compile(_pattern(ours)), theirs) for theirs, ours in OFFICIAL.items()]
    found = {}
    for name in model.state_dict():
        theirs = _renamed(name, rules)
        if theirs is not None:
            found[re.sub(r"^P\.", prefix, theirs)] = name
    return found


def to_official(
    model: MVPFormer, prefix: str = PREFIXES[0], *, adapters_alone: bool = False
) -> dict[str, Tensor]:
    """Tensors by official name, without those that nothing uses; the inverse of `from_official`.

    Args:
        model: As for `official_names`.
        prefix: As for `official_names`.
        adapters_alone: Whether to leave out all but adapters and head.

    Raises:
        WeightsError: The model has an amplitude input.
    """
    state = adapter_state(model) if adapters_alone else model.state_dict()
    return {
        theirs: state[ours].flatten() if ours.endswith(".biases") else state[ours]
        for theirs, ours in official_names(model, prefix).items()
        if ours in state
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file without executing anything in it.

    Args:
        path: .pt, .pth, .ckpt, .npz or .safetensors.
    """
    arrays = path.suffix in (".npz", ".safetensors")
    return read_arrays(path) if arrays else read_pickled_state(path)


def _canonical(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return f"P.{name.removeprefix(prefix)}"
    return name


def _rules(table: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(_pattern(theirs)), ours) for theirs, ours in table.items()]


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{\}", r"(\d+)")


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        if found := pattern.fullmatch(name):
            return target.format(*found.groups())
    return None


def _few(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
