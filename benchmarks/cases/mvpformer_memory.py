"""Peak memory of the command `predict` over recordings of different length."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Outcome, Result, Setting, Spread, Target
from benchmarks.memory import Peak, anonymous_bytes, run_fresh
from benchmarks.recordings import RATE, write_swec
from manyhead import registry
from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.predict import predict
from manyhead.mvpformer.preprocessor import SeizurePreprocessor
from manyhead_core.cli import console
from manyhead_core.errors import UserError

MODULE = "benchmarks.cases.mvpformer_memory"
MOST = 1.2
# Small, so that hours of signal take minutes: what is held does not depend on the layers.
SIZES = {"dim": 32, "num_layers": 1, "num_heads": 1, "num_key_heads": 1, "hidden_dim": 32}


def run(setting: Setting) -> Outcome:
    """Minutes against hours."""
    minutes, channels = setting.pick(((10, 60, 240), 64), ((5, 20), 16))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free, needed = shutil.disk_usage(folder).free / 1e9, _bytes(minutes[-1], channels, 2) / 1e9
        if free < needed + 1:
            raise UserError(
                f"{folder.parent}: {free:.0f} GB free, {needed + 1:.0f} GB needed; set TMPDIR to a "
                "folder on a larger disk, or use --quick"
            )
        peaks = {length: _measure(folder, length, channels) for length in minutes}
    if None in [peak.anonymous for peak in peaks.values()]:
        raise UserError("mvpformer_memory: this system does not tell anonymous memory; use Linux")
    short, long = minutes[0], minutes[-1]
    results = [
        _result(peak, length, short, peaks[short], channels) for length, peak in peaks.items()
    ]
    group = f"{long} min of {channels} channels over {short} min"
    whole = (peaks[long].anonymous or 0) / (peaks[short].anonymous or 1)
    above = _above(peaks[long]) / _above(peaks[short])
    targets = [
        Target(f"peak anonymous memory, {group}", MOST, whole, "x", at_least=False),
        Target(
            f"the same above what the process takes before any data, {group}",
            MOST, above, "x", at_least=False,
        ),
    ]  # fmt: skip
    notes = [
        "anonymous resident memory of a fresh process, sampled from outside every 5 ms, over the "
        "whole command: reading, preparing, network, tables and picture",
        f"before any data, with PyTorch imported: "
        f"{peaks[short].answer['start_bytes'] / 1e9:.2f} GB",
        f"HDF5 of 16-bit numbers at {RATE} Hz, windows of 25 x 5 s, 8 windows at a time, one layer "
        f"of width {SIZES['dim']}, one thread",
    ]
    return Outcome(results, targets, notes)


def _bytes(minutes: int, channels: int, each: int) -> int:
    return each * channels * RATE * 60 * minutes


def _above(peak: Peak) -> float:
    return (peak.anonymous or 0) - float(peak.answer["start_bytes"])


def _result(peak: Peak, minutes: int, short: int, base: Peak, channels: int) -> Result:
    extra = {
        "above_start_bytes": _above(peak),
        "signal_bytes": float(_bytes(minutes, channels, 4)),
        "seconds": peak.answer["seconds"],
    }
    ratio = Spread.of([(base.anonymous or 0) / (peak.anonymous or 1)])
    group, cost = f"predict, {channels} channels", Spread.of([peak.anonymous or 0])
    return Result(group, f"{minutes} min", f"{short} min", "bytes", cost, ratio, 1, extra)


def _measure(folder: Path, minutes: int, channels: int) -> Peak:
    root = folder / str(minutes)
    _write(root, minutes, channels)
    peak = run_fresh(f"{MODULE}:detect", {"root": str(root)})
    shutil.rmtree(root)
    return peak


def _write(root: Path, minutes: int, channels: int) -> None:
    """A recording and weights."""
    write_swec(root / "recordings", channels, minutes)
    torch.manual_seed(0)
    net = MVPFormer(MVPFormerConfig.small(**SIZES))
    net.preprocessor_state = SeizurePreprocessor().state()
    net.save_pretrained(root / "weights")


def detect(root: str) -> dict[str, Any]:
    """The command, as a user calls it."""
    torch.set_num_threads(1)
    console.set_quiet(True)
    folder, start, began = Path(root), anonymous_bytes(), time.perf_counter()
    code = predict(
        registry.get("mvpformer"), str(folder / "weights"), folder / "recordings", folder / "out"
    )
    if code:
        raise RuntimeError(f"predict ended with exit code {code}")
    return {"start_bytes": start or 0, "seconds": time.perf_counter() - began}
