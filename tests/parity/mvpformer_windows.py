"""Windows of a real recording against those of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comparison import Reference

pytest.importorskip("h5py", reason="needs the extra ieeg")

from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.readers import find_recordings, open_recording
from manyhead.mvpformer.tracks import Track, WindowSet
from manyhead.mvpformer.windows import WindowOptions, index_windows

HEAD = 64


def replay_windows(reference: Reference) -> None:
    """Starts and labels exact, the signal of the first window to float32."""
    config = reference.config
    assert not config["slowdown"]
    path = reference.data_file(config["recording"])
    (source,) = find_recordings(path.parent)
    rate = float(config["target_rate"])
    prepared = Prepared(open_recording(source), PrepareOptions(rate=rate, mode="reference"))
    sizes = {
        "num_segments": config["segments"],
        "segment_seconds": config["segment_ms"] / 1000,
        "stride_seconds": config["stride_ms"] / 1000,
    }
    options = WindowOptions(**sizes, mode="reference")
    info = prepared.info
    windows = index_windows(prepared.duration, info.seizures or (), info.gaps, options)
    found = {
        "index": torch.arange(len(windows)),
        "begin_seconds": torch.from_numpy(windows.start),
        "label": torch.from_numpy(windows.label),
    }
    for name, ours in found.items():
        reference.compared.add(f"output/{name}")
        assert torch.equal(ours, reference.tensors[f"output/{name}"]), f"{name} differs"
    track = Track(prepared, source.patient, windows)
    all_of_it = WindowSet([track], options.num_segments, options.segment_samples(rate))
    signal = all_of_it.read(np.zeros(1, np.int64), len(prepared.channels)).signal[0]
    reference.output("first_window_head", signal[..., :HEAD])
    reference.output("first_window_abs_mean", signal.double().abs().mean(-1))
    reference.assert_complete("output")
    everything = index_windows(
        prepared.duration, info.seizures or (), (), WindowOptions(**sizes, padding="none")
    )
    assert len(everything) == len(windows) + options.num_segments
    assert torch.equal(torch.from_numpy(everything.start)[: len(windows)], found["begin_seconds"])
    assert torch.equal(torch.from_numpy(everything.label)[: len(windows)], found["label"])
