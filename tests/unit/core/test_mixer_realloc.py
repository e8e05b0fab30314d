"""`realloc`: factors on the scores of chosen keys, none at the start."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.realloc import ReallocationAttention
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def mixer(subsets: int = 2, *, moved: bool = True) -> ReallocationAttention:
    torch.manual_seed(0)
    made = ReallocationAttention(8, 2, num_subsets=subsets).double()
    for name, parameter in made.named_parameters():
        if moved or name != "log_factors":
            torch.nn.init.normal_(parameter, std=0.5)
    return made


def tokens(batch: int = 2, count: int = 5, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


IDS = torch.tensor([[0, 1, 2, 1, 0], [2, 2, 0, 0, 1]])


@pytest.mark.parametrize("subset", [None, IDS, IDS[0] == 1])
@pytest.mark.parametrize("cross", [False, True])
def test_realloc_starts_as_softmax(subset: Tensor | None, cross: bool) -> None:
    made = mixer(moved=False)
    plain = Attention(8, 2).double()
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if k != "log_factors"})
    x, context = tokens(), tokens(seed=2) if cross else None
    torch.testing.assert_close(made(x, context, subset=subset).y, plain(x, context).y)


def test_realloc_multiplies_the_scores_of_the_subsets() -> None:
    made, x = mixer(), tokens()
    query, key, value = made.project(x, x)
    factors = torch.ones(2, 2, 5, dtype=x.dtype)
    for b in range(2):
        for h in range(2):
            for j in range(5):
                if IDS[b, j]:
                    factors[b, h, j] = made.log_factors[IDS[b, j] - 1, h].exp()
    weights = (query @ key.mT / 2 * factors[:, :, None]).softmax(-1)
    y = made.proj((weights @ value).transpose(1, 2).flatten(2))
    found = made(x, subset=IDS, maps=MapRequest(dtype=x.dtype))
    torch.testing.assert_close(found.y, y)
    torch.testing.assert_close(found.maps, weights)


def test_realloc_factors_are_positive_and_a_boolean_subset_is_the_first() -> None:
    made = mixer()
    assert (made.factors(IDS) > 0).all()
    torch.testing.assert_close(made.factors(IDS == 1), made.factors((IDS == 1).long()))
    assert made.factors(IDS[0]).shape == (1, 2, 5, 1)


def test_masked_keys_change_nothing() -> None:
    made, x, context = mixer(), tokens(), tokens(seed=2)
    padded = torch.cat([context, 1e3 * torch.ones(2, 3, 8, dtype=x.dtype)], 1)
    ids = torch.cat([IDS, torch.ones(2, 3, dtype=IDS.dtype)], 1)
    found = made(x, padded, mask=KeyPadding(torch.tensor([5, 5])), subset=ids).y
    torch.testing.assert_close(found, made(x, context, subset=IDS).y)


def test_fully_masked_rows_give_the_bias_and_finite_gradients() -> None:
    made, x = mixer(), tokens()
    y = made(x, mask=KeyPadding(torch.tensor([0, 5])), subset=IDS).y
    torch.testing.assert_close(y[0], made.proj.bias.expand(5, 8))
    y.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_causal_outputs_do_not_look_ahead() -> None:
    made, x = mixer(), tokens()
    whole = made(x, mask=Causal(), subset=IDS).y
    for end in range(1, 6):
        part = made(x[:, :end], mask=Causal(), subset=IDS[:, :end]).y
        torch.testing.assert_close(part, whole[:, :end])


def test_one_token_is_its_value() -> None:
    made, x = mixer(), tokens(count=1)
    value = made.project(x, x)[2].transpose(1, 2).flatten(2)
    torch.testing.assert_close(made(x).y, made.proj(value))


def test_a_closed_gate_removes_a_head() -> None:
    made, x = mixer(), tokens()
    gated = made(x, subset=IDS, head_gate=torch.tensor([0.0, 1.0], dtype=x.dtype)).y
    made.proj.weight.data[:, :4] = 0
    torch.testing.assert_close(gated, made(x, subset=IDS).y)


def test_undeclared_uses_are_refused() -> None:
    with pytest.raises(UnsupportedPattern, match="memory"):
        mixer()(tokens(), memory=1)
    with pytest.raises(ConfigError, match="num_subsets"):
        ReallocationAttention(8, 2, num_subsets=0)
