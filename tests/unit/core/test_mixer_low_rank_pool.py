"""`low_rank_pool`: against the full bilinear form and plain loops."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.low_rank_pool import LowRankPooling
from manyhead_core.errors import ConfigError


def mixer(**options) -> LowRankPooling:
    torch.manual_seed(0)
    made = LowRankPooling(6, 3, **{"rank": 2, **options}).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def tokens(batch: int = 2, count: int = 5, dim: int = 6, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("tanh", [False, True])
def test_low_rank_pool_is_the_formula(tanh: bool) -> None:
    made = mixer(tanh=tanh, query_dim=4, combine="concat")
    x, queries = tokens(), tokens(count=2, dim=4, seed=2)
    left = made.query_factors.weight.view(3, 2, 4)
    right = made.token_factors.weight.view(3, 2, 6)
    squash = torch.tanh if tanh else lambda value: value
    y = made(queries, x).y
    assert y.shape == (2, 2, 18)
    for b in range(2):
        for i in range(2):
            for a in range(3):
                scores = [
                    sum(
                        squash(queries[b, i] @ left[a, r]) * squash(token @ right[a, r])
                        for r in range(2)
                    )
                    for token in x[b]
                ]
                expected = torch.stack(scores).softmax(0) @ x[b]
                torch.testing.assert_close(y[b, i, 6 * a : 6 * a + 6], expected)


def test_low_rank_pool_of_full_rank_is_the_bilinear_form() -> None:
    made = mixer(rank=6, combine="concat").float()
    x, queries = tokens().float(), tokens(count=2, seed=2).float()
    form = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(3))
    left, spectrum, right = torch.linalg.svd(form)
    with torch.no_grad():
        made.query_factors.weight.copy_((left * spectrum[:, None]).mT.flatten(0, 1))
        made.token_factors.weight.copy_(right.flatten(0, 1))
    scores = torch.einsum("bid,ade,bte->bait", queries, form, x)
    expected = (scores.softmax(-1) @ x[:, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(made(queries, x).y, expected, atol=4e-6, rtol=0)


def test_low_rank_pool_counts_its_parameters() -> None:
    made = LowRankPooling(10, 3, rank=4, query_dim=7)
    assert sum(p.numel() for p in made.parameters()) == 3 * 4 * (7 + 10)


def test_low_rank_pool_averages_or_joins_its_heads() -> None:
    joined, x = mixer(combine="concat"), tokens()
    mean = mixer()
    torch.testing.assert_close(mean(x).y, joined(x).y.unflatten(-1, (3, 6)).mean(2))
    assert mean(x).y.shape == (2, 1, 6)


@pytest.mark.parametrize("query", ["mean", "last"])
def test_low_rank_pool_asks_with_the_mean_or_the_last_real_token(query: str) -> None:
    made, x = mixer(query=query), tokens()
    lengths = torch.tensor([3, 5])
    found = made(x, mask=KeyPadding(lengths)).y
    for b, length in enumerate([3, 5]):
        part = x[b : b + 1, :length]
        asked = part.mean(1, keepdim=True) if query == "mean" else part[:, -1:]
        torch.testing.assert_close(found[b : b + 1], made(asked, part).y)
        torch.testing.assert_close(found[b : b + 1], made(part).y)


@pytest.mark.parametrize("query", ["mean", "last"])
def test_masked_tokens_change_nothing(query: str) -> None:
    made, x = mixer(query=query), tokens()
    padded = torch.cat([x, 1e3 * torch.ones(2, 3, 6, dtype=x.dtype)], 1)
    found = made(padded, mask=KeyPadding(torch.tensor([5, 5]))).y
    torch.testing.assert_close(found, made(x).y)


@pytest.mark.parametrize("query", ["mean", "last"])
def test_an_empty_bag_is_zero_with_finite_gradients(query: str) -> None:
    made, x = mixer(query=query), tokens().requires_grad_()
    y = made(x, mask=KeyPadding(torch.tensor([0, 4]))).y
    assert not y[0].any()
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[0].any()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_order_of_tokens_is_irrelevant_to_the_mean() -> None:
    made, x = mixer(), tokens()
    torch.testing.assert_close(made(x.flip(1)).y, made(x).y)


def test_causal_outputs_do_not_look_ahead() -> None:
    made, x, queries = mixer(), tokens(), tokens(seed=2)
    whole = made(queries, x, mask=Causal()).y
    for end in range(1, 6):
        part = made(queries[:, :end], x[:, :end], mask=Causal()).y
        torch.testing.assert_close(part, whole[:, :end])


def test_one_token_is_that_token() -> None:
    x = tokens(count=1)
    torch.testing.assert_close(mixer()(x).y, x)


def test_maps_are_the_weights_of_the_heads() -> None:
    made, x = mixer(combine="concat"), tokens()
    found = made(x, maps=MapRequest(dtype=x.dtype))
    assert found.maps.shape == (2, 3, 1, 5)
    torch.testing.assert_close((found.maps @ x[:, None]).transpose(1, 2).flatten(2), found.y)


def test_low_rank_pool_passes_gradcheck() -> None:
    made = mixer(tanh=True)
    x = tokens(batch=1, count=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: made(x).y, (x,))


def test_undeclared_uses_and_wrong_options_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(UnsupportedPattern, match="memory"):
        made(x, memory=x)
    with pytest.raises(ConfigError, match="query_dim=4; pass mixer"):
        mixer(query_dim=4)(x)
    for options in ({"rank": 0}, {"query": "first"}, {"combine": "sum"}):
        with pytest.raises(ConfigError):
            LowRankPooling(6, 3, **options)
