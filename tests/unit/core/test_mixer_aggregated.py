import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import TokenMixer, UnsupportedPattern
from manyhead_core.attention.mixers.aggregated import (
    AggregatedAttention,
    AggregatedFullAttention,
)
from manyhead_core.attention.mixers.conv_glu import ConvGLU
from manyhead_core.errors import ConfigError

DIM, HEADS = 12, 3


def random(mixer: TokenMixer) -> TokenMixer:
    torch.manual_seed(0)
    for parameter in mixer.parameters():
        parameter.normal_(std=0.4)
    return mixer


def layer(size: tuple[int, int] = (4, 6), **options: object) -> AggregatedAttention:
    options = {"sr_ratio": 2, "cpb_hidden": 16} | options
    mixer = AggregatedAttention(DIM, HEADS, size=size, **options).eval().requires_grad_(False)
    return random(mixer)


def full(size: tuple[int, int] = (3, 4)) -> AggregatedFullAttention:
    mixer = AggregatedFullAttention(DIM, HEADS, size=size, cpb_hidden=16)
    return random(mixer.eval().requires_grad_(False))


def tokens(size: tuple[int, int]) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, size[0] * size[1], DIM)


def without_learned_weights(mixer: AggregatedAttention) -> AggregatedAttention:
    mixer.learnable_tokens.zero_()
    mixer.learnable_bias.zero_()
    return mixer


def position_bias(mixer: TokenMixer, query: list[float], key: list[float]) -> Tensor:
    extent = [max(n - 1, 1) for n in mixer.pretrain_size]
    d = torch.tensor([(q - k) / e * 8 for q, k, e in zip(query, key, extent, strict=True)])
    d = d.sign() * (1 + d.abs()).log2() / math.log2(8)
    return mixer.cpb_fc2(mixer.cpb_fc1(d).relu())


def pooled_places(length: int, count: int) -> list[float]:
    """Mean coordinate of the cells of adaptive pooling."""
    cells = [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    return [sum(cell) / len(cell) for cell in cells]


def written_out(mixer: AggregatedAttention, x: Tensor, head: int, token: int) -> Tensor:
    """Output of one head and token of the first sample, pair by pair."""
    height, width = mixer.size
    unit = slice(head * 4, head * 4 + 4)
    q = F.normalize(mixer.q(x[0, token])[unit], dim=0)
    keys, values = mixer.kv(x[0])[:, :DIM][:, unit], mixer.kv(x[0])[:, DIM:][:, unit]
    image = F.gelu(mixer.sr(x[:1].mT.reshape(1, DIM, height, width)))
    pooled = mixer.norm(F.adaptive_avg_pool2d(image, mixer.pool_size)[0].flatten(1).T)
    far_k, far_v = mixer.kv(pooled)[:, :DIM][:, unit], mixer.kv(pooled)[:, DIM:][:, unit]
    y, reach = divmod(token, width), mixer.window // 2
    offsets = [(r, c) for r in range(-reach, reach + 1) for c in range(-reach, reach + 1)]
    seen = [
        (tap, (y[0] + r) * width + y[1] + c)
        for tap, (r, c) in enumerate(offsets)
        if 0 <= y[0] + r < height and 0 <= y[1] + c < width
    ]
    factor = F.softplus(mixer.temperature[head, 0, 0]) * math.log(len(seen) + len(far_k))
    scaled = (q + mixer.query_embedding[head, 0]) * factor
    logits = [
        scaled @ F.normalize(keys[j], dim=0) + mixer.relative_pos_bias_local[head, tap]
        for tap, j in seen
    ]
    places = [
        [r, c]
        for r in pooled_places(height, mixer.pool_size[0])
        for c in pooled_places(width, mixer.pool_size[1])
    ]
    for k, place in zip(far_k, places, strict=True):
        bias = position_bias(mixer, [float(n) for n in y], place)[head]
        logits.append(scaled @ F.normalize(k, dim=0) + bias)
    weights = torch.stack(logits).softmax(0)
    out = weights[len(seen) :] @ far_v
    for weight, (tap, j) in zip(weights, seen, strict=False):
        extra = q @ mixer.learnable_tokens[head, :, tap] + mixer.learnable_bias[head, 0, tap]
        out = out + (weight + extra) * values[j]
    return out


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4, 6), {}),
        ((5, 3), {"pool_size": (2, 2), "window": 5, "pretrain_size": (7, 4)}),
        ((1, 4), {"pool_size": (1, 3)}),
        ((4, 6), {"window": 1}),
        ((1, 1), {"sr_ratio": 1}),
    ],
)
def test_equals_the_formula_written_out(size: tuple[int, int], options: dict) -> None:
    mixer, x = layer(size, **options), tokens(size)
    rows = [
        torch.cat([written_out(mixer, x, head, token) for head in range(HEADS)])
        for token in range(size[0] * size[1])
    ]
    found = mixer(x, grid=size).y[0]
    torch.testing.assert_close(found, mixer.proj(torch.stack(rows)), rtol=1e-5, atol=1e-5)


def test_without_learned_weights_those_of_a_query_sum_to_one() -> None:
    mixer, x = layer(), tokens((4, 6))
    maps = mixer(x, grid=(4, 6), maps=MapRequest()).maps
    assert maps.shape == (2, HEADS, 24, 9 + 2 * 3)
    assert ((maps.sum(-1) - 1).abs() > 1e-3).any()
    maps = without_learned_weights(mixer)(x, grid=(4, 6), maps=MapRequest()).maps
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, HEADS, 24))


def test_a_window_of_one_leaves_the_token_itself_and_the_pooled_ones() -> None:
    mixer, x = layer(window=1), tokens((4, 6))
    maps = mixer(x, grid=(4, 6), maps=MapRequest()).maps
    assert maps.shape[-1] == 1 + 6
    # Without the pooled tokens the weight of a token for itself is all there is.
    mixer.kv.bias.zero_()
    mixer.norm.weight.zero_()
    mixer.norm.bias.zero_()
    maps = mixer(x, grid=(4, 6), maps=MapRequest()).maps
    value = mixer.kv(x)[..., DIM:].unflatten(-1, (HEADS, 4)).transpose(1, 2)
    expected = mixer.proj((maps[..., :1] * value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, grid=(4, 6)).y, expected, rtol=1e-5, atol=1e-5)


def test_a_pooled_map_of_full_size_sees_every_position_once_more() -> None:
    mixer = without_learned_weights(layer((3, 4), window=7, sr_ratio=1))
    mixer.temperature.fill_(-200.0)
    mixer.relative_pos_bias_local.zero_()
    mixer.cpb_fc2.weight.zero_()
    mixer.cpb_fc2.bias.zero_()
    maps = mixer(tokens((3, 4)), grid=(3, 4), maps=MapRequest()).maps
    # Flat scores: each of the 12 positions counts once in the window and once in the pooled map.
    assert maps.shape[-1] == 49 + 12
    torch.testing.assert_close((maps > 0).sum(-1), torch.full((2, HEADS, 12), 24))
    torch.testing.assert_close(maps.amax(-1), torch.full((2, HEADS, 12), 1 / 24))
    torch.testing.assert_close(maps[..., 49:].sum(-1), torch.full((2, HEADS, 12), 0.5))


def test_border_queries_have_fewer_keys_and_a_smaller_length_scale() -> None:
    mixer = layer()
    counts = mixer.log_keys.exp().round().view(4, 6) - 2 * 3
    expected = torch.full((4, 6), 9.0)
    expected[[0, -1]] = 6.0
    expected[:, [0, -1]] = 6.0
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = 4.0
    torch.testing.assert_close(counts, expected)
    maps = mixer(tokens((4, 6)), grid=(4, 6), maps=MapRequest(queries="first")).maps
    # The first token has no neighbours above and to its left.
    assert not maps[..., 0, [0, 1, 2, 3, 6]].any()
    assert maps[..., 0, [4, 5, 7, 8]].all()


def test_maps_of_some_rows_and_heads() -> None:
    mixer, x = layer(), tokens((4, 6))
    maps = mixer(x, grid=(4, 6), maps=MapRequest()).maps
    part = mixer(x, grid=(4, 6), maps=MapRequest(queries=torch.tensor([9, 2]), heads=[1])).maps
    torch.testing.assert_close(part, maps[:, 1:2, [9, 2]])
    with pytest.raises(ConfigError, match="no entropy"):
        mixer(x, grid=(4, 6), maps=MapRequest(reduce="entropy"))


def test_first_temperature_and_weights() -> None:
    mixer = AggregatedAttention(64, 4, size=(16, 16))
    assert F.softplus(mixer.temperature).unique().tolist() == pytest.approx([1 / 0.24])
    assert mixer.relative_pos_bias_local.abs().max() <= 8e-4
    assert not mixer.learnable_bias.any()
    assert mixer.pool_size == (2, 2)


def test_another_size_needs_no_new_parameters() -> None:
    mixer, other = layer(), layer((6, 4), pretrain_size=(4, 6))
    other.load_state_dict(mixer.state_dict())
    mixer.resize((6, 4))
    x = tokens((6, 4))
    torch.testing.assert_close(mixer(x, grid=(6, 4)).y, other(x, grid=(6, 4)).y)
    with pytest.raises(ConfigError, match=r"built for a map of \(6, 4\), got \(4, 6\)"):
        mixer(x, grid=(4, 6))
    with pytest.raises(ConfigError, match=r"sr_ratio: 2 leaves nothing of a map of \(1, 8\)"):
        mixer.resize((1, 8))


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (5, 1)])
def test_the_full_form_is_cosine_attention_with_the_position_bias(size: tuple[int, int]) -> None:
    mixer, x = full(size), tokens(size)
    count = size[0] * size[1]
    q, k, v = (p.unflatten(-1, (HEADS, 4)).transpose(1, 2) for p in mixer.qkv(x).chunk(3, -1))
    heat = F.softplus(mixer.temperature) * math.log(count)
    scores = (F.normalize(q, dim=-1) + mixer.query_embedding) * heat @ F.normalize(k, dim=-1).mT
    places = [[float(r), float(c)] for r in range(size[0]) for c in range(size[1])]
    bias = torch.stack([torch.stack([position_bias(mixer, a, b) for b in places]) for a in places])
    weights = (scores + bias.permute(2, 0, 1)).softmax(-1)
    expected = mixer.proj((weights @ v).transpose(1, 2).flatten(2))
    found = mixer(x, grid=size, maps=MapRequest())
    torch.testing.assert_close(found.y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.maps, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [layer, full])
def test_every_parameter_has_a_finite_gradient(build: object) -> None:
    mixer = build().requires_grad_().train()
    mixer(tokens(mixer.size), grid=mixer.size).y.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("build", [layer, full])
def test_scores_are_float32_under_autocast(build: object) -> None:
    mixer = build()
    x = tokens(mixer.size)
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer(x, grid=mixer.size, maps=MapRequest())
    expected = mixer(x, grid=mixer.size)
    torch.testing.assert_close(found.y.float(), expected.y, rtol=0.05, atol=0.2)
    assert mixer.bfloat16()(x.bfloat16(), grid=mixer.size).y.dtype == torch.bfloat16


def test_dropout_acts_in_training_only() -> None:
    mixer, x = layer(attention_dropout=0.5), tokens((4, 6))
    expected = mixer(x, grid=(4, 6)).y
    torch.testing.assert_close(mixer(x, grid=(4, 6)).y, expected)
    assert not torch.allclose(mixer.train()(x, grid=(4, 6)).y, expected)


@pytest.mark.parametrize("build", [layer, full])
def test_undeclared_uses_are_refused(build: object) -> None:
    mixer = build()
    x = tokens(mixer.size)
    for words, message in [
        ({"context": x}, "does not support non-causal cross-attention"),
        ({"mask": Causal()}, "causal self-attention"),
        ({"mask": KeyPadding(torch.tensor([3, 3]))}, "does not support masks"),
        ({"memory": x}, "memory"),
    ]:
        with pytest.raises(UnsupportedPattern, match=message):
            mixer(x, grid=mixer.size, **words)
    with pytest.raises(ConfigError, match="pass grid"):
        mixer(x)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="window: 4 is not odd"):
        layer(window=4)
    with pytest.raises(ConfigError, match="12 is no multiple of num_heads=5"):
        AggregatedAttention(12, 5, size=(4, 4))
    with pytest.raises(ConfigError, match=r"size: \(4,\) is not a height and a width"):
        layer((4,))


def test_the_channel_mixer_gates_with_neighbours() -> None:
    torch.manual_seed(0)
    block = ConvGLU(6, ratio=4).eval().requires_grad_(False)
    hidden = int(2 * 4 * 6 / 3)
    assert block.fc1.weight.shape == (2 * hidden, 6)
    x = torch.randn(2, 15, 6)
    a, b = block.fc1(x).split(hidden, -1)
    a = block.dwconv(a.mT.reshape(2, hidden, 3, 5)).flatten(2).mT
    torch.testing.assert_close(block(x, (3, 5)), block.fc2(F.gelu(a) * b))
    with pytest.raises(ConfigError, match="leaves no hidden channel"):
        ConvGLU(1, ratio=1)
