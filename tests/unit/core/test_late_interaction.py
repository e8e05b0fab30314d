"""`late_interaction` against plain loops, and what must not change it."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention import late_interaction as module
from manyhead_core.attention.late_interaction import late_interaction
from manyhead_core.errors import ConfigError


def batch(count: int, tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, tokens, 6, generator=generator, dtype=torch.float64)


def masks() -> tuple[Tensor, Tensor]:
    mask_a = torch.tensor([[True] * 4, [True, True, False, False], [False, True, True, True]])
    mask_b = torch.tensor([[True] * 5, [True, False, True, False, True]])
    return mask_a, mask_b


def one_way(a: Tensor, b: Tensor) -> float:
    """Mean over the tokens of `a` of the cosine to their best match in `b`."""
    best = [max(float(F.cosine_similarity(x, y, dim=0)) for y in b) for x in a]
    return sum(best) / len(best)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_late_interaction_is_the_mean_best_match_in_both_directions(chunk: int | None) -> None:
    a, b, (mask_a, mask_b) = batch(3, 4, 0), batch(2, 5, 1), masks()
    found = late_interaction(a, b, mask_a, mask_b, chunk=chunk)
    for i in range(3):
        for j in range(2):
            x, y = a[i, mask_a[i]], b[j, mask_b[j]]
            assert float(found.a_to_b[i, j]) == pytest.approx(one_way(x, y), abs=1e-12)
            assert float(found.b_to_a[i, j]) == pytest.approx(one_way(y, x), abs=1e-12)


def test_late_interaction_of_single_tokens_is_the_cosine() -> None:
    a, b = batch(3, 1, 0), batch(4, 1, 1)
    cosine = F.cosine_similarity(a, b.transpose(0, 1), dim=-1)
    for found in late_interaction(a, b):
        torch.testing.assert_close(found, cosine)


def test_late_interaction_swaps_its_directions_with_its_arguments() -> None:
    a, b, (mask_a, mask_b) = batch(3, 4, 0), batch(2, 5, 1), masks()
    there, back = late_interaction(a, b, mask_a, mask_b), late_interaction(b, a, mask_b, mask_a)
    torch.testing.assert_close(there.a_to_b, back.b_to_a.T)
    torch.testing.assert_close(there.b_to_a, back.a_to_b.T)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_masked_tokens_change_nothing(keep: float) -> None:
    a, b, (mask_a, mask_b) = batch(3, 4, 0), batch(2, 5, 1), masks()
    wide_a = torch.cat([a, torch.full((3, 2, 6), float("nan"), dtype=a.dtype)], 1)
    wide_b = torch.cat([b, 1e3 * torch.ones(2, 3, 6, dtype=a.dtype)], 1)
    found = late_interaction(a, b, mask_a, mask_b, keep=keep)
    padded = late_interaction(
        wide_a, wide_b, F.pad(mask_a, (0, 2)), F.pad(mask_b, (0, 3)), keep=keep
    )
    torch.testing.assert_close(padded.a_to_b, found.a_to_b)
    torch.testing.assert_close(padded.b_to_a, found.b_to_a)


def test_late_interaction_without_real_tokens_is_zero_with_finite_gradients() -> None:
    a, b, (mask_a, mask_b) = batch(3, 4, 0).requires_grad_(), batch(2, 5, 1), masks()
    mask_a[1] = False
    found = late_interaction(a, b, mask_a, mask_b)
    assert not found.a_to_b[1].any()
    assert not found.b_to_a[1].any()
    (found.a_to_b.sum() + found.b_to_a.square().sum()).backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert not a.grad[1].any()
    assert a.grad[0].any()


def test_late_interaction_keeps_the_tokens_with_the_best_matches() -> None:
    a, b, (mask_a, mask_b) = batch(3, 4, 0), batch(2, 5, 1), masks()
    found = late_interaction(a, b, mask_a, mask_b, keep=0.5, chunk=1)
    rest_a = [a[i, mask_a[i]] for i in range(3)]
    rest_b = [b[j, mask_b[j]] for j in range(2)]

    def salient(tokens: Tensor, others: list[Tensor]) -> Tensor:
        best = [max(float(F.cosine_similarity(t, o, dim=-1).max()) for o in others) for t in tokens]
        order = sorted(range(len(best)), key=lambda index: -best[index])
        return tokens[order[: math.ceil(0.5 * len(best))]]

    kept_a = [salient(tokens, rest_b) for tokens in rest_a]
    kept_b = [salient(tokens, rest_a) for tokens in rest_b]
    for i in range(3):
        for j in range(2):
            expected = one_way(kept_a[i], kept_b[j])
            assert float(found.a_to_b[i, j]) == pytest.approx(expected, abs=1e-12)


def test_keeping_all_tokens_is_the_default_and_shares_are_not_rounded_up_by_noise() -> None:
    a, b = batch(2, 30, 0), batch(2, 30, 1)
    assert module.share_of(0.1, 30) == 3
    almost = late_interaction(a, b, keep=0.999)
    torch.testing.assert_close(almost.a_to_b, late_interaction(a, b).a_to_b)


def test_chunks_hold_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = batch(3, 4, 0), batch(5, 4, 1)
    whole = late_interaction(a, b)
    monkeypatch.setattr(module, "CHUNK_SIMILARITIES", 2 * 3 * 4 * 4)
    assert len(module._chunks(a, b, None)) == 3
    torch.testing.assert_close(late_interaction(a, b).b_to_a, whole.b_to_a)


def test_late_interaction_of_half_precision_is_float32() -> None:
    a, b = batch(3, 4, 0), batch(2, 5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = late_interaction(a.float(), b.float())
    assert found.a_to_b.dtype == torch.float32
    torch.testing.assert_close(found.a_to_b.double(), late_interaction(a, b).a_to_b)
    assert late_interaction(a.bfloat16(), b.bfloat16()).a_to_b.dtype == torch.float32


def test_late_interaction_passes_gradcheck() -> None:
    a, b = batch(2, 3, 0).requires_grad_(), batch(2, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: tuple(late_interaction(x, y)), (a, b))


def test_empty_batches_and_sets_are_legal() -> None:
    assert late_interaction(batch(2, 3, 0), batch(0, 3, 1)).a_to_b.shape == (2, 0)
    assert late_interaction(batch(0, 3, 0), batch(2, 3, 1)).b_to_a.shape == (0, 2)
    assert not late_interaction(batch(2, 3, 0), batch(2, 0, 1)).a_to_b.any()


def test_wrong_options_are_refused() -> None:
    a = batch(1, 2, 0)
    with pytest.raises(ConfigError, match="keep: 0"):
        late_interaction(a, a, keep=0)
    with pytest.raises(ConfigError, match="chunk"):
        late_interaction(a, a, chunk=0)
    with pytest.raises(ConfigError, match="mask_b: torch"):
        late_interaction(a, a, mask_b=torch.ones(1, 2, dtype=torch.int64))
