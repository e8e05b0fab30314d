import math
import shutil

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import segments
from manyhead_core.attention.pool import pool
from manyhead_core.errors import ConfigError

LENGTHS = [3, 0, 5, 1]


@pytest.fixture(params=["loop", "index"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to sum bags, whatever their sizes."""
    monkeypatch.setattr(segments, "LOOP_PRODUCTS", 0 if request.param == "loop" else math.inf)
    return request.param


def bags(branches: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 5, branches, dtype=dtype) * 3, torch.randn(4, 5, 6, dtype=dtype)


def real() -> Tensor:
    return torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def starts() -> Tensor:
    return torch.tensor([0, *LENGTHS]).cumsum(0)


def test_is_a_softmax_average_of_each_bag_and_branch() -> None:
    scores, values = bags()
    found = pool(scores, values)
    for bag in range(4):
        for branch in range(2):
            weights = scores[bag, :, branch].softmax(0)
            torch.testing.assert_close(found.weights[bag, :, branch], weights)
            torch.testing.assert_close(found.out[bag, branch], weights @ values[bag])


def test_order_of_instances_does_not_matter() -> None:
    scores, values = bags()
    order = torch.tensor([3, 0, 4, 2, 1])
    found, shuffled = pool(scores, values), pool(scores[:, order], values[:, order])
    torch.testing.assert_close(shuffled.out, found.out, rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled.weights, found.weights[:, order], rtol=0, atol=1e-6)


def test_order_within_packed_bags_does_not_matter() -> None:
    scores, values = (x[real()] for x in bags())
    order = torch.tensor([2, 0, 1, 7, 3, 4, 6, 5, 8])
    found = pool(scores, values, cu_seqlens=starts()).out
    shuffled = pool(scores[order], values[order], cu_seqlens=starts()).out
    torch.testing.assert_close(shuffled, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("told", ["lengths", "mask"])
@pytest.mark.parametrize("branches", [1, 3])
def test_padded_and_packed_forms_agree_with_their_gradients(told: str, branches: int) -> None:
    padded = [x.requires_grad_() for x in bags(branches)]
    packed = [x.detach()[real()].requires_grad_() for x in padded]
    given = {"lengths": torch.tensor(LENGTHS)} if told == "lengths" else {"mask": real()}
    one = pool(*padded, **given)
    two = pool(*packed, cu_seqlens=starts().int())
    torch.testing.assert_close(two.out, one.out, rtol=0, atol=1e-6)
    torch.testing.assert_close(two.weights, one.weights[real()], rtol=0, atol=1e-6)
    factor = torch.randn_like(one.out)
    (one.out * factor).sum().backward()
    (two.out * factor).sum().backward()
    for whole, dense in zip(padded, packed, strict=True):
        torch.testing.assert_close(dense.grad, whole.grad[real()], rtol=0, atol=2e-6)
        assert not whole.grad[~real()].any()


def test_a_bag_of_one_instance_returns_it() -> None:
    scores, values = torch.tensor([[[80.0, -300.0]]]), torch.randn(1, 1, 6)
    one = pool(scores, values)
    two = pool(scores[0], values[0], cu_seqlens=torch.tensor([0, 1]))
    for found in (one, two):
        assert torch.equal(found.out, values.expand(1, 2, 6))
        assert found.weights.unique().tolist() == [1.0]


def test_masked_instances_change_nothing_whatever_they_hold() -> None:
    scores, values = bags()
    more = torch.cat([scores, torch.full((4, 2, 2), float("nan"))], 1)
    rubbish = torch.cat([values, torch.full((4, 2, 6), float("inf"))], 1)
    found = pool(more, rubbish, lengths=torch.tensor([5] * 4))
    expected = pool(scores, values)
    torch.testing.assert_close(found.out, expected.out, rtol=0, atol=1e-6)
    assert not found.weights[:, 5:].any()


@pytest.mark.parametrize("packed", [False, True])
def test_empty_bags_give_zeros_and_zero_gradients(packed: bool) -> None:
    scores, values = (x.requires_grad_() for x in bags())
    if packed:
        found = pool(scores[real()], values[real()], cu_seqlens=starts())
    else:
        found = pool(scores, values, lengths=torch.tensor(LENGTHS))
    found.out.sum().backward()
    assert not found.out[1].any()
    assert found.out[[0, 2, 3]].any(-1).all()
    for tensor in (scores, values):
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[1].any()


def test_bags_without_any_instance_are_legal() -> None:
    found = pool(torch.zeros(3, 0, 2), torch.zeros(3, 0, 6))
    assert torch.equal(found.out, torch.zeros(3, 2, 6))
    packed = pool(torch.zeros(0, 2), torch.zeros(0, 6), cu_seqlens=torch.zeros(4, dtype=torch.long))
    assert torch.equal(packed.out, torch.zeros(3, 2, 6))
    assert pool(torch.zeros(0, 5, 2), torch.zeros(0, 5, 6)).out.shape == (0, 2, 6)


def test_a_bag_whose_scores_are_all_minus_infinity_is_empty() -> None:
    scores = torch.full((1, 3, 2), float("-inf"), requires_grad=True)
    values = torch.randn(1, 3, 6)
    found = pool(scores, values)
    packed = pool(scores[0], values[0], cu_seqlens=torch.tensor([0, 3]))
    assert not found.out.any()
    assert not packed.out.any()
    (found.out.sum() + packed.out.sum()).backward()
    assert not scores.grad.any()


@pytest.mark.parametrize("packed", [False, True])
def test_sums_in_float32_also_for_16_bits(packed: bool) -> None:
    scores, values = torch.zeros(1, 4096, 1), torch.ones(1, 4096, 2)
    with torch.autocast("cpu", torch.bfloat16):
        if packed:
            starts = torch.tensor([0, 4096])
            found = pool(scores[0].bfloat16(), values[0].bfloat16(), cu_seqlens=starts)
        else:
            found = pool(scores.bfloat16(), values.bfloat16())
    assert found.out.dtype == torch.bfloat16
    assert found.weights.dtype == torch.float32
    assert torch.equal(found.out, torch.ones(1, 1, 2, dtype=torch.bfloat16))


def test_large_scores_do_not_overflow() -> None:
    scores, values = (x[real()] for x in bags())
    raised = pool(scores + 1000, values, cu_seqlens=starts()).out
    torch.testing.assert_close(
        raised, pool(scores, values, cu_seqlens=starts()).out, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_finite_differences(packed: bool) -> None:
    scores, values = bags(dtype=torch.float64)
    given = {"cu_seqlens": starts()} if packed else {"lengths": torch.tensor(LENGTHS)}
    tensors = [(x[real()] if packed else x).requires_grad_() for x in (scores, values)]
    assert torch.autograd.gradcheck(lambda s, v: pool(s, v, **given), tensors)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_have_gradients(packed: bool) -> None:
    scores, values = bags(dtype=torch.float64)
    given = {"cu_seqlens": starts()} if packed else {"lengths": torch.tensor(LENGTHS)}
    tensors = [(x[real()] if packed else x).requires_grad_() for x in (scores, values)]
    assert torch.autograd.gradgradcheck(lambda s, v: pool(s, v, **given).out, tensors)


def test_values_without_gradient_get_none() -> None:
    scores, values = (x[real()] for x in bags())
    expected = torch.autograd.grad(
        pool(scores.requires_grad_(), values, cu_seqlens=starts()).out.square().sum(), scores
    )
    both = (scores, values.requires_grad_())
    found = torch.autograd.grad(pool(*both, cu_seqlens=starts()).out.square().sum(), both)
    torch.testing.assert_close(found[0], expected[0])


def test_lengths_beyond_the_padding_count_as_full() -> None:
    scores, values = bags()
    found = pool(scores, values, lengths=torch.tensor([9, 5, 5, -1]))
    torch.testing.assert_close(found.out[:3], pool(scores, values).out[:3])
    assert not found.out[3].any()


def test_transforms_of_functions_go_through() -> None:
    scores, values = (x[real()] for x in bags())

    def total(scores: Tensor, factor: Tensor) -> Tensor:
        return pool(scores, values * factor, cu_seqlens=starts()).out.square().sum()

    factors = torch.tensor([1.0, 2.0])
    found = torch.func.vmap(torch.func.grad(total), (None, 0))(scores, factors)
    one = torch.func.grad(total)(scores, factors[0])
    torch.testing.assert_close(found, torch.stack([one, 4 * one]))
    leaf = scores.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(total(leaf, factors[0]), leaf)[0], one)


def test_large_bags_are_summed_in_a_loop_and_many_small_ones_by_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "LOOP_PRODUCTS", 1000)
    scores, values = torch.zeros(300, 2), torch.zeros(300, 5)
    assert segments.worth_a_loop(scores, values, 3)
    assert not segments.worth_a_loop(scores, values, 4)
    assert not segments.worth_a_loop(scores.to("meta"), values.to("meta"), 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [False, True])
def test_compiles_to_one_graph_with_gradients(packed: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, dynamic=True)
    scores, values = bags()
    given = {"cu_seqlens": starts()} if packed else {"lengths": torch.tensor(LENGTHS)}
    tensors = [(x[real()] if packed else x).requires_grad_() for x in (scores, values)]
    found, expected = (
        torch.autograd.grad(call(*tensors, **given).out.square().sum(), tensors)
        for call in (compiled, pool)
    )
    torch.testing.assert_close(found, expected)


def test_mistakes_are_named() -> None:
    scores, values = bags()
    with pytest.raises(ConfigError, match="lengths, mask: say the same thing"):
        pool(scores, values, lengths=torch.tensor(LENGTHS), mask=real())
    with pytest.raises(ConfigError, match=r"shapes \(4, 5, 2\) and \(4, 6\) are not both"):
        pool(scores, values[:, 0])
    with pytest.raises(ConfigError, match=r"are not both \(total, .\) with cu_seqlens"):
        pool(scores, values, cu_seqlens=starts())
    with pytest.raises(ConfigError, match="is not boolean"):
        pool(scores, values, mask=real().float())
    for wrong in ([0, 3, 8], [1, 3, 9], [0, 5, 3, 9]):
        with pytest.raises(ConfigError, match="must rise from 0 to the number of instances, 9"):
            pool(scores[real()], values[real()], cu_seqlens=torch.tensor(wrong))
