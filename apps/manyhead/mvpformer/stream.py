"""Windows of a long recording one after the other, every segment encoded once.

Overlapping windows share segments, and a token depends on its own segment alone. So the tokens of
the segments that later windows need again are kept, and only those of new segments are computed.
Windows whose begins differ by no whole number of segments share nothing; their tokens are kept side
by side. Nothing but these tokens and one piece of signal is held, however long the recording is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from manyhead.mvpformer.tracks import Readable
from manyhead.mvpformer.windows import WindowOptions, Windows, index_windows
from manyhead_core.errors import ConfigError, DataError

Starts = npt.NDArray[np.int64]
# Segments that are encoded at a time; wavelets need a few times their signal.
ENCODED_AT_ONCE = 32


class Shown(NamedTuple):
    """Windows as the network is given them.

    Args:
        number: Of each window, `(windows,)`.
        tokens: `(windows, segments, channels, ...)`.
        order: Place of each channel of the recording among those of the tokens, `(channels,)`;
            None where they stand in the order of the recording.
    """

    number: Starts
    tokens: Tensor
    order: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Looks at windows in the order of time.

    Args:
        net: Any network with `encode(signal)` and `forward(tokens=...)`, in evaluation mode.
        options: How the windows are laid.
        batch_windows: Most windows that the network is given at a time.
        orders: Orders of the channels in which every window is looked at: that of the recording,
            and so many less one drawn at random. For recordings whose order means nothing the mean
            of the probabilities depends less on it.
        seed: Of the orders.

    Raises:
        ConfigError: A number is below 1.
    """

    net: nn.Module
    options: WindowOptions
    batch_windows: int = 8
    orders: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_windows", "orders"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")

    def windows(self, recording: Readable) -> Windows:
        """All windows of a recording; none reaches across a gap.

        Args:
            recording: The prepared recording.

        Raises:
            DataError: Not one fits.
        """
        info, options = recording.info, self.options
        duration = recording.samples / recording.rate
        found = index_windows(duration, info.seizures or (), info.gaps, options)
        if not len(found):
            needed = options.segment_seconds if options.pads else options.seconds
            raise DataError(
                f"{info.id}: no stretch of it is {needed:g} s long, which the network needs; "
                f"it lasts {duration:.3g} s"
            )
        return found

    def probabilities(
        self, recording: Readable, windows: Windows, first: int = 0
    ) -> Iterator[npt.NDArray[np.float64]]:
        """Probability of a seizure in the newest segments of the next windows, `(next windows,)`.

        Args:
            recording: The prepared recording.
            windows: All of its windows.
            first: Window to begin with, for a start that goes on where one was cut.
        """
        sums: npt.NDArray[np.float64] = np.zeros(0)
        for place, output in enumerate(self.look(recording, windows[first:])):
            found = output.logits.double().softmax(-1)[:, 1].cpu().numpy()
            sums = found if place % self.orders == 0 else sums + found
            if (place + 1) % self.orders == 0:
                yield sums / self.orders

    @torch.inference_mode()
    def look(self, recording: Readable, windows: Windows) -> Iterator[Any]:
        """What the network gives for windows: for each batch one output per order.

        Args:
            recording: The prepared recording.
            windows: In the order of time, all or some of a recording.
        """
        for shown in self.show(recording, windows):
            yield self.net(tokens=shown.tokens)

    @torch.inference_mode()
    def show(self, recording: Readable, windows: Windows) -> Iterator[Shown]:
        """Tokens of windows: each batch in all orders of the channels.

        Args:
            recording: The prepared recording.
            windows: In the order of time, all or some of a recording.
        """
        orders = self._orders(len(recording.channels))
        for number, tokens in self.tokens(recording, windows):
            for order in orders:
                if order is None:
                    yield Shown(number, tokens, None)
                else:
                    yield Shown(number, tokens[:, :, order], order.argsort())

    @torch.inference_mode()
    def tokens(self, recording: Readable, windows: Windows) -> Iterator[tuple[Starts, Tensor]]:
        """Numbers of windows and their tokens, `(batch, segments, channels, ...)`.

        Args:
            recording: The prepared recording.
            windows: In the order of time.
        """
        starts = segment_starts(windows, self.options, recording.rate)
        kept = _Kept(self.net, recording, self.options.segment_samples(recording.rate))
        for begin in range(0, len(windows), self.batch_windows):
            end = min(begin + self.batch_windows, len(windows))
            yield np.arange(begin, end), kept.take(starts.of(begin, end))
            kept.keep(starts.after(end, kept.newest))

    def _orders(self, channels: int) -> list[Tensor | None]:
        device = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randperm(channels, generator=generator) for _ in range(self.orders - 1)]
        return [None, *(order.to(device) for order in drawn)]


@dataclass(frozen=True)
class SegmentStarts:
    """First samples of the segments of windows, computed for a few windows at a time.

    Args:
        begin: Of each window, in samples, `(windows,)`.
        padded: Segments on its left that repeat the next one, `(windows,)`.
        segments: Segments of a window.
        samples: Samples of a segment.
    """

    begin: Starts
    padded: Starts
    segments: int
    samples: int

    def of(self, begin: int, end: int) -> Starts:
        """`(windows, segments)`.

        Args:
            begin: First window.
            end: Window after the last.
        """
        place = np.arange(self.segments)
        real = np.maximum(place, self.padded[begin:end, None])
        found: Starts = self.begin[begin:end, None] + real * self.samples
        return found

    def after(self, end: int, newest: int) -> Starts:
        """Those up to a sample that the windows from `end` on need.

        Args:
            end: First window to come.
            newest: Sample.
        """
        last = end + int(np.searchsorted(self.oldest[end:], newest, side="right"))
        return np.unique(self.of(end, last))

    @cached_property
    def oldest(self) -> Starts:
        """First sample that each window or a later one needs, `(windows,)`."""
        # A padded window may begin its signal after the window that follows.
        first = self.begin + self.padded * self.samples
        found: Starts = np.minimum.accumulate(first[::-1])[::-1]
        return found


def segment_starts(windows: Windows, options: WindowOptions, rate: float) -> SegmentStarts:
    """First samples of the segments of windows.

    Args:
        windows: In the order of time.
        options: How they were laid.
        rate: Samples per second, Hz.
    """
    begin = np.rint(windows.start * rate).astype(np.int64)
    return SegmentStarts(begin, windows.padded, options.num_segments, options.segment_samples(rate))


class _Kept:
    """Tokens by the first sample of their segment."""

    def __init__(self, net: nn.Module, recording: Readable, samples: int) -> None:
        self.net: Any = net
        self.recording, self.samples = recording, samples
        self.device = next((p.device for p in net.parameters()), torch.device("cpu"))
        self.starts: Starts = np.zeros(0, np.int64)
        self.tokens: Tensor | None = None

    @property
    def newest(self) -> int:
        """First sample of the newest segment."""
        return int(self.starts[-1])

    def take(self, starts: Starts) -> Tensor:
        """Tokens of segments, `(*starts.shape, channels, ...)`."""
        self._add(np.setdiff1d(starts, self.starts))
        assert self.tokens is not None  # noqa: S101 - just added
        row = np.searchsorted(self.starts, starts).ravel()
        if (np.diff(row) == 1).all():
            # Copying the tokens of a window takes as long as encoding a new segment.
            found = self.tokens[row[0] : row[-1] + 1]
        else:
            found = self.tokens[torch.from_numpy(row).to(self.device)]
        return found.view(*starts.shape, *found.shape[1:])

    def keep(self, starts: Starts) -> None:
        """Forget all tokens but those of `starts`."""
        kept = np.isin(self.starts, starts)
        if self.tokens is None or kept.all():
            return
        first = len(kept) - int(kept.sum())
        if kept[first:].all():
            # The memory goes when the next segments are put behind what is left.
            self.tokens, self.starts = self.tokens[first:], self.starts[first:]
        else:
            self.tokens = self.tokens[torch.from_numpy(kept).to(self.device)]
            self.starts = self.starts[kept]

    def _add(self, new: Starts) -> None:
        if not len(new):
            return
        found = [self._encode(piece) for piece in self._pieces(new)]
        before = [] if self.tokens is None else [self.tokens]
        starts = np.concatenate([self.starts, new])
        order = np.argsort(starts)
        tokens = torch.cat([*before, *found])
        # Time goes on: what is new comes last, but for strides that fall between segments.
        sorted_already = bool((order[1:] > order[:-1]).all())
        self.tokens = tokens if sorted_already else tokens[torch.from_numpy(order).to(self.device)]
        self.starts = starts[order]

    def _pieces(self, new: Starts) -> Iterator[Starts]:
        """Segments that are read together: neighbours, and not too long a stretch."""
        longest = ENCODED_AT_ONCE * self.samples
        first = 0
        for k in range(1, len(new) + 1):
            ends = k == len(new) or (
                new[k] - new[k - 1] > self.samples
                or new[k] + self.samples - new[first] > longest
                or k - first >= ENCODED_AT_ONCE
            )
            if ends:
                yield new[first:k]
                first = k

    def _encode(self, starts: Starts) -> Tensor:
        """Tokens of a piece, `(segments, channels, ...)`."""
        begin = int(starts[0])
        signal = self.recording.read(begin, int(starts[-1]) + self.samples)
        segments = segments_of(signal, (starts - begin).tolist(), self.samples)
        found: Tensor = self.net.encode(torch.from_numpy(segments)[None].to(self.device))
        return found[0]


def segments_of(
    signal: npt.NDArray[np.float32], begins: Sequence[int], samples: int
) -> npt.NDArray[np.float32]:
    """Segments of a signal, `(segments, channels, samples)`.

    Args:
        signal: `(channels, samples of the piece)`.
        begins: First sample of each segment within the piece.
        samples: Samples of a segment.
    """
    return np.stack([signal[:, begin : begin + samples] for begin in begins])
