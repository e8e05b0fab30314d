"""Streaming gives what every window gives on its own, and encodes every segment once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.recording import Interval, RecordingInfo, Signal
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.tracks import Track, WindowSet
from manyhead.mvpformer.windows import WindowOptions
from manyhead_core.errors import ConfigError, DataError

RATE, SAMPLES = 16.0, 16


@dataclass
class Noise:
    """A prepared recording in memory that remembers the pieces that were read."""

    seconds: float
    gaps: tuple[Interval, ...] = ()
    rate: float = RATE
    channels: tuple[str, ...] = ("a", "b", "c")
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = round(self.seconds * self.rate)
        self.duration = self.samples / self.rate
        generator = np.random.default_rng(0)
        self.signal = generator.normal(0, 50, (3, self.samples)).astype(np.float32)
        self.info = RecordingInfo(
            id="noise",
            patient="p",
            path=Path("noise.edf"),
            channels=self.channels,
            rate=self.rate,
            samples=self.samples,
            gaps=self.gaps,
        )

    def read(self, start: int, stop: int) -> Signal:
        assert 0 <= start < stop <= self.samples
        self.pieces.append((start, stop))
        return self.signal[:, start:stop]


class Counting(MVPFormer):
    """Counts the segments that it encodes."""

    encoded = 0

    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        self.encoded += signal.shape[0] * signal.shape[1]
        return super().encode(signal)


def network(**changes: object) -> Counting:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "num_key_heads": 1, "hidden_dim": 16}
    config = MVPFormerConfig(segment_samples=SAMPLES, max_segments=8, **(sizes | changes))
    net = Counting(config).eval()
    # The head of a fresh network hardly tells windows apart.
    torch.nn.init.normal_(net.head.weight, std=3)
    return net


@torch.no_grad()
def one_by_one(net: MVPFormer, recording: Noise, stream: Stream) -> np.ndarray:
    """What the windows of the training data give without any memory."""
    windows = stream.windows(recording)
    samples = stream.options.segment_samples(recording.rate)
    data = WindowSet([Track(recording, "p", windows)], stream.options.num_segments, samples)
    found = []
    for number in range(len(windows)):
        batch = data.read(np.array([number]), len(recording.channels))
        found.append(net(batch.signal).logits.double().softmax(-1)[0, 1])
    return torch.stack(found).numpy()


def streamed(stream: Stream, recording: Noise, first: int = 0) -> np.ndarray:
    windows = stream.windows(recording)
    return np.concatenate(list(stream.probabilities(recording, windows, first)))


@pytest.mark.parametrize("stride", [1.0, 2.0, 0.5, 0.25, 1.5, 0.6875, 7.0])
@pytest.mark.parametrize("padding", ["repeat", "none"])
def test_equals_windows_on_their_own(stride: float, padding: str) -> None:
    recording = Noise(30.0, gaps=(Interval(11.0, 12.5), Interval(13.0, 14.0)))
    options = WindowOptions(
        num_segments=5, segment_seconds=1.0, stride_seconds=stride, padding=padding
    )
    stream = Stream(net=network(), options=options, batch_windows=3)
    found, expected = streamed(stream, recording), one_by_one(stream.net, recording, stream)
    assert found.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stride", "encoded"), [(1.0, 60), (2.0, 59), (0.5, 119)])
def test_encodes_every_segment_once(stride: float, encoded: int) -> None:
    options = WindowOptions(num_segments=5, segment_seconds=1.0, stride_seconds=stride)
    stream = Stream(net=network(), options=options)
    streamed(stream, Noise(60.0))
    # Every other second ends a window: the last segment belongs to none.
    assert stream.net.encoded == encoded


def test_holds_no_more_of_a_longer_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    from manyhead.mvpformer import stream as module

    held: list[int] = []
    keep = module._Kept.keep

    def measured(self: module._Kept, starts: np.ndarray) -> None:
        keep(self, starts)
        held.append(len(self.tokens))

    monkeypatch.setattr(module._Kept, "keep", measured)
    options = WindowOptions(num_segments=5, segment_seconds=1.0, stride_seconds=1.0)
    recording = Noise(300.0)
    streamed(Stream(net=network(), options=options, batch_windows=4), recording)
    assert max(held) == 4
    assert max(stop - start for start, stop in recording.pieces) <= 8 * SAMPLES


def test_goes_on_where_it_was_cut() -> None:
    options = WindowOptions(num_segments=5, segment_seconds=1.0, stride_seconds=0.5)
    stream, recording = Stream(net=network(), options=options), Noise(30.0)
    whole = streamed(stream, recording)
    for first in (0, 1, 13, len(whole) - 1):
        later = streamed(stream, recording, first)
        np.testing.assert_allclose(later, whole[first:], rtol=0, atol=1e-6)
    assert streamed_pieces(stream, recording, len(whole)) == 0


def streamed_pieces(stream: Stream, recording: Noise, first: int) -> int:
    return len(list(stream.probabilities(recording, stream.windows(recording), first)))


def test_orders_average_over_shuffled_channels() -> None:
    options = WindowOptions(num_segments=3, segment_seconds=1.0, stride_seconds=1.0)
    net, recording = network(), Noise(12.0)
    stream = Stream(net=net, options=options, orders=3, seed=1)
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randperm(3, generator=generator).numpy() for _ in range(2)]
    assert any(list(order) not in ([0, 1, 2], [2, 1, 0]) for order in drawn)
    expected = [one_by_one(net, recording, stream)]
    for order in drawn:
        shuffled = Noise(12.0)
        shuffled.signal = recording.signal[order]
        expected.append(one_by_one(net, shuffled, stream))
    before = net.encoded
    np.testing.assert_allclose(streamed(stream, recording), np.mean(expected, 0), rtol=0, atol=1e-6)
    assert net.encoded - before == 12


def test_places_of_the_channels_undo_their_order() -> None:
    options = WindowOptions(num_segments=2, segment_seconds=1.0, stride_seconds=1.0)
    stream, recording = Stream(net=network(), options=options, orders=2), Noise(4.0)
    windows = stream.windows(recording)
    plain, drawn = list(stream.show(recording, windows))
    assert plain.order is None
    assert not torch.equal(drawn.tokens, plain.tokens)
    torch.testing.assert_close(drawn.tokens[:, :, drawn.order], plain.tokens)


def test_takes_chosen_windows_alone() -> None:
    options = WindowOptions(num_segments=4, segment_seconds=1.0, stride_seconds=1.0)
    stream, recording = Stream(net=network(), options=options), Noise(40.0)
    windows, whole = stream.windows(recording), streamed(stream, recording)
    chosen = np.array([2, 3, 30])
    found = np.concatenate(list(stream.probabilities(recording, windows[chosen])))
    np.testing.assert_allclose(found, whole[chosen], rtol=0, atol=1e-6)


def test_a_recording_that_is_too_short_is_named() -> None:
    none = WindowOptions(num_segments=5, segment_seconds=1.0, padding="none")
    with pytest.raises(DataError, match=r"noise: no stretch of it is 5 s long.*it lasts 3 s"):
        Stream(net=network(), options=none).windows(Noise(3.0))
    padded = WindowOptions(num_segments=5, segment_seconds=1.0, stride_seconds=1.0)
    assert len(Stream(net=network(), options=padded).windows(Noise(3.0))) == 3
    with pytest.raises(ConfigError, match="orders: must be at least 1, got 0"):
        Stream(net=network(), options=padded, orders=0)
