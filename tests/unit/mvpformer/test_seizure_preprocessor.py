"""What is kept with the weights comes back equal, through JSON."""

from __future__ import annotations

import json

import pytest

from manyhead.mvpformer.events.postprocess import PostOptions
from manyhead.mvpformer.preparing import ChannelContract, PrepareOptions
from manyhead.mvpformer.preprocessor import FORMAT, SeizurePreprocessor
from manyhead.mvpformer.windows import WindowOptions
from manyhead_core.errors import WeightsError

FULL = SeizurePreprocessor(
    windows=WindowOptions(num_segments=12, segment_seconds=2.5, padding="none"),
    prepare=PrepareOptions(rate=256.0, notch=50.0, band=(0.5, 100.0), channels="A1,A2"),
    post=PostOptions(median=5, merge_s=10.0),
    contract=ChannelContract(names=("A1", "A2"), count=(2, 2), rate=256.0),
)


@pytest.mark.parametrize("preprocessor", [FULL, SeizurePreprocessor()])
def test_round_trip_through_json(preprocessor: SeizurePreprocessor) -> None:
    meta, tensors = preprocessor.state()
    assert tensors == {}
    stored = json.loads(json.dumps(meta))
    # Checkpoints compare the stored with the current state.
    assert stored == meta
    assert SeizurePreprocessor.from_state(stored, {}) == preprocessor


def test_samples_of_a_segment() -> None:
    assert FULL.segment_samples == 640
    assert SeizurePreprocessor().segment_samples == 2560


def test_a_newer_format_is_refused() -> None:
    meta, _ = FULL.state()
    with pytest.raises(WeightsError, match=r"format 2, this version reads up to 1; update"):
        SeizurePreprocessor.from_state(meta | {"format": FORMAT + 1}, {})


def test_a_damaged_one_is_refused() -> None:
    meta, _ = FULL.state()
    for broken in ({k: v for k, v in meta.items() if k != "windows"}, meta | {"post": {"x": 1}}):
        with pytest.raises(WeightsError, match="the preprocessor is damaged"):
            SeizurePreprocessor.from_state(broken, {})
