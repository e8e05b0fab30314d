"""`conditional_cross`: conditions become queries, and do not interact."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.conditional_cross import ConditionalCrossAttention
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def mixer(per_condition: int = 2, hidden: int | None = 6) -> ConditionalCrossAttention:
    torch.manual_seed(0)
    made = ConditionalCrossAttention(
        8, 2, num_conditions=4, tokens_per_condition=per_condition, hidden=hidden
    ).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def tokens(batch: int = 2, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


def test_conditional_cross_is_cross_attention_of_the_conditions() -> None:
    made, x = mixer(), tokens()
    plain = Attention(8, 2).double()
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if k in plain.state_dict()})
    for batch, ids in enumerate([[3, 0], [1, 1]]):
        rows = []
        for condition in ids:
            hidden = F.gelu(made.fc1(made.embedding.weight[condition]))
            rows.append(made.fc2(hidden).view(2, 8))
        expected = plain(torch.cat(rows)[None], x[batch : batch + 1]).y[0]
        found = made(x, conditions=torch.tensor([[3, 0], [1, 1]])).y
        torch.testing.assert_close(found[batch], expected)


def test_conditional_cross_conditions_do_not_interact() -> None:
    made, x = mixer(), tokens()
    together = made(x).y.unflatten(1, (4, 2))
    for condition in range(4):
        alone = made(x, conditions=torch.tensor([condition])).y
        torch.testing.assert_close(alone, together[:, condition])


def test_conditional_cross_without_ids_asks_all_conditions() -> None:
    made, x = mixer(), tokens()
    torch.testing.assert_close(made(x, conditions=torch.arange(4)).y, made(x).y)


def test_conditional_cross_gives_one_unit_vector_for_each_condition() -> None:
    made, x = mixer(), tokens()
    y = made(x).y
    vectors = made.embed(y)
    assert vectors.shape == (2, 4, 8)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 4, dtype=x.dtype))
    torch.testing.assert_close(vectors[:, 1], F.normalize(y[:, 2] + y[:, 3], dim=-1))


def test_masked_tokens_change_nothing() -> None:
    made, x = mixer(), tokens()
    padded = torch.cat([x, 1e3 * torch.ones(2, 3, 8, dtype=x.dtype)], 1)
    found = made(padded, mask=KeyPadding(torch.tensor([5, 5]))).y
    torch.testing.assert_close(found, made(x).y)


def test_fully_masked_tokens_give_the_bias_and_finite_gradients() -> None:
    made, x = mixer(), tokens().requires_grad_()
    y = made(x, mask=KeyPadding(torch.tensor([0, 4]))).y
    torch.testing.assert_close(y[0], made.proj.bias.expand(8, 8))
    y.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[0].any()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_only_asked_conditions_get_a_gradient() -> None:
    made, x = mixer(), tokens()
    made(x, conditions=torch.tensor([2])).y.square().sum().backward()
    assert made.embedding.weight.grad.any(1).tolist() == [False, False, True, False]


def test_one_token_and_one_query_for_each_condition() -> None:
    made, x = mixer(per_condition=1, hidden=None), tokens(count=1)
    value = made.project(x, x)[2].transpose(1, 2).flatten(2)
    torch.testing.assert_close(made(x).y, made.proj(value).expand(2, 4, 8))


def test_maps_have_a_row_for_each_query() -> None:
    assert mixer()(tokens(), maps=MapRequest()).maps.shape == (2, 2, 8, 5)


def test_undeclared_uses_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(UnsupportedPattern, match="causal cross-attention"):
        made(x, mask=Causal())
    with pytest.raises(TypeError, match="conditions"):
        made(x, x, conditions=torch.tensor([0]))
    with pytest.raises(ConfigError, match="num_conditions"):
        ConditionalCrossAttention(8, 2, num_conditions=0)
