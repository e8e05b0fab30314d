"""What each mask allows, stated a second time in plain loops."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


MAKERS: dict[str, Callable[[Shape], Mask]] = {
    "causal": lambda s: Causal(),
    "causal_upper": lambda s: Causal("upper_left"),
    "window": lambda s: SlidingWindow(2, 1),
    "window_upper": lambda s: SlidingWindow(1, 0, "upper_left"),
    "lengths": lambda s: KeyPadding(torch.randint(0, s.keys + 1, (s.batch,))),
    "flags": lambda s: KeyPadding(torch.rand(s.batch, s.keys) > 0.4),
    "shared_flags": lambda s: KeyPadding(torch.rand(1, s.keys) > 0.4),
    "same": lambda s: SameId(ids(s.batch, s.queries), ids(s.batch, s.keys)),
    "same_shared": lambda s: SameId(ids(s.queries), ids(s.keys)),
    "same_half": lambda s: SameId(ids(s.batch, s.queries), ids(s.keys)),
    "other": lambda s: NotId(ids(1, s.queries), ids(s.batch, s.keys)),
    "prefix": lambda s: Prefix(2),
    "full": lambda s: Dense(torch.rand(s.batch, s.heads, s.queries, s.keys) > 0.5),
    "per_head": lambda s: Dense(torch.rand(s.heads, 1, s.keys) > 0.5),
    "per_query": lambda s: Dense(torch.rand(s.queries, 1) > 0.5),
    "nothing": lambda s: Dense(torch.tensor(False)),
}


def ids(*size: int) -> torch.Tensor:
    return torch.randint(0, 2, size)


def by_index(mask: Mask, shape: Shape) -> torch.Tensor:
    sizes = (shape.batch, shape.heads, shape.queries, shape.keys)
    index = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")
    assert mask.mask_mod(shape)(*index).shape == sizes
    broadcast = [
        torch.arange(n).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(sizes)
    ]
    return mask.mask_mod(shape)(*broadcast).expand(sizes)


@settings(deadline=None, max_examples=60)
@given(
    first=st.sampled_from(sorted(MAKERS)),
    second=st.sampled_from(sorted(MAKERS)),
    sizes=st.tuples(*(st.integers(1, 3),) * 2, *(st.integers(0, 6),) * 2),
    seed=st.integers(0, 999),
)
def test_index_form_is_the_dense_form(
    first: str, second: str, sizes: tuple[int, int, int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    shape = Shape(*sizes, torch.device("cpu"))
    one, other = MAKERS[first](shape), MAKERS[second](shape)
    for mask in (one, one & other, one | other, (one | other) & one):
        expected = mask.dense(shape).expand(sizes)
        assert torch.equal(by_index(mask, shape), expected)
        per_batch, per_head = mask.varies
        assert per_batch or torch.equal(expected, expected[:1].expand(sizes))
        assert per_head or torch.equal(expected, expected[:, :1].expand(sizes))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_index_form_works_one_pair_at_a_time(name: str) -> None:
    shape = Shape(2, 3, 4, 5, torch.device("cpu"))
    mask = MAKERS[name](shape) & Dense(torch.rand(2, 3, 4, 5) > 0.2)
    found = create_mask(mask.mask_mod(shape), 2, 3, 4, 5, device="cpu")
    assert torch.equal(found, mask.dense(shape).expand(2, 3, 4, 5))


@pytest.mark.parametrize("boundary", ["clip", "shift"])
@pytest.mark.parametrize(
    ("grid", "size", "dilation"), [((3, 4), 3, 1), ((5, 6), 3, 2), ((1, 1), 1, 1)]
)
def test_index_form_of_a_neighbourhood_is_the_dense_form(
    grid: tuple[int, int], size: int, dilation: int, boundary: str
) -> None:
    tokens = grid[0] * grid[1]
    mask = Window2D(grid, size, dilation, boundary)
    shape = Shape(1, 2, tokens, tokens, torch.device("cpu"))
    assert torch.equal(by_index(mask, shape), mask.dense(shape).expand(1, 2, tokens, tokens))


def test_a_neighbourhood_refuses_tokens_of_another_grid() -> None:
    shape = Shape(1, 1, 5, 6, torch.device("cpu"))
    for form in (Window2D((2, 3), 3).dense, Window2D((2, 3), 3).mask_mod):
        with pytest.raises(ConfigError, match="for 6 queries and keys, got 5 and 6; pass the grid"):
            form(shape)


def test_every_mask_names_its_kind() -> None:
    flags = torch.ones(1, 3, dtype=torch.bool)
    found = [
        Causal(),
        SlidingWindow(1, 1),
        KeyPadding(flags),
        SameId(flags),
        NotId(flags),
        Window2D((3, 3), 3),
        Prefix(1),
        Dense(flags),
        Causal() & Prefix(1),
        Causal() | Prefix(1),
    ]
    assert [mask.kind for mask in found] == [
        "causal",
        "window",
        "keys",
        "ids",
        "ids",
        "grid",
        "prefix",
        "dense",
        "both",
        "either",
    ]


def test_a_mask_of_ones_own_needs_the_dense_form_only() -> None:
    class Checkerboard(Mask):
        def dense(self, shape: Shape) -> torch.Tensor:
            return torch.arange(shape.queries)[:, None] % 2 == torch.arange(shape.keys) % 2

    shape = Shape(2, 1, 3, 4, torch.device("cpu"))
    mask = Checkerboard() & Causal()
    assert torch.equal(by_index(mask, shape), mask.dense(shape).expand(2, 1, 3, 4))
    assert mask.varies == (True, True)
