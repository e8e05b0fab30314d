"""Training fed by the loader against the same steps on batches that already lie in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks.harness import Outcome, Setting, Target, Variant, compare_work, find
from benchmarks.recordings import window_set, write_swec
from manyhead.mvpformer.loader import WindowLoader
from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.preparing import PrepareOptions, open_prepared
from manyhead.mvpformer.readers import ReadOptions, find_recordings, open_recording
from manyhead.mvpformer.sampling import SamplingOptions
from manyhead.mvpformer.tracks import Readable, WindowBatch
from manyhead.mvpformer.windows import WindowOptions

STAGED, KEPT, ANEW = "staged batches", "loader, prepared once", "loader, from the recording"
BATCH = 4
# A small network asks for the next batch soon; a large one hides any loader.
SIZES = {"dim": 64, "num_layers": 2, "num_heads": 4, "num_key_heads": 2, "hidden_dim": 128}


def run(setting: Setting) -> Outcome:
    """Steps per second of a small MVPFormer."""
    minutes, channels, count = setting.pick((20, 32, 8), (5, 8, 3))
    options = WindowOptions()
    group = (
        f"training step, {BATCH} windows of {options.num_segments} x "
        f"{options.segment_seconds:g} s, {channels} channels"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_swec(folder / "recordings", channels, minutes)
        kept, anew = _signals(folder)
        staged = list(islice(_batches(kept, options, setting), count))
        variants = [
            _variant(STAGED, _again(staged), count, setting),
            _variant(KEPT, _batches(kept, options, setting), count, setting),
            _variant(ANEW, _batches(anew, options, setting), count, setting),
        ]
        results = compare_work(group, variants, setting, unit="step")
    target = Target(f"{KEPT} against {STAGED}", 0.9, find(results, group, KEPT).ratio.median, "x")
    notes = [
        f"{count} steps a repeat, {SIZES['num_layers']} layers of width {SIZES['dim']}, AdamW",
        f"{KEPT}: read from a mapped file; {ANEW}: from HDF5 of 16-bit numbers, without a cache, "
        "so that overlapping windows are read and prepared again each time; no target",
        "batches are read by one thread beside the training",
    ]
    return Outcome(results, [target], notes)


def _signals(folder: Path) -> tuple[Readable, Readable]:
    """The recording prepared once into a file, and prepared whenever it is read."""
    source = find_recordings(folder / "recordings", "swec")[0]
    places = (folder / "cache", None)
    recordings = [open_recording(source, ReadOptions()) for _ in places]
    pairs = zip(recordings, places, strict=True)
    kept, anew = (open_prepared(recording, PrepareOptions(), place) for recording, place in pairs)
    return kept, anew


def _variant(name: str, batches: Iterator[WindowBatch], count: int, setting: Setting) -> Variant:
    torch.manual_seed(0)
    net = MVPFormer(MVPFormerConfig.small(**SIZES)).to(setting.device).train()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)

    def call() -> int:
        for batch in islice(batches, count):
            _train(net, optimiser, batch, setting.device)
        return count

    return Variant(name, call)


def _train(net: nn.Module, optimiser: Optimizer, batch: WindowBatch, device: torch.device) -> None:
    signal, label = (part.to(device, non_blocking=True) for part in batch[:2])
    optimiser.zero_grad(set_to_none=True)
    cross_entropy(net(signal).logits, label).backward()
    optimiser.step()


def _batches(
    recording: Readable, options: WindowOptions, setting: Setting
) -> Iterator[WindowBatch]:
    """Epoch after epoch; no repeat then pays for the start of one."""
    windows = window_set(recording, options)
    loader = WindowLoader(
        windows,
        windows.of([0]),
        sampling=SamplingOptions(batch_windows=BATCH),
        pin_memory=setting.device.type == "cuda",
    )
    while True:
        yield from loader


def _again(batches: Iterable[WindowBatch]) -> Iterator[WindowBatch]:
    while True:
        yield from batches
