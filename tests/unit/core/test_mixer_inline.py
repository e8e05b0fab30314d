import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding, SlidingWindow
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.inline import FEATURES, InlineAttention, inline_attend
from manyhead_core.errors import ConfigError


def layer(**options: object) -> InlineAttention:
    torch.manual_seed(0)
    mixer = InlineAttention(12, 3, **options).eval().requires_grad_(False)
    for parameter in mixer.parameters():
        parameter.normal_(std=0.4)
    return mixer


def heads(keys: int = 7, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 3, tokens, 4, dtype=dtype) for tokens in (5, keys, keys)]


def explicit(query: Tensor, key: Tensor) -> Tensor:
    """The weights of the paper, written out."""
    products = query @ key.mT * query.shape[-1] ** -0.5 / key.shape[2]
    return products - products.mean(-1, keepdim=True) + 1 / key.shape[2]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("keys", [7, 1])
def test_equals_the_explicit_form(feature: str, keys: int) -> None:
    query, key, value = heads(keys)
    phi = FEATURES[feature]
    found = inline_attend(query, key, value, feature=phi)
    expected = explicit(phi(query), phi(key)) @ value
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [4, 6]])
def test_rows_of_weights_sum_to_one(lengths: list[int] | None) -> None:
    x = torch.randn(2, 6, 12)
    mask = None if lengths is None else KeyPadding(torch.tensor(lengths))
    maps = layer(local="none")(x, mask=mask, maps=MapRequest()).maps
    assert maps.shape == (2, 3, 6, 6)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 6))
    assert (maps < 0).any()


@pytest.mark.parametrize("feature", ["identity", "relu"])
def test_injectivity_different_queries_have_different_weights(feature: str) -> None:
    query, key, _ = heads()
    query, key = query.abs(), key.abs()
    centred = key - key.mean(2, keepdim=True)
    assert (torch.linalg.matrix_rank(centred) == 4).all()
    phi = FEATURES[feature]
    rows = [explicit(phi(q), phi(key)) for q in (query, 2 * query)]
    # A normalised linear attention gives a query and its multiple the same row.
    plain = [phi(q) @ phi(key).mT for q in (query, 2 * query)]
    same = [w / w.sum(-1, keepdim=True) for w in plain]
    torch.testing.assert_close(*same)
    identity = torch.eye(7).expand(2, 3, 7, 7)
    ours = [inline_attend(q, key, identity, feature=phi) for q in (query, 2 * query)]
    for found, row in zip(ours, rows, strict=True):
        torch.testing.assert_close(found, row, rtol=0, atol=1e-6)
    assert ((ours[0] - ours[1]).abs().amax(-1) > 1e-3).all()


def test_maps_are_the_weights_of_the_output() -> None:
    mixer, x = layer(local="none", feature="leaky_relu"), torch.randn(2, 6, 12)
    mask = KeyPadding(torch.tensor([6, 3]))
    found = mixer(x, mask=mask, maps=MapRequest())
    _, _, value = mixer.project(x, None)
    expected = mixer.proj((found.maps @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found.y, expected, rtol=0, atol=2e-6)
    part = mixer(x, mask=mask, maps=MapRequest(queries=torch.tensor([4, 1]), heads=[2])).maps
    torch.testing.assert_close(part, found.maps[:, 2:][:, :, [4, 1]])
    with pytest.raises(ConfigError, match="no entropy"):
        mixer(x, maps=MapRequest(reduce="entropy"))


@pytest.mark.parametrize("grid", [(3, 5), (1, 7), (1, 1), (4, 4)])
def test_the_local_term_is_a_depthwise_convolution_with_kernels_of_the_sample(
    grid: tuple[int, int],
) -> None:
    mixer, x = layer(), torch.randn(2, grid[0] * grid[1], 12)
    query, key, value = mixer.project(x, None)
    out = inline_attend(query, key, value).transpose(1, 2).flatten(2)
    kernels = mixer.residual(x.mean(1)[..., None]).view(24, 1, 3, 3)
    image = value.mT.reshape(1, 24, *grid)
    local = F.conv2d(image, kernels, padding=1, groups=24).view(2, 12, -1).mT
    expected = mixer.proj(out + local)
    torch.testing.assert_close(mixer(x, grid=grid).y, expected, rtol=1e-5, atol=1e-5)


def test_the_local_term_of_a_sequence_has_three_taps() -> None:
    mixer, x = layer(local="1d"), torch.randn(2, 7, 12)
    assert mixer.residual[2].weight.shape == (36, 4, 1)
    query, key, value = mixer.project(x, None)
    out = inline_attend(query, key, value).transpose(1, 2).flatten(2)
    kernels = mixer.residual(x.mean(1)[..., None]).view(24, 1, 3)
    local = F.conv1d(value.mT.reshape(1, 24, 7), kernels, padding=1, groups=24).view(2, 12, 7).mT
    torch.testing.assert_close(mixer(x).y, mixer.proj(out + local), rtol=1e-5, atol=1e-5)


def test_the_local_term_skips_a_class_token() -> None:
    mixer, x = layer(num_prefix=1), torch.randn(2, 13, 12)
    query, key, value = mixer.project(x, None)
    alone = mixer.proj(inline_attend(query, key, value).transpose(1, 2).flatten(2))
    found = mixer(x, grid=(3, 4)).y
    torch.testing.assert_close(found[:, 0], alone[:, 0])
    assert ((found - alone)[:, 1:].abs().amax(-1) > 1e-3).all()
    with pytest.raises(ConfigError, match=r"grid \(13, 1\) does not hold 12 tokens"):
        mixer(x, grid=(13, 1))


def test_one_projection_equals_two() -> None:
    whole, parts = layer(fused_qkv=True), layer()
    state = parts.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv.{kind}"] = torch.cat([state.pop(f"q.{kind}"), state.pop(f"kv.{kind}")])
    whole.load_state_dict(state)
    x = torch.randn(2, 6, 12)
    torch.testing.assert_close(whole(x, grid=(2, 3)).y, parts(x, grid=(2, 3)).y)
    with pytest.raises(ConfigError, match="takes no context"):
        whole(x, x)


def test_cross_attention_averages_over_the_keys_without_a_local_term() -> None:
    mixer = layer()
    x, context = torch.randn(2, 4, 12), torch.randn(2, 9, 12)
    query, key, value = mixer.project(x, context)
    expected = mixer.proj((explicit(query, key) @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, context).y, expected, rtol=0, atol=2e-6)


def test_masked_keys_change_nothing() -> None:
    mixer, x = layer(), torch.randn(2, 6, 12)
    longer = torch.cat([x, torch.full((2, 3, 12), 7.0)], 1)
    mask = KeyPadding(torch.tensor([6, 6]))
    found = mixer(longer, mask=mask, grid=(3, 3)).y[:, :6]
    torch.testing.assert_close(found, mixer(x, grid=(2, 3)).y, rtol=0, atol=1e-6)
    cross = mixer(x, longer, mask=mask).y
    torch.testing.assert_close(cross, mixer(x, x).y, rtol=0, atol=1e-6)


def test_a_fully_masked_sample_gives_zeros_and_zero_gradients() -> None:
    tensors = [t.requires_grad_() for t in heads()]
    valid = torch.tensor([[False] * 7, [True] * 7])
    out = inline_attend(*tensors, valid=valid)
    assert not out[0].any()
    out.sum().backward()
    for tensor in tensors:
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[0].any()


def test_sums_in_float32_under_autocast() -> None:
    query, key, value = heads()
    with torch.autocast("cpu", torch.bfloat16):
        found = inline_attend(query.half(), key.half(), value.half() + 1)
    expected = inline_attend(
        query.half().double(), key.half().double(), (value.half() + 1).double()
    )
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    x = torch.randn(2, 6, 12)
    with torch.autocast("cpu", torch.bfloat16):
        wide = layer()(x, grid=(2, 3)).y
    torch.testing.assert_close(wide.float(), layer()(x, grid=(2, 3)).y, rtol=0.05, atol=0.1)


def test_gradients_are_those_of_finite_differences() -> None:
    mixer = layer().double().requires_grad_()
    x = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    for mask in (None, KeyPadding(torch.tensor([4, 0]))):
        assert torch.autograd.gradcheck(
            lambda x, mask=mask: mixer(x, grid=(2, 3), mask=mask).y, (x,), fast_mode=True
        )
    mixer(x, grid=(2, 3)).y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())


def test_heads_can_be_switched_off() -> None:
    mixer, x = layer(local="none"), torch.randn(2, 6, 12)
    words = {"mask": None, "grid": None, "memory": None, "maps": None}
    gate = torch.tensor([1.0, 0.0, 1.0])
    query, key, value = mixer.project(x, None)
    out = (explicit(query, key) @ value) * gate[:, None, None]
    found = mixer.mix(x, None, **words, head_gate=gate).y
    expected = mixer.proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_undeclared_uses_are_refused() -> None:
    mixer, x = layer(local="none"), torch.randn(1, 6, 12)
    with pytest.raises(UnsupportedPattern, match="inline: does not support causal self-attention"):
        mixer(x, mask=Causal())
    with pytest.raises(UnsupportedPattern, match="causal cross-attention"):
        mixer(x, x, mask=Causal())
    with pytest.raises(UnsupportedPattern, match="masks other than KeyPadding"):
        mixer(x, mask=SlidingWindow(1, 1))
    with pytest.raises(UnsupportedPattern, match="memory"):
        mixer(x, memory=x)
    with pytest.raises(ConfigError, match="local='2d' needs grid"):
        layer()(x)
    with pytest.raises(ConfigError, match="local: '3d' is unknown; use 2d, 1d, none"):
        layer(local="3d")
    with pytest.raises(ConfigError, match="12 is no multiple of num_heads=5"):
        InlineAttention(12, 5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    mixer = layer()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True)
    for grid in ((2, 3), (3, 5)):
        x = torch.randn(2, grid[0] * grid[1], 12)
        torch.testing.assert_close(
            compiled(x, grid=grid).y, mixer(x, grid=grid).y, rtol=1e-5, atol=1e-5
        )
