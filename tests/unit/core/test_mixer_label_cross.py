"""`label_cross`: label queries of the layer's own, and what labels must not do to each other."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.label_cross import LabelCrossAttention, LabelHead
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def mixer(labels: int = 3) -> LabelCrossAttention:
    torch.manual_seed(0)
    made = LabelCrossAttention(8, 2, num_labels=labels).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def tokens(batch: int = 2, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


def test_label_cross_is_cross_attention_of_the_labels() -> None:
    made, x = mixer(), tokens()
    plain = Attention(8, 2).double()
    state = made.state_dict()
    labels = state.pop("labels")
    plain.load_state_dict(state)
    expected = plain(labels.expand(2, -1, -1), x).y
    torch.testing.assert_close(made(x).y, expected)
    torch.testing.assert_close(made(labels.expand(2, -1, -1), x).y, expected)
    assert made(x).y.shape == (2, 3, 8)


def test_label_cross_labels_do_not_interact() -> None:
    made, x = mixer(), tokens()
    before = made(x).y
    with torch.no_grad():
        made.labels[1] += 1
    after = made(x).y
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_label_cross_order_of_tokens_is_irrelevant() -> None:
    made, x = mixer(), tokens()
    torch.testing.assert_close(made(x.flip(1)).y, made(x).y)


def test_masked_tokens_change_nothing() -> None:
    made, x = mixer(), tokens()
    padded = torch.cat([x, 1e3 * torch.ones(2, 3, 8, dtype=x.dtype)], 1)
    found = made(padded, mask=KeyPadding(torch.tensor([5, 5]))).y
    torch.testing.assert_close(found, made(x).y)


def test_fully_masked_tokens_give_the_bias_and_finite_gradients() -> None:
    made, x = mixer(), tokens().requires_grad_()
    y = made(x, mask=KeyPadding(torch.tensor([0, 4]))).y
    torch.testing.assert_close(y[0], made.proj.bias.expand(3, 8))
    y.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[0].any()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_one_token_is_its_value() -> None:
    made, x = mixer(), tokens(count=1)
    value = made.project(x, x)[2].transpose(1, 2).flatten(2)
    torch.testing.assert_close(made(x).y, made.proj(value).expand(2, 3, 8))


def test_maps_have_a_row_for_each_label() -> None:
    weights = mixer()(tokens(), maps=MapRequest()).maps
    assert weights.shape == (2, 2, 3, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))


def test_a_closed_gate_removes_a_head() -> None:
    made, x = mixer(), tokens()
    gated = made(x, head_gate=torch.tensor([1.0, 0.0], dtype=x.dtype)).y
    made.proj.weight.data[:, 4:] = 0
    torch.testing.assert_close(gated, made(x).y)


def test_grid_is_that_of_the_tokens() -> None:
    made, x = mixer(), tokens(count=6)
    torch.testing.assert_close(made(x, grid=(2, 3)).y, made(x).y)
    with pytest.raises(ConfigError, match="grid"):
        made(x, grid=(2, 2))


def test_logits_read_each_label_from_its_own_token() -> None:
    torch.manual_seed(0)
    head = LabelHead(8, 3).double()
    y = mixer()(tokens()).y
    expected = torch.stack([y[:, k] @ head.weight[k] + head.bias[k] for k in range(3)], 1)
    torch.testing.assert_close(head(y), expected)


def test_causal_masks_and_other_mistakes_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(UnsupportedPattern, match="label_cross: does not support causal cross"):
        made(x, mask=Causal())
    with pytest.raises(UnsupportedPattern, match="memory"):
        made(x, memory=x)
    with pytest.raises(TypeError):
        made(x, x, conditions=1)
    with pytest.raises(ConfigError, match="num_labels"):
        LabelCrossAttention(8, 2, num_labels=0)
