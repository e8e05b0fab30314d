"""Streaming a recording through MVPFormer: tokens kept from window to window, and computed anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Outcome, Result, Setting, Target, Variant, compare_work, find
from benchmarks.recordings import prepared, window_set
from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.preparing import Prepared
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.tracks import WindowSet
from manyhead.mvpformer.windows import WindowOptions

ANEW, LIVE, FILE = "every window anew", "kept, window by window", "kept, 8 windows at a time"
AT_A_TIME = {LIVE: 1, FILE: 8}
LEAST = 15
# Float32 rounds differently in products of different sizes.
CLOSE = 1e-4
SMALL = {"dim": 96, "num_layers": 2, "num_heads": 4, "num_key_heads": 2, "hidden_dim": 192}


@dataclass(frozen=True)
class Work:
    """A network before a recording.

    Args:
        net: The network.
        recording: The recording.
        options: How windows are laid.
        windows: The same windows, each read on its own.
        device: Where the network runs.
    """

    net: MVPFormer
    recording: Prepared
    options: WindowOptions
    windows: WindowSet
    device: torch.device

    def stream(self, at_a_time: int) -> Stream:
        """As the command `predict` streams."""
        return Stream(net=self.net, options=self.options, batch_windows=at_a_time)

    def tokens(self, at_a_time: int) -> Iterator[Tensor]:
        """Tokens of all windows, each segment encoded once."""
        stream = self.stream(at_a_time)
        for _, found in stream.tokens(self.recording, self.windows.tracks[0].windows):
            yield from found

    @torch.inference_mode()
    def encode(self, number: int) -> Tensor:
        """Tokens of a window, all of its segments encoded but repetitions of the first."""
        signal = self.windows.read(np.array([number]), len(self.recording.channels)).signal
        padded = int(self.windows.tracks[0].windows.padded[number])
        found = self.net.encode(signal[:, padded:].to(self.device))
        return torch.cat([found[:, :1].expand(-1, padded, -1, -1), found], 1)[0]

    @torch.inference_mode()
    def look(self, number: int) -> Tensor:
        """Logits of a window on its own."""
        logits: Tensor = self.net(tokens=self.encode(number)[None]).logits
        return logits


def run(setting: Setting) -> Outcome:
    """Encoder alone over the whole recording, the whole model over a few windows."""
    work = _work(setting)
    count, channels = len(work.windows), len(work.recording.channels)
    shape = (
        f"{work.recording.duration:g} s of {channels} channels, windows of "
        f"{work.options.num_segments} x {work.options.segment_seconds:g} s, stride "
        f"{work.options.stride_seconds:g} s"
    )
    group = f"encoder, {shape}"
    results = compare_work(
        group,
        [
            Variant(ANEW, partial(_encode_all, work)),
            *(Variant(name, partial(_stream_all, work, k)) for name, k in AT_A_TIME.items()),
        ],
        setting,
        unit="window",
    )
    targets = [
        Target(f"{name}, encoder of {count} windows", LEAST, _ratio(results, group, name), "x")
        for name in AT_A_TIME
    ]
    claim = "largest difference of the tokens of all windows"
    targets.append(Target(claim, CLOSE, _difference(work), at_least=False))
    whole, differs = _whole(work, setting, f"whole model, {shape}")
    claim = "largest difference of the logits of the windows looked at"
    targets.append(Target(claim, CLOSE, differs, at_least=False))
    return Outcome(results + whole, targets, _notes(work, setting))


def _notes(work: Work, setting: Setting) -> list[str]:
    weights = sum(p.numel() for p in work.net.parameters()) / 1e6
    return [
        f"size {setting.pick('S', 'smaller than S')}: width {work.net.config.dim}, "
        f"{work.net.config.num_layers} layers, {weights:.3g} M random weights; noise of 50 µV in "
        "memory, reading and cutting it is timed too",
        f"by the count of segments alone the ratio of the encoder is {_count(work):.3g}: windows "
        "at the start repeat their first segment, which the baseline encodes once a window",
        "whole model: one window at a time in the middle of the recording, when the kept tokens "
        f"are all there; {_rounds(setting)} windows each; no target, since the trunk, which looks "
        "at every window anew, takes nearly all of it",
    ]


def _count(work: Work) -> float:
    """Segments that the baseline encodes for each one of the recording."""
    segments, padded = work.options.num_segments, work.windows.tracks[0].windows.padded
    return float((segments - padded).sum()) * work.options.segment_seconds / work.recording.duration


def _work(setting: Setting) -> Work:
    seconds, channels, segments = setting.pick((300.0, 64, 25), (60.0, 8, 6))
    torch.manual_seed(0)
    net = MVPFormer(MVPFormerConfig.small(**setting.pick({}, SMALL))).to(setting.device).eval()
    recording = prepared(channels, seconds)
    options = WindowOptions(num_segments=segments)
    return Work(net, recording, options, window_set(recording, options), setting.device)


def _ratio(results: list[Result], group: str, name: str) -> float:
    return find(results, group, name).ratio.median


def _encode_all(work: Work) -> int:
    for number in range(len(work.windows)):
        work.encode(number)
    return len(work.windows)


def _stream_all(work: Work, at_a_time: int) -> int:
    return sum(1 for _ in work.tokens(at_a_time))


def _difference(work: Work) -> float:
    pairs = enumerate(work.tokens(AT_A_TIME[FILE]))
    return max(float((kept - work.encode(k)).abs().max()) for k, kept in pairs)


def _rounds(setting: Setting) -> int:
    return setting.pick(3, 2)


def _whole(work: Work, setting: Setting, group: str) -> tuple[list[Result], float]:
    """Results, and the largest difference of the logits."""
    # The first call, which warms up, fills the kept tokens.
    first = work.options.num_segments - 1
    numbers = range(first, first + _rounds(setting) + 1)
    found: dict[str, list[Tensor]] = {ANEW: [], LIVE: []}
    chosen = work.windows.tracks[0].windows[slice(first, None)]
    streamed = (output.logits for output in work.stream(1).look(work.recording, chosen))
    anew = (work.look(number) for number in cycle(numbers))

    def one(name: str, logits: Iterator[Tensor]) -> int:
        found[name].append(next(logits))
        return 1

    variants = [
        Variant(ANEW, partial(one, ANEW, anew)),
        Variant(LIVE, partial(one, LIVE, streamed)),
    ]
    results = compare_work(group, variants, setting, unit="window", repeats=_rounds(setting))
    pairs = zip(found[ANEW], found[LIVE], strict=True)
    return results, max(float((a - b).abs().max()) for a, b in pairs)
