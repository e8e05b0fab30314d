"""One meaning on every kernel: `attend` against the formula, and at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manyhead_core.attention import Attend, MapRequest, attend, explain_backend
from manyhead_core.attention import scores as scores_module
from manyhead_core.errors import ConfigError

BACKENDS = ["eager", "sdpa"]


def tensors(
    queries: int = 5, keys: int = 7, heads: int = 4, key_heads: int = 4, width: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + 10 * keys)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return (
        draw(2, heads, queries, width),
        draw(2, key_heads, keys, width),
        draw(2, key_heads, keys, width),
    )


def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Row by row, in plain loops over heads."""
    out = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    groups = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                seen = mask[b, h, i].nonzero()[:, 0]
                if len(seen):
                    scores = key[b, h // groups, seen] @ query[b, h, i] * scale
                    out[b, h, i] = scores.softmax(0) @ value[b, h // groups, seen]
    return out


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@settings(deadline=None, max_examples=15)
@given(
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    key_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_every_backend_is_the_formula(
    backend: str, queries: int, keys: int, key_heads: int, seed: int
) -> None:
    query, key, value = tensors(queries, keys, 4, key_heads)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 4, queries, keys, generator=generator) > 0.4
    out = attend(query, key, value, mask=mask, scale=0.7, backend=backend).out
    torch.testing.assert_close(out, formula(query, key, value, mask, 0.7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_sees_nothing_gives_zeros_and_zero_gradients(backend: str) -> None:
    query, key, value = (x.requires_grad_() for x in tensors())
    mask = torch.ones(2, 4, 5, 7, dtype=torch.bool)
    mask[0, :, 2] = False
    found = attend(query, key, value, mask=mask, backend=backend)
    found.out.sum().backward()
    assert not found.out[0, :, 2].any()
    assert not query.grad[0, :, 2].any()
    assert all(torch.isfinite(x.grad).all() for x in (query, key, value))


def test_lse_is_that_of_the_visible_scores() -> None:
    query, key, value = tensors()
    mask = torch.ones(2, 4, 5, 7, dtype=torch.bool)
    mask[:, :, :, 5:] = False
    mask[1, 0, 3] = False
    lse = attend(query, key, value, mask=mask, return_lse=True).lse
    expected = ((query @ key.transpose(2, 3)) * 8**-0.5)[..., :5].logsumexp(-1)
    expected[1, 0, 3] = float("-inf")
    torch.testing.assert_close(lse, expected)


def test_no_keys_and_no_queries_are_legal() -> None:
    query, key, value = tensors()
    out = attend(query, key[:, :, :0], value[:, :, :0], return_lse=True)
    assert out.out.shape == (2, 4, 5, 8)
    assert not out.out.any()
    assert (out.lse == float("-inf")).all()
    assert attend(query[:, :, :0], key, value).out.shape == (2, 4, 0, 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_is_added_to_the_scaled_scores(backend: str) -> None:
    query, key, value = tensors()
    bias = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    out = attend(query, key, value, bias=bias, scale=0.3, backend=backend).out
    expected = (0.3 * query @ key.transpose(2, 3) + bias).softmax(-1) @ value
    torch.testing.assert_close(out, expected)


def test_softmax_is_in_float32_for_16_bit_inputs() -> None:
    query, key, value = (x.float() for x in tensors(keys=64))
    half = attend(*(x.bfloat16() for x in (query, key, value)), return_lse=True)
    assert half.out.dtype == torch.bfloat16
    assert half.lse.dtype == torch.float32
    rounded = [x.bfloat16().float() for x in (query, key, value)]
    torch.testing.assert_close(half.out.float(), attend(*rounded).out, rtol=1e-2, atol=1e-2)


def test_dropout_acts_in_training_only_and_maps_are_before_it() -> None:
    query, key, value = (x.float() for x in tensors())
    layer = Attend(dropout=0.5)
    clean = attend(query, key, value, maps=MapRequest())
    assert torch.equal(layer.eval()(query, key, value).out, clean.out)
    torch.manual_seed(0)
    trained = layer.train()(query, key, value, maps=MapRequest())
    assert not torch.allclose(trained.out, clean.out)
    torch.testing.assert_close(trained.maps, clean.maps)
    runs = [layer(query, key, value).out for _ in range(2000)]
    torch.testing.assert_close(torch.stack(runs).mean(0), clean.out, rtol=0, atol=0.15)


def test_maps_come_in_the_form_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(key_heads=2)
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[0, 0, 1] = False

    def maps(**options: object) -> Tensor:
        request = MapRequest(dtype=torch.float64, **options)
        return attend(query, key, value, mask=mask, maps=request).maps

    whole = maps()
    assert not whole[0, :, 1].any()
    torch.testing.assert_close(
        whole @ value.repeat_interleave(2, 1), attend(query, key, value, mask=mask).out
    )
    torch.testing.assert_close(maps(queries="first"), whole[:, :, :1])
    torch.testing.assert_close(maps(queries=torch.tensor([3, 0])), whole[:, :, [3, 0]])
    torch.testing.assert_close(maps(heads=[2]), whole[:, [2]])
    torch.testing.assert_close(maps(reduce="head_mean"), whole.mean(1))
    torch.testing.assert_close(maps(reduce="received"), whole.sum(2))
    torch.testing.assert_close(maps(reduce="entropy"), torch.special.entr(whole).sum(-1))
    everything = [maps(), maps(reduce="received"), maps(reduce="head_mean"), maps(reduce="entropy")]
    monkeypatch.setattr(scores_module, "CHUNK_WEIGHTS", 1)  # row by row
    chunked = [maps(), maps(reduce="received"), maps(reduce="head_mean"), maps(reduce="entropy")]
    for one, other in zip(everything, chunked, strict=True):
        torch.testing.assert_close(one, other)


def test_maps_carry_gradients_on_request_only() -> None:
    query, key, value = (x.requires_grad_() for x in tensors())
    assert not attend(query, key, value, maps=MapRequest()).maps.requires_grad
    attend(query, key, value, maps=MapRequest(detach=False)).maps[..., 0].sum().backward()
    assert query.grad.any()
    assert value.grad is None


def test_the_kernel_is_named_with_the_reason() -> None:
    query, key, value = (x.float() for x in tensors())
    assert explain_backend(query, key, value).backend == "sdpa"
    info = attend(query, key, value, return_lse=True).info
    assert info.backend == "eager"
    assert [r[:2] for r in info.refused] == [("sdpa", "returns no lse")]
    with pytest.raises(ConfigError, match="sdpa returns no lse"):
        attend(query, key, value, return_lse=True, backend="sdpa")
    with pytest.raises(ConfigError, match="'flash' is unknown"):
        attend(query, key, value, backend="flash")


def test_wrong_calls_are_named() -> None:
    query, key, value = tensors(key_heads=4, heads=4)
    with pytest.raises(ConfigError, match="4 query heads are no multiple of 3 key heads"):
        attend(query, key[:, :3], value[:, :3])
    with pytest.raises(ConfigError, match="is not boolean; pass True where attending is allowed"):
        attend(query, key, value, mask=torch.zeros(5, 7))


def test_layer_has_no_parameters_and_says_what_it_is() -> None:
    layer = Attend(dropout=0.1, scale=0.5)
    assert not list(nn.Module.parameters(layer))
    assert repr(layer) == "Attend(dropout=0.1, scale=0.5, backend='auto')"
