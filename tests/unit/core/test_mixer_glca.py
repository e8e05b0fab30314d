"""`glca`: the tokens of highest rank ask all tokens."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.glca import GlobalLocalCrossAttention
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.rollout import rollout
from manyhead_core.errors import ConfigError


def mixer(share: float = 0.4, **options) -> GlobalLocalCrossAttention:
    torch.manual_seed(0)
    made = GlobalLocalCrossAttention(8, 2, share=share, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def plain(made: GlobalLocalCrossAttention) -> Attention:
    layer = Attention(8, 2).double()
    layer.load_state_dict(made.state_dict())
    return layer


def tokens(batch: int = 2, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


def reached(batch: int = 2, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(3, batch, 2, count, count, generator=generator, dtype=torch.float64)
    return rollout(list((3 * maps).softmax(-1)))


def test_glca_of_all_tokens_is_an_ordinary_layer() -> None:
    made, x = mixer(share=1.0), tokens()
    found = made(x, rollout=reached())
    torch.testing.assert_close(found.y, plain(made)(x).y)
    torch.testing.assert_close(found.state.of(x), x)


def test_glca_picks_the_largest_shares_of_the_class_row() -> None:
    made, x, ranks = mixer(), tokens(), reached()
    found = made(x, rollout=ranks)
    for b in range(2):
        order = sorted(range(1, 6), key=lambda j: -float(ranks[b, 0, j]))
        places = [0, *sorted(order[:2])]
        assert found.state.places[b].tolist() == places
        expected = plain(made)(x[b : b + 1, places], x[b : b + 1]).y[0]
        torch.testing.assert_close(found.y[b], expected)


def test_glca_takes_the_importance_of_tokens_for_a_rollout() -> None:
    made, x, ranks = mixer(), tokens(), reached()
    torch.testing.assert_close(made(x, rollout=ranks[:, 0]).y, made(x, rollout=ranks).y)


def test_glca_without_class_token_ranks_by_the_mean_of_all_tokens() -> None:
    made, x, ranks = mixer(class_tokens=0, share=0.5), tokens(), reached()
    best = ranks.mean(1).topk(3, 1).indices.sort(1).values
    assert torch.equal(made(x, rollout=ranks).state.places, best)


@pytest.mark.parametrize(("share", "count", "picked"), [(0.1, 31, 3), (0.1, 32, 4), (0.3, 2, 1)])
def test_glca_rounds_its_share_up_without_noise(share: float, count: int, picked: int) -> None:
    made = mixer(share=share)
    found = made(tokens(count=count), rollout=reached(count=count))
    assert found.y.shape == (2, 1 + picked, 8)


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_masked_tokens_change_nothing(class_tokens: int) -> None:
    made, x, ranks = mixer(class_tokens=class_tokens), tokens(), reached()
    padded = torch.cat([x, 1e3 * torch.ones(2, 5, 8, dtype=x.dtype)], 1)
    wide = F.pad(ranks, (0, 5, 0, 5), value=9.0)
    expected = made(x, rollout=ranks)
    found = made(padded, rollout=wide, mask=KeyPadding(torch.tensor([6, 6])))
    known = expected.y.shape[1]
    torch.testing.assert_close(found.y[:, :known], expected.y)
    assert torch.equal(found.state.places[:, :known], expected.state.places)
    assert not found.y[:, known:].any()
    assert not found.state.real[:, known:].any()
    assert not found.state.of(padded)[:, known:].any()


def test_fully_masked_samples_are_zero_with_finite_gradients() -> None:
    made, x, ranks = mixer(), tokens().requires_grad_(), reached()
    y = made(x, rollout=ranks, mask=KeyPadding(torch.tensor([0, 4]))).y
    assert not y[0].any()
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[0].any()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_glca_choice_has_no_gradient() -> None:
    made, ranks = mixer(), reached().requires_grad_()
    made(tokens().requires_grad_(), rollout=ranks).y.sum().backward()
    assert ranks.grad is None


def test_glca_of_the_class_token_alone() -> None:
    made, x = mixer(), tokens(count=1)
    torch.testing.assert_close(made(x, rollout=reached(count=1)).y, plain(made)(x).y)


def test_glca_takes_queries_that_were_chosen_elsewhere() -> None:
    made, x = mixer(), tokens()
    torch.testing.assert_close(made(x[:, :2], x).y, plain(made)(x[:, :2], x).y)


def test_maps_have_a_row_for_each_query() -> None:
    found = mixer()(tokens(), rollout=reached(), maps=MapRequest())
    assert found.maps.shape == (2, 2, 3, 6)


def test_a_closed_gate_removes_a_head() -> None:
    made, x = mixer(), tokens()
    gated = made(x, rollout=reached(), head_gate=torch.tensor([0.0, 1.0], dtype=x.dtype)).y
    made.proj.weight.data[:, :4] = 0
    torch.testing.assert_close(gated, made(x, rollout=reached()).y)


def test_undeclared_uses_and_a_missing_rollout_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(ConfigError, match="no rollout to choose"):
        made(x)
    with pytest.raises(UnsupportedPattern, match="causal cross-attention"):
        made(x, mask=Causal(), rollout=reached())
    for options in ({"share": 0.0}, {"share": 1.5}, {"class_tokens": -1}):
        with pytest.raises(ConfigError):
            GlobalLocalCrossAttention(8, 2, **options)
