"""Commands that turn checkpoints into others: import, adapters alone, merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from manyhead.mvpformer.checkpoint import PREFIXES, from_official, read_weights, to_official
from manyhead.mvpformer.lora import adapter_state
from manyhead.mvpformer.lora import adapters as adapted_layers
from manyhead.mvpformer.model import MVPFormer
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import UserError, WeightsError
from manyhead_core.evaluate.files import replace
from manyhead_core.hub.loading import load_weights


def import_official(
    official: Path,
    out: Path,
    /,
    adapters: Path | None = None,
    head_dim: int = 0,
    lora_alpha: float = 16.0,
    merge: bool = False,
) -> None:
    """Convert a published base, with or without adapters, without executing anything in the files.

    Nothing is loaded silently: an unknown name or a missing weight of the trunk is an error, and
    names without a use are counted in the report. The weight of the encoder's norm is kept as it
    is stored; the published code sets it to one when it loads a base for pre-training.

    Args:
        official: Base: .pt, .pth, .ckpt, .npz or .safetensors, in the released, the public or the
            re-hosted layout.
        out: Weights folder; must not exist.
        adapters: File with adapters and the head of a fine-tuning.
        head_dim: Width of an attention head, which no shape tells; 0 knows those of sizes S (64)
            and M (128).
        lora_alpha: Scale of the adapters, which the files do not hold.
        merge: Whether to add the adapters to the weights, for inference.
    """
    if out.exists():
        raise UserError(f"out: {out} exists; choose another name")
    more = None if adapters is None else read_weights(adapters)
    model, found = from_official(
        read_weights(official), more, head_dim=head_dim or None, lora_alpha=lora_alpha
    )
    (model.merged() if merge else model).save_pretrained(out)
    config = model.config
    console.result(
        f"imported {len(found.weights)} tensors, {len(found.ignored)} without a use: "
        f"{config.num_layers} layers of width {config.dim}, {config.num_heads} heads on "
        f"{config.num_key_heads}, up to {config.max_channels} channels and {config.max_segments} "
        f"segments of {config.segment_samples} samples, {_head(model)}{_adapted(model, merge)}; "
        f"written: {out}"
    )


def _head(model: MVPFormer) -> str:
    if model.config.target == "classes":
        return f"{model.config.num_classes} classes"
    return "head that predicts tokens"


def _adapted(model: MVPFormer, merge: bool) -> str:
    if not model.config.lora_rank:
        return ""
    on = "values" if model.config.lora_on == "value" else "keys and values"
    state = "merged" if merge else "not merged"
    return f", adapters of rank {model.config.lora_rank} on queries and {on} ({state})"


def export_adapters(
    app: App, ckpt: Path, out: Path, /, layout: Literal["own", "official"] = "own"
) -> None:
    """Write what a fine-tuning with adapters has changed: adapters and head alone.

    Args:
        app: The app.
        ckpt: Checkpoint file, run folder or weights folder with adapters.
        out: File ending in .safetensors; must not exist.
        layout: Names of this suite, or those of the published code.
    """
    model = _with_adapters(app, ckpt)
    if out.suffix != ".safetensors":
        raise UserError(f"out: {out} has to end in .safetensors")
    if out.exists():
        raise UserError(f"out: {out} exists; choose another name")
    state: dict[str, Tensor] = (
        to_official(model, PREFIXES[0], adapters_alone=True)
        if layout == "official"
        else adapter_state(model)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().contiguous() for name, x in state.items()}
    replace(out, lambda path: save_file(tensors, path))
    size = sum(x.numel() * x.element_size() for x in tensors.values()) / 1e6
    console.result(f"written: {out} ({len(tensors)} tensors, {size:.1f} MB)")


def merge(app: App, ckpt: Path, out: Path, /) -> None:
    """Write the same model without adapters: their products are added to the weights.

    Args:
        app: The app.
        ckpt: Checkpoint file, run folder or weights folder with adapters.
        out: Weights folder; must not exist.
    """
    model = _with_adapters(app, ckpt)
    if out.exists():
        raise UserError(f"out: {out} exists; choose another name")
    model.merged().save_pretrained(out)
    console.result(f"written: {out}")


def _with_adapters(app: App, ckpt: Path) -> MVPFormer:
    model = load_weights(app, ckpt).net
    if not isinstance(model, MVPFormer) or not adapted_layers(model):
        raise WeightsError(f"ckpt: {ckpt} has no adapters; train with model.net.lora_rank above 0")
    return model
