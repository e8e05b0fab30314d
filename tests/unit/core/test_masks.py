"""What each mask allows, stated a second time in plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead_core.attention import attend
from manyhead_core.attention.masks import (
    Causal,
    Dense,
    KeyPadding,
    Mask,
    NotId,
    Prefix,
    SameId,
    Shape,
    SlidingWindow,
    Window2D,
)
from manyhead_core.errors import ConfigError


def dense(mask: Mask, queries: int, keys: int, batch: int = 2, heads: int = 3) -> torch.Tensor:
    shape = Shape(batch, heads, queries, keys, torch.device("cpu"))
    return mask.dense(shape).expand(batch, heads, queries, keys)


@settings(deadline=None, max_examples=25)
@given(queries=st.integers(1, 7), keys=st.integers(1, 7), left=st.integers(0, 3))
def test_positions_follow_the_alignment(queries: int, keys: int, left: int) -> None:
    for align, offset in (("lower_right", keys - queries), ("upper_left", 0)):
        causal = dense(Causal(align), queries, keys)
        window = dense(SlidingWindow(left, 1, align), queries, keys)
        for i in range(queries):
            for j in range(keys):
                assert causal[0, 0, i, j] == (j <= i + offset)
                assert window[0, 0, i, j] == (i + offset - left <= j <= i + offset + 1)


def test_both_alignments_agree_for_as_many_queries_as_keys() -> None:
    assert torch.equal(dense(Causal(), 5, 5), dense(Causal("upper_left"), 5, 5))


def test_causality_is_inherited_by_combinations() -> None:
    padding = KeyPadding(torch.tensor([3, 1]))
    assert (Causal() & padding).causal
    assert not (Causal() | padding).causal
    assert (Causal() | SlidingWindow(2, 0)).causal
    assert not SlidingWindow(2, 1).causal


def test_padding_takes_lengths_or_flags() -> None:
    lengths = dense(KeyPadding(torch.tensor([3, 0])), 2, 4)
    flags = dense(KeyPadding(torch.tensor([[True, True, True, False], [False] * 4])), 2, 4)
    assert torch.equal(lengths, flags)
    assert lengths[0, 0, 0].tolist() == [True, True, True, False]


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_neighbourhoods_clip_or_shift_at_the_border(size: int, dilation: int) -> None:
    height, width = 6, 7
    reach = size // 2 * dilation
    clip = dense(Window2D((height, width), size, dilation), 42, 42)[0, 0]
    shift = dense(Window2D((height, width), size, dilation, "shift"), 42, 42)[0, 0]
    for query in range(42):
        y, x = divmod(query, width)
        for key in range(42):
            dy, dx = key // width - y, key % width - x
            near = max(abs(dy), abs(dx)) <= reach and dy % dilation == dx % dilation == 0
            assert clip[query, key] == near
    assert (shift.sum(1) == size * size).all(), "every query keeps the full count"
    inner = (clip.sum(1) == size * size).nonzero()[:, 0]
    assert torch.equal(shift[inner], clip[inner])
    with pytest.raises(ConfigError, match="exceeds the grid"):
        Window2D((3, 9), 5, boundary="shift")


def test_ids_prefix_and_dense_masks() -> None:
    ids = torch.tensor([0, 0, 1])
    assert dense(SameId(ids), 3, 3)[0, 0].tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]
    batched = SameId(torch.stack([ids, 1 - ids]), torch.stack([ids, ids]))
    assert dense(batched, 3, 3)[1, 0].tolist() == [
        [False, False, True],
        [False, False, True],
        [True, True, False],
    ]
    assert torch.equal(dense(NotId(ids), 3, 3), ~dense(SameId(ids), 3, 3))
    assert dense(Prefix(2) | Causal(), 3, 4)[0, 0, 0].tolist() == [True, True, False, False]
    with pytest.raises(ConfigError, match="is not boolean"):
        Dense(torch.zeros(3, 3))


def test_attend_takes_masks_as_objects() -> None:
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8)
    mask = Causal() & KeyPadding(torch.tensor([6, 2]))
    found = attend(query, key, key, mask=mask)
    expected = attend(query, key, key, mask=dense(mask, 4, 6))
    assert torch.equal(found.out, expected.out)
