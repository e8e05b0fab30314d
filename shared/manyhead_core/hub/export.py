"""`export`: a checkpoint becomes a weights folder, or an ONNX file with its preprocessor beside."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import UserError, WeightsError
from manyhead_core.hub.loading import Loaded, load_weights
from manyhead_core.hub.pretrained import PretrainedModel

# Largest difference of a logit between torch and ONNX, relative to the largest logit or 1.
TOLERANCE = 1e-4


def export(app: App, ckpt: Path, out: Path, /, opset: int = 18) -> None:
    """Write a checkpoint as a weights folder, or as an .onnx file checked for equality.

    Args:
        app: The app.
        ckpt: Checkpoint file, run folder (its best checkpoint) or weights folder.
        out: Folder, or a file ending in .onnx; must not exist.
        opset: ONNX operator set.
    """
    if out.exists():
        raise UserError(f"out: {out} exists; choose another name")
    loaded = load_weights(app, ckpt)
    net = loaded.net
    if not isinstance(net, PretrainedModel):
        kind = type(net).__name__
        raise WeightsError(f"ckpt: {ckpt} holds the baseline {kind}; only {app.title} is exported")
    if out.suffix == ".onnx":
        taken = [path for path in _beside(out) if path.exists()]
        if taken and loaded.preprocessor is not None:
            raise UserError(f"out: {taken[0]}, which goes beside {out.name}, exists; move it away")
        difference = export_onnx(net, out, opset)
        beside = _write_preprocessor(loaded, out)
        console.result(f"written: {out} (largest difference to torch {difference:.1e}){beside}")
        return
    net.metrics = _metrics_of_run(loaded.source) or net.metrics
    _write_folder(net, out)
    kept = "; with its calibration" if "calibration" in (loaded.preprocessor or ({},))[0] else ""
    console.result(f"written: {out} ({', '.join(sorted(f.name for f in out.iterdir()))}){kept}")


def export_onnx(net: PretrainedModel[Any], out: Path, opset: int) -> float:
    """Write the model as ONNX with a free batch size, and compare it with torch.

    Returns:
        The largest difference of a logit, relative to the largest logit or 1.

    Raises:
        UserError: The ONNX file gives other numbers.
    """
    inputs = net.example_inputs(batch=3)
    flat = _Flat(net, list(inputs))
    with warnings.catch_warnings(), _silenced("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            flat.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=_dynamic(inputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - `dynamo=True` always gives one
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        file = Path(folder) / out.name
        program.save(file)
        difference = _compare(net, file)
        if difference > TOLERANCE:
            raise UserError(
                f"out: the ONNX file differs from torch by {difference:.1e}; not written"
            )
        file.rename(out)
    return difference


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep a logger's warnings back: torch.onnx notes operators of packages nobody uses here."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class _Flat(nn.Module):
    """The model with its inputs in a row, as ONNX wants them."""

    def __init__(self, net: PretrainedModel[Any], names: list[str]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.net.named_logits(dict(zip(self.names, tensors, strict=True)))


def _dynamic(inputs: dict[str, Tensor]) -> tuple[Any, ...]:
    batch = torch.export.Dim("batch", min=1)
    return (tuple({0: batch} for _ in inputs),)


def _compare(net: PretrainedModel[Any], file: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = 0.0
    for size in (1, 7):
        inputs = net.example_inputs(batch=size)
        with torch.inference_mode():
            ours = net.named_logits(inputs)
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        theirs = torch.from_numpy(session.run(None, feed)[0])
        largest = max(1.0, float(ours.abs().max()))
        worst = max(worst, float((ours - theirs).abs().max()) / largest)
    return worst


def _write_preprocessor(loaded: Loaded, out: Path) -> str:
    if loaded.preprocessor is None:
        return ""
    meta, tensors = loaded.preprocessor
    path, beside = _beside(out)
    path.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, beside)
    return f", {path.name} and .safetensors"


def _beside(out: Path) -> tuple[Path, Path]:
    """The preprocessor's two files beside an ONNX file."""
    stem = out.with_suffix("")
    return Path(f"{stem}.preprocessor.json"), Path(f"{stem}.preprocessor.safetensors")


def _write_folder(net: PretrainedModel[Any], out: Path) -> None:
    """Write to a temporary name first: a folder that exists is a folder that is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        net.save_pretrained(part)
        part.chmod(0o755)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _metrics_of_run(source: Path) -> dict[str, str]:
    """Test results of the run that a checkpoint lies in, if they belong to this checkpoint."""
    file = source.parent.parent / "metrics.json"
    if source.suffix != ".ckpt" or not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if content.get("checkpoint_hash") != digest:
        return {}
    return {name: _interval(entry) for name, entry in content["metrics"].items()}


def _interval(entry: dict[str, Any]) -> str:
    value, low, high = (entry.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} (95 %: {low:.4f} to {high:.4f})"
