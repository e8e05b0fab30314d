"""Peak memory of training on one very large slide whose features lie in a mapped file."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import Outcome, Result, Setting, Spread, Target
from benchmarks.memory import Peak, anonymous_bytes, run_fresh
from manyhead.acmil.labels import LabelOptions
from manyhead.acmil.loader import BagLoader
from manyhead.acmil.model import ACMIL, ACMILConfig
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.sources import open_source
from manyhead_core.errors import UserError

MODULE = "benchmarks.cases.acmil_memory"
LIMIT_GB = 3.0
ROWS = 10_000


def run(setting: Setting) -> Outcome:
    """One step of training on a slide of half a million patches, against a small slide."""
    small, large, width = setting.pick((50_000, 500_000, 1024), (5_000, 150_000, 96))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free, needed = shutil.disk_usage(folder).free / 1e9, 2 * width * large / 1e9 + 1
        if free < needed:
            raise UserError(
                f"{folder.parent}: {free:.0f} GB free, {needed:.0f} GB needed; set TMPDIR to a "
                "folder on a larger disk, or use --quick"
            )
        peaks = {patches: _measure(folder, patches, width) for patches in (small, large)}
    if peaks[large].anonymous is None:
        raise UserError("acmil_memory: this system does not tell anonymous memory; use Linux")
    results = [_result(patches, peak, peaks[small]) for patches, peak in peaks.items()]
    claim = f"peak anonymous memory, one slide of {large:,} patches of {width} features, one step"
    found = (peaks[large].anonymous or 0) / 1e9
    notes = [
        "anonymous resident memory of a fresh process, sampled from outside every 5 ms; pages of "
        "the mapped file are not counted, the system takes them back when it needs them",
        f"before any data, with PyTorch imported: "
        f"{peaks[large].answer['start_bytes'] / 1e9:.2f} GB",
        f"float16 features of {2 * width * large / 1e9:.1f} GB, five branches, masking on, AdamW, "
        "one thread",
    ]
    return Outcome(results, [Target(claim, LIMIT_GB, found, "GB", at_least=False)], notes)


def _result(patches: int, peak: Peak, base: Peak) -> Result:
    cost = Spread.of([peak.anonymous or 0])
    ratio = Spread.of([(base.anonymous or 0) / (peak.anonymous or 1)])
    extra = {"step_seconds": peak.answer["step_seconds"]}
    return Result("one slide, one step", f"{patches:,} patches", "", "bytes", cost, ratio, 1, extra)


def _measure(folder: Path, patches: int, width: int) -> Peak:
    root = folder / str(patches)
    run_fresh(f"{MODULE}:write", {"root": str(root), "patches": patches, "width": width})
    peak = run_fresh(f"{MODULE}:train", {"root": str(root)})
    shutil.rmtree(root)
    return peak


def write(root: str, patches: int, width: int) -> None:
    """A slide as .npy, a block at a time, and a tiny one: a network needs two classes."""
    folder = Path(root)
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    kind: dict[str, Any] = {"mode": "w+", "dtype": np.float16}
    large = np.lib.format.open_memmap(folder / "large.npy", shape=(patches, width), **kind)
    for start in range(0, patches, ROWS):
        block = generator.standard_normal((min(ROWS, patches - start), width), np.float32)
        large[start : start + ROWS] = block
    large.flush()
    np.save(folder / "small.npy", np.zeros((1, width), np.float16))
    table = pd.DataFrame({"slide_id": ["large", "small"], "label": [1, 0]})
    table.to_csv(folder / "labels.csv", index=False)


def train(root: str) -> dict[str, Any]:
    """One step: loader, forward, losses, backward, optimiser."""
    torch.set_num_threads(1)
    start = anonymous_bytes()
    folder = Path(root)
    source = open_source(folder, folder / "labels.csv", LabelOptions())
    net = ACMIL(ACMILConfig(feature_dim=source.feature_dim)).train()
    optimiser = torch.optim.AdamW(net.parameters())
    loader = BagLoader(
        source, np.array([0]), BagPreprocessor(source.feature_dim, source.class_names)
    )
    began = time.perf_counter()
    for bags in loader:
        terms = net.losses(
            net(bags.features, bags.cu_seqlens), bags.label, cu_seqlens=bags.cu_seqlens
        )
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    return {"start_bytes": start or 0, "step_seconds": time.perf_counter() - began}
