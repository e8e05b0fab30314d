"""Batches of windows: right samples, one patient, balanced, resumable, shared by processes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from fake_recordings import RATE, FakeRecording, fake

from manyhead.mvpformer.loader import WindowLoader
from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.sampling import Sampler, SamplingOptions, in_order
from manyhead.mvpformer.signals import LazySignal
from manyhead.mvpformer.tracks import Track, WindowBatch, WindowSet
from manyhead.mvpformer.windows import WindowOptions, index_windows
from manyhead_core.errors import ConfigError, DataError

LAYOUT = WindowOptions(num_segments=3, segment_seconds=2, stride_seconds=2)
SAMPLES = 32


def track_of(recording: FakeRecording, layout: WindowOptions = LAYOUT) -> Track:
    info = recording.info
    signal = LazySignal(recording, PrepareOptions(rate=RATE), "memory")
    windows = index_windows(signal.duration, info.seizures or (), info.gaps, layout)
    return Track(signal, info.patient, windows)


@pytest.fixture
def windows() -> WindowSet:
    """Three patients, of whom the first has two recordings and most have a seizure."""
    recordings = [
        fake("a1", "a", channels=3, seizures=[(10.0, 13.0)]),
        fake("b1", "b", channels=5, seconds=60.0, seizures=[(31.0, 35.0)]),
        fake("a2", "a", channels=2, seconds=20.0),
        fake("c1", "c", channels=4, seconds=30.0),
    ]
    return WindowSet([track_of(r) for r in recordings], 3, SAMPLES)


def all_numbers(windows: WindowSet) -> np.ndarray:
    return np.arange(len(windows))


def drawn(loader: WindowLoader) -> list[list[int]]:
    return [batch.number.tolist() for batch in loader]


def same(ours: list[WindowBatch], theirs: list[WindowBatch]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def test_numbers_run_through_the_recordings(windows: WindowSet) -> None:
    assert [len(t.windows) for t in windows.tracks] == [20, 30, 10, 15]
    assert windows.of([0, 2]).tolist() == [*range(20), *range(50, 60)]
    assert windows.local[[0, 19, 20, 50]].tolist() == [0, 19, 0, 0]
    assert windows.patient[[0, 20, 50, 60]].tolist() == [0, 1, 0, 2]
    # A step that ends where a seizure begins counts.
    assert windows.label.sum() == 3 + 3


def test_a_window_holds_the_samples_of_its_segments(windows: WindowSet) -> None:
    batch = windows.read(np.array([5]), 3)
    assert batch.signal.shape == (1, 3, 3, SAMPLES)
    assert batch.signal.dtype == torch.float32
    # Window 5 of the recording begins at 6 s, since two padded ones come first.
    for segment in range(3):
        for channel in range(3):
            begin = 1000 * channel + (6 + 2 * segment) * 16
            expected = torch.arange(begin, begin + SAMPLES).float()
            assert torch.equal(batch.signal[0, segment, channel], expected)


def test_padded_segments_repeat_the_first(windows: WindowSet) -> None:
    signal = windows.read(np.array([0, 1, 2]), 3).signal
    first = signal[2, 0]
    assert [int(s[0, 0]) for s in signal[2]] == [0, 32, 64]
    assert all(torch.equal(segment, first) for segment in (*signal[0], *signal[1, :2]))
    assert torch.equal(signal[1, 2], signal[2, 1])


def test_gaps_are_never_read() -> None:
    track = track_of(fake("a", "a", seconds=40.0, gaps=[(11.0, 20.5)]))
    read = WindowSet([track], 3, SAMPLES).read(np.arange(len(track.windows)), 3)
    samples = read.signal[:, :, 0] / 16
    assert len(track.windows) == 5 + 9
    assert ((samples < 11.0) | (samples >= 20.5)).all()


def test_a_start_between_two_samples_takes_the_nearest() -> None:
    layout = WindowOptions(num_segments=2, segment_seconds=2, stride_seconds=0.7, padding="none")
    track = track_of(fake("a", "a", seconds=10.0), layout)
    read = WindowSet([track], 2, SAMPLES).read(np.arange(len(track.windows)), 1)
    begins = read.signal[:, 0, 0, 0].tolist()
    assert begins == [round(0.7 * k * 16) for k in range(len(begins))]
    assert len(begins) == 9


def test_evaluation_batches_are_of_one_recording_in_order(windows: WindowSet) -> None:
    loader = WindowLoader(windows, windows.of([0, 2]), batch_windows=8)
    batches = drawn(loader)
    assert [len(batch) for batch in batches] == [8, 8, 4, 8, 2]
    assert [n for batch in batches for n in batch] == windows.of([0, 2]).tolist()
    assert drawn(loader) == batches
    assert len(loader) == 5


def test_evaluation_shares_batches_among_processes(windows: WindowSet) -> None:
    loaders = [
        WindowLoader(windows, all_numbers(windows), batch_windows=8, rank=rank, world_size=2)
        for rank in range(2)
    ]
    batches = [drawn(loader) for loader in loaders]
    assert [len(b) for b in batches] == [len(loader) for loader in loaders]
    assert sorted(n for own in batches for b in own for n in b) == list(range(75))


def test_a_training_epoch_meets_every_window_once_patient_by_patient(windows: WindowSet) -> None:
    loader = WindowLoader(windows, all_numbers(windows), sampling=SamplingOptions(batch_windows=8))
    batches = list(loader)
    assert len(batches) == len(loader) == 4 + 4 + 2
    assert sorted(n for b in batches for n in b.number.tolist()) == list(range(75))
    for batch in batches:
        assert len(set(windows.patient[batch.number])) == 1
        # The recordings of the first patient have 3 and 2 channels.
        assert batch.signal.shape[2] == min(windows.channels(batch.number.numpy()))
        assert torch.equal(batch.label, torch.from_numpy(windows.label)[batch.number])
    assert {len(b.number) for b in batches} == {7, 8}


def test_the_smallest_count_of_neighbouring_channels_is_taken(windows: WindowSet) -> None:
    options = SamplingOptions(batch_windows=12, patients_per_batch=3, batches_per_epoch=30)
    firsts = set()
    for batch in WindowLoader(windows, all_numbers(windows), sampling=options):
        counts = windows.channels(batch.number.numpy())
        assert batch.signal.shape[2] == min(counts)
        channel = batch.signal[..., 0].div(1000, rounding_mode="floor")
        assert (channel.diff(dim=2) == 1).all()
        assert (channel[:, 0, -1] < torch.tensor(counts)).all()
        firsts |= set(channel[:, 0, 0].tolist())
    assert firsts == {0, 1, 2, 3}


def test_patients_are_mixed_while_there_are_enough(windows: WindowSet) -> None:
    options = SamplingOptions(batch_windows=6, patients_per_batch=3)
    numbers = all_numbers(windows)
    sampler = Sampler(numbers, windows.label, windows.patient, options)
    mixed = Counter(len(set(windows.patient[batch])) for batch in sampler.epoch(0))
    # The smallest patient has 15 windows, which are 8 shares of at most 2.
    assert mixed[3] == 8
    assert sorted(n for batch in sampler.epoch(0) for n in batch) == numbers.tolist()


def test_channels_are_capped_in_training_only(windows: WindowSet) -> None:
    numbers = windows.of([1])
    training = WindowLoader(windows, numbers, sampling=SamplingOptions(), train_channels=2)
    counts = {batch.signal.shape[2] for batch in training}
    assert counts == {2}
    assert next(iter(WindowLoader(windows, numbers, train_channels=2))).signal.shape[2] == 5


def test_balanced_batches_hold_as_many_of_both_classes(windows: WindowSet) -> None:
    options = SamplingOptions(batch_windows=8, balanced=True, batches_per_epoch=200)
    sampler = Sampler(all_numbers(windows), windows.label, windows.patient, options)
    label = windows.label[np.concatenate(sampler.epoch(0))]
    assert label.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("count", [1, 4, 37])
def test_an_epoch_has_as_many_batches_as_asked_for(windows: WindowSet, count: int) -> None:
    options = SamplingOptions(batches_per_epoch=count)
    loader = WindowLoader(windows, all_numbers(windows), sampling=options)
    assert len(loader) == len(drawn(loader)) == len(drawn(loader)) == count


@pytest.mark.parametrize("balanced", [False, True])
def test_every_epoch_is_drawn_anew_and_has_as_many_batches(
    windows: WindowSet, balanced: bool
) -> None:
    options = SamplingOptions(balanced=balanced)
    epochs = [
        drawn(loader)
        for loader in [WindowLoader(windows, all_numbers(windows), sampling=options)]
        for _ in range(4)
    ]
    assert {len(epoch) for epoch in epochs} == {len(epochs[0])}
    assert all(first != second for first, second in pairwise(epochs))


@pytest.mark.parametrize("stop", [1, 7, 10])
def test_a_resumed_loader_meets_the_batches_it_would_have_met(
    windows: WindowSet, stop: int
) -> None:
    def fresh() -> WindowLoader:
        options = SamplingOptions(batch_windows=8)
        return WindowLoader(
            windows, all_numbers(windows), sampling=options, train_channels=2, seed=3
        )

    whole = fresh()
    expected = [batch for _ in range(2) for batch in whole]
    cut = fresh()
    pieces = iter(cut)
    first = [next(pieces) for _ in range(stop)]
    resumed = fresh()
    resumed.load_state_dict(cut.state_dict())
    rest = [batch for _ in range(2) for batch in resumed]
    assert same(expected[:stop], first)
    assert same(expected[stop:20], rest[: 20 - stop])


def test_processes_take_as_many_steps_of_different_windows(windows: WindowSet) -> None:
    options = SamplingOptions(batch_windows=8)
    loaders = [
        WindowLoader(windows, all_numbers(windows), sampling=options, rank=rank, world_size=3)
        for rank in range(3)
    ]
    batches = [drawn(loader) for loader in loaders]
    assert [len(own) for own in batches] == [3, 3, 3]
    seen = [n for own in batches for batch in own for n in batch]
    assert len(seen) == len(set(seen))


def test_too_few_batches_for_the_processes_are_refused(windows: WindowSet) -> None:
    with pytest.raises(DataError, match="2 training batches are too few for 3 processes"):
        WindowLoader(
            windows,
            windows.of([2]),
            sampling=SamplingOptions(),
            world_size=3,
        )


def test_a_failing_reader_ends_the_epoch(
    windows: WindowSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(start: int, stop: int) -> None:
        raise DataError("a1: damaged")

    monkeypatch.setattr(windows.tracks[0].signal, "read", fail)
    with pytest.raises(DataError, match="a1: damaged"):
        list(WindowLoader(windows, windows.of([0])))


def test_the_file_is_closed_once_its_signal_is_kept() -> None:
    recording = fake("a", "a")
    windows = WindowSet([track_of(recording)], 3, SAMPLES)
    assert not recording.closed
    windows.read(np.array([3]), 3)
    assert recording.closed


def test_a_part_without_windows_has_no_batches() -> None:
    nothing = np.zeros(0, np.int64)
    assert in_order(nothing, nothing, 4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_windows": 0}, "data.batch_windows: must be at least 1, got 0"),
        ({"patients_per_batch": 3}, "3 does not divide data.batch_windows 8"),
        ({"batches_per_epoch": -1}, "data.batches_per_epoch"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingOptions(**options)  # type: ignore[arg-type]
