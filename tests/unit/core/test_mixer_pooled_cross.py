"""`pooled_cross`: windows of tokens ask all tokens."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding, SameId
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.pooled_cross import PooledCrossAttention, pool_windows
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def mixer(ratio: int = 3, **options) -> PooledCrossAttention:
    torch.manual_seed(0)
    made = PooledCrossAttention(8, 2, ratio=ratio, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def plain(made: PooledCrossAttention) -> Attention:
    layer = Attention(8, 2).double()
    layer.load_state_dict(made.state_dict())
    return layer


def tokens(batch: int = 2, count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("mask", [None, Causal(), KeyPadding(torch.tensor([7, 4]))])
def test_pooled_cross_of_ratio_one_is_self_attention(mask: object) -> None:
    made, x = mixer(ratio=1, residual=False), tokens()
    found, expected = made(x, mask=mask).y, plain(made)(x, mask=mask).y
    # Rows of padding are no one's output.
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1, :4], expected[1, :4])


def test_pooled_cross_adds_the_pooled_stream() -> None:
    made, x = mixer(), tokens()
    pooled = torch.stack([x[:, :3].mean(1), x[:, 3:6].mean(1), x[:, 6]], 1)
    torch.testing.assert_close(pool_windows(x, 3), pooled)
    torch.testing.assert_close(made(x).y, pooled + plain(made)(pooled, x).y)
    torch.testing.assert_close(made(x).y, made(pooled, x).y)
    torch.testing.assert_close(mixer(residual=False)(x).y, made(x).y - pooled)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_masked_tokens_change_nothing(count: int) -> None:
    made, x = mixer(), tokens(count=count)
    padded = torch.cat([x, 1e3 * torch.ones(2, 5, 8, dtype=x.dtype)], 1)
    found = made(padded, mask=KeyPadding(torch.tensor([count, count]))).y
    windows = -(-count // 3)
    torch.testing.assert_close(found[:, :windows], made(x).y)
    torch.testing.assert_close(found[:, windows:], made.proj.bias.expand_as(found)[:, windows:])


def test_causal_windows_see_up_to_their_last_token() -> None:
    made, x = mixer(), tokens(count=9)
    whole = made(x, mask=Causal()).y
    for window in range(3):
        seen = x[:, : 3 * window + 3]
        query = seen[:, -3:].mean(1, keepdim=True)
        expected = query + plain(made)(query, seen).y
        torch.testing.assert_close(whole[:, window : window + 1], expected)


def test_causal_mask_and_padding_combine() -> None:
    made, x = mixer(), tokens(count=9)
    padding = KeyPadding(torch.tensor([9, 5]))
    found = made(x, mask=Causal() & padding).y
    torch.testing.assert_close(found[1:, :2], made(x[1:, :5], mask=Causal()).y)


def test_windows_see_the_documents_of_their_tokens() -> None:
    made, x = mixer(), tokens(count=6)
    found = made(x, mask=SameId(torch.tensor([0, 0, 0, 1, 1, 1]))).y
    torch.testing.assert_close(found, torch.cat([made(x[:, :3]).y, made(x[:, 3:]).y], 1))


def test_fully_masked_tokens_give_the_bias_and_finite_gradients() -> None:
    made, x = mixer(), tokens().requires_grad_()
    y = made(x, mask=KeyPadding(torch.tensor([0, 4]))).y
    torch.testing.assert_close(y[0], made.proj.bias.expand(3, 8))
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[0].any()
    assert not x.grad[1, 4:].any()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_one_token_and_windows_longer_than_the_sequence() -> None:
    made, x = mixer(ratio=9), tokens(count=1)
    torch.testing.assert_close(made(x).y, x + plain(made)(x).y)
    assert made(tokens()).y.shape == (2, 1, 8)


def test_maps_have_a_row_for_each_window() -> None:
    assert mixer()(tokens(), maps=MapRequest()).maps.shape == (2, 2, 3, 7)


def test_a_closed_gate_removes_a_head() -> None:
    made, x = mixer(), tokens()
    gated = made(x, head_gate=torch.tensor([0.0, 1.0], dtype=x.dtype)).y
    made.proj.weight.data[:, :4] = 0
    torch.testing.assert_close(gated, made(x).y)


def test_undeclared_uses_are_refused() -> None:
    with pytest.raises(UnsupportedPattern, match="memory"):
        mixer()(tokens(), memory=1)
    with pytest.raises(ConfigError, match="ratio"):
        PooledCrossAttention(8, 2, ratio=0)
