import pytest
import torch
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.linear_attend import (
    CHUNK,
    elu_plus_one,
    linear_attend,
    linear_weights,
)
from manyhead_core.attention.masks import Causal, KeyPadding, SlidingWindow
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.linear import LinearAttention
from manyhead_core.errors import ConfigError

SIZES = [1, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 5]


def layer() -> LinearAttention:
    torch.manual_seed(0)
    mixer = LinearAttention(12, 3).eval().requires_grad_(False)
    for parameter in mixer.parameters():
        parameter.normal_(std=0.4)
    return mixer


def heads(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [
        torch.randn(2, 3, tokens, width, dtype=dtype)
        for tokens, width in ((queries, 4), (keys, 4), (keys, 5))
    ]


def explicit(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The formula with all pairs."""
    weights = elu_plus_one(query) @ elu_plus_one(key).mT
    if allowed is not None:
        weights = weights * allowed
    return weights @ value / (weights.sum(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 1)])
def test_equals_the_explicit_form(queries: int, keys: int) -> None:
    tensors = heads(queries, keys)
    found = linear_attend(*tensors).out
    torch.testing.assert_close(found, explicit(*tensors), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_the_causal_form_equals_the_explicit_one(tokens: int, padded: bool) -> None:
    tensors = heads(tokens, tokens)
    allowed = torch.ones(tokens, tokens).tril()
    valid = None
    if padded:
        valid = torch.rand(2, tokens) > 0.4
        allowed = allowed * valid[:, None, None]
    found = linear_attend(*tensors, causal=True, valid=valid).out
    torch.testing.assert_close(found, explicit(*tensors, allowed), rtol=1e-5, atol=5e-6)


def test_prefix_an_output_does_not_depend_on_later_tokens() -> None:
    mixer, x = layer(), torch.randn(2, CHUNK + 20, 12)
    whole = mixer(x, mask=Causal()).y
    for length in (1, 10, CHUNK, CHUNK + 3):
        part = mixer(x[:, :length], mask=Causal()).y
        torch.testing.assert_close(part, whole[:, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 9, CHUNK + 2])
def test_decoding_with_state_equals_the_parallel_form(step: int) -> None:
    mixer, x = layer(), torch.randn(2, CHUNK + 11, 12)
    whole = mixer(x, mask=Causal())
    parts, state = [], None
    for piece in x.split(step, 1):
        found = mixer(piece, mask=Causal(), memory=state)
        state = found.state
        parts.append(found.y)
    torch.testing.assert_close(torch.cat(parts, 1), whole.y, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(state.products, whole.state.products, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(state.features, whole.state.features, rtol=1e-5, atol=1e-4)


def test_state_is_detached_and_visible_to_every_query() -> None:
    mixer = layer().requires_grad_()
    x, earlier = torch.randn(2, 4, 12), torch.randn(2, 3, 12)
    state = mixer(earlier).state
    assert not state.products.requires_grad
    found = mixer(x, memory=state).y
    torch.testing.assert_close(found, mixer(x, torch.cat([earlier, x], 1)).y)


def test_masked_keys_change_nothing() -> None:
    mixer = layer()
    x, context = torch.randn(2, 5, 12), torch.randn(2, 6, 12)
    longer = torch.cat([context, torch.full((2, 2, 12), 9.0)], 1)
    found = mixer(x, longer, mask=KeyPadding(torch.tensor([6, 6]))).y
    torch.testing.assert_close(found, mixer(x, context).y, rtol=0, atol=1e-6)
    valid = torch.tensor([[True, True, False, True, True]] * 2)
    causal = mixer(x, mask=Causal() & KeyPadding(valid)).y[:, valid[0]]
    expected = mixer(x[:, valid[0]], mask=Causal()).y
    torch.testing.assert_close(causal, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_fully_masked_row_gives_zeros_and_zero_gradients(causal: bool) -> None:
    tensors = [t.requires_grad_() for t in heads(6, 6)]
    valid = torch.tensor([[False] * 6, [True] * 6])
    out = linear_attend(*tensors, valid=valid, causal=causal).out
    assert not out[0].any()
    out.sum().backward()
    for tensor in tensors:
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[0].any()


def test_no_keys_and_no_queries_are_legal() -> None:
    assert not linear_attend(*heads(3, 0)).out.any()
    assert linear_attend(*heads(0, 3)).out.shape == (2, 3, 0, 5)
    assert linear_attend(*heads(0, 0), causal=True).out.shape == (2, 3, 0, 5)


@pytest.mark.parametrize("causal", [False, True])
def test_sums_in_float32_under_autocast(causal: bool) -> None:
    query = torch.zeros(1, 1, 600, 4, dtype=torch.bfloat16)
    value = torch.ones(1, 1, 600, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_attend(query, query, value, causal=causal)
    assert found.state.products.dtype == torch.float32
    assert found.state.features.unique().tolist() == [600.0]
    assert torch.equal(found.out, value)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_finite_differences(causal: bool) -> None:
    tensors = [t.requires_grad_() for t in heads(5, 5, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: linear_attend(q, k, v, causal=causal).out, tensors
    )


def test_maps_are_the_weights_of_the_output() -> None:
    query, key, value = heads(6, 6)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()
    weights = linear_weights(query, key, allowed=allowed)
    torch.testing.assert_close(weights @ value, linear_attend(query, key, value, causal=True).out)
    mixer, x = layer(), torch.randn(2, 6, 12)
    mask = Causal() & KeyPadding(torch.tensor([6, 4]))
    maps = mixer(x, mask=mask, maps=MapRequest()).maps
    assert not maps[1, :, :, 4:].any()
    assert not maps.triu(1).any()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 6), rtol=0, atol=1e-5)
    part = mixer(x, mask=mask, maps=MapRequest(queries=torch.tensor([5, 2]), heads=[1])).maps
    torch.testing.assert_close(part, maps[:, 1:2, [5, 2]])
    state = mixer(x).state
    assert (mixer(x, memory=state, maps=MapRequest(heads=[0])).maps.sum(-1) < 1).all()


def test_undeclared_uses_are_refused() -> None:
    mixer, x = layer(), torch.randn(1, 6, 12)
    with pytest.raises(UnsupportedPattern, match="linear: does not support causal cross-attention"):
        mixer(x, x, mask=Causal())
    for mask in (SlidingWindow(1, 1), SlidingWindow(1, 0), Causal() & SlidingWindow(2, 2)):
        with pytest.raises(UnsupportedPattern, match="masks other than KeyPadding"):
            mixer(x, mask=mask)
    with pytest.raises(ConfigError, match="needs as many queries as keys, got 3 and 4"):
        linear_attend(*heads(3, 4), causal=True)
    with pytest.raises(ConfigError, match="is not boolean"):
        linear_attend(*heads(3, 4), valid=torch.ones(2, 4))
    with pytest.raises(ConfigError, match="12 is no multiple of num_heads=5"):
        LinearAttention(12, 5)
