"""Which patches are masked: the count, the candidates, and the choice among them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.acmil import masking
from manyhead.acmil.masking import mask_top


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    candidates=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.3, 0.6, 0.7, 1.0]),
    ratio=st.sampled_from([0, 100]),
)
def test_a_fixed_number_of_the_largest_is_masked(
    sizes: list[int], candidates: int, share: float, ratio: int
) -> None:
    masking.MOST_PADDING, before = ratio, masking.MOST_PADDING
    try:
        scores = torch.randn(sum(sizes), 2)
        counts = torch.tensor(sizes)
        starts = counts.cumsum(0) - counts
        found = mask_top(scores, starts, counts, candidates=candidates, share=share)
    finally:
        masking.MOST_PADDING = before
    for start, size in zip(starts, sizes, strict=True):
        for row in range(2):
            own, hidden = scores[start : start + size, row], found[start : start + size, row]
            masked = hidden == float("-inf")
            taken = min(candidates, size)
            assert masked.sum() == min(int(taken * share), size - 1)
            assert set(own[masked].tolist()) <= set(own.topk(taken).values.tolist())
            assert torch.equal(own[~masked], hidden[~masked])


def test_the_draws_choose_among_the_candidates_in_order_of_their_scores() -> None:
    scores = torch.tensor([[3.0], [9.0], [1.0], [7.0]])
    one = torch.tensor([4])
    found = mask_top(
        scores,
        torch.tensor([0]),
        one,
        candidates=3,
        share=0.4,
        draws=torch.tensor([[[0.5, 0.1, 0.9]]]),
    )
    # Candidates are 9, 7, 3; the smallest draw belongs to the second, one of three is masked.
    assert torch.equal(found[:, 0], torch.tensor([3.0, 9.0, 1.0, float("-inf")]))


def test_every_row_draws_for_itself() -> None:
    torch.manual_seed(0)
    scores = torch.arange(40.0)[:, None].expand(40, 8)
    counts = torch.tensor([40])
    found = mask_top(scores, torch.tensor([0]), counts, candidates=10, share=0.5)
    hidden = found == float("-inf")
    assert (hidden.sum(0) == 5).all()
    assert len({tuple(row.tolist()) for row in hidden.T}) > 1


def test_masking_is_uniform_over_the_candidates() -> None:
    torch.manual_seed(0)
    scores = torch.arange(6.0)[:, None].expand(6, 4000)
    found = mask_top(scores, torch.tensor([0]), torch.tensor([6]), candidates=4, share=0.5)
    share = (found == float("-inf")).float().mean(1)
    assert not share[:2].any()
    assert (share[2:] - 0.5).abs().max() < 0.04


@pytest.mark.parametrize(("share", "count"), [(0.7, 7), (0.29, 2), (0.6, 6)])
def test_the_count_is_the_one_of_python(share: float, count: int) -> None:
    scores = torch.randn(30, 1)
    found = mask_top(scores, torch.tensor([0]), torch.tensor([30]), candidates=10, share=share)
    assert int((found == float("-inf")).sum()) == int(10 * share)
    assert abs(int(10 * share) - count) <= 1
