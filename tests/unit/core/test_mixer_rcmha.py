"""Relative convolutional attention: tables, convolutions over time, and memory."""

import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, Dense, KeyPadding, Prefix
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers import rcmha
from manyhead_core.attention.mixers.rcmha import RelativeConvAttention
from manyhead_core.errors import ConfigError


def layer(dim: int = 12, num_heads: int = 3, *, max_distance: int = 16, **options):
    """A layer in float64 with nothing left at zero."""
    torch.manual_seed(0)
    net = RelativeConvAttention(dim, num_heads, max_distance=max_distance, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.4)
    return net.eval()


def tokens(count: int = 7, dim: int = 12, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, dim, generator=generator, dtype=torch.float64)


def convolved(branch, x: Tensor) -> Tensor:
    """Projection and convolution, tap by tap: `(batch, heads, tokens, head_dim)`."""
    linear, conv = branch[0].linear, branch[1].conv
    z = F.linear(x, linear.weight, linear.bias).unflatten(-1, (3, -1)).transpose(1, 2)
    taps = conv.weight[:, 0]
    out = torch.zeros_like(z) + conv.bias
    for t in range(z.shape[2]):
        for u in range(taps.shape[1]):
            source = t - (taps.shape[1] - 1) + u
            if source >= 0:
                out[:, :, t] = out[:, :, t] + taps[:, u] * z[:, :, source]
    return out


def formula(net: RelativeConvAttention, x: Tensor, memory: Tensor, *, causal: bool) -> Tensor:
    """The layer with an explicit gather for each pair of positions."""
    source = torch.cat([memory, x], 1)
    query = convolved(net.query, x)
    key, value = convolved(net.key, source), convolved(net.value, source)
    past = memory.shape[1]
    scores = (query + net.query_pos_bias[:, None]) @ key.mT
    for i in range(x.shape[1]):
        for j in range(source.shape[1]):
            entry = net.max_distance + j - past - i
            relative = (query[:, :, i] * net.key_pos_embeddings[entry]).sum(-1)
            scores[:, :, i, j] = scores[:, :, i, j] + relative + net.key_pos_bias[entry]
            if causal and j - past > i:
                scores[:, :, i, j] = float("-inf")
    out = (scores * net.scale).softmax(-1) @ value
    return net.output(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("count", "past"), [(1, 0), (1, 4), (6, 0), (5, 6), (6, 1)])
def test_shift_is_the_explicit_gather(causal: bool, count: int, past: int) -> None:
    net = layer()
    x, memory = tokens(count), tokens(past, seed=2)
    mask = Causal() if causal else None
    found = net(x, mask=mask, memory=memory if past else None).y
    torch.testing.assert_close(found, formula(net, x, memory, causal=causal))


def test_long_segments_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = layer()
    x, memory = tokens(8), tokens(3, seed=2)
    valid = KeyPadding(torch.arange(11).expand(2, -1) != 5)
    masks = (None, Causal(), valid, valid & Causal())
    whole = [net(x, mask=mask, memory=memory).y for mask in masks]
    monkeypatch.setattr(rcmha, "CHUNK_QUERIES", 3)
    for mask, expected in zip(masks, whole, strict=True):
        torch.testing.assert_close(net(x, mask=mask, memory=memory).y, expected)


def test_zero_tables_and_identity_convolutions_are_plain_attention() -> None:
    net = layer()
    with torch.no_grad():
        for branch in (net.query, net.key, net.value):
            branch[1].conv.weight.copy_(torch.tensor([0.0, 0.0, 1.0]).expand(4, 1, 3))
            branch[1].conv.bias.zero_()
        for table in (net.key_pos_embeddings, net.key_pos_bias, net.query_pos_bias):
            table.zero_()
    x = tokens()
    heads = [branch[0](x) for branch in (net.query, net.key, net.value)]
    expected = F.scaled_dot_product_attention(*heads)
    expected = net.output(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(net(x).y, expected)


def test_position_tables_start_at_zero() -> None:
    net = RelativeConvAttention(12, 3, max_distance=4)
    for table in (net.key_pos_embeddings, net.key_pos_bias, net.query_pos_bias):
        assert not table.any()


def test_causal_outputs_do_not_depend_on_later_tokens_through_the_convolution() -> None:
    net = layer()
    x = tokens()
    whole = net(x, mask=Causal()).y
    for count in (1, 4):
        torch.testing.assert_close(net(x[:, :count], mask=Causal()).y, whole[:, :count])


def test_query_convolution_starts_anew_at_the_segment() -> None:
    net = layer(memory_length=4)
    x = tokens(8)
    first = net(x[:, :4], mask=Causal())
    second = net(x[:, 4:], mask=Causal(), memory=first.state).y
    whole = net(x, mask=Causal()).y[:, 4:]
    # From the third query on nothing is missing on its left.
    torch.testing.assert_close(second[:, 2:], whole[:, 2:])
    assert (second[:, :2] - whole[:, :2]).abs().max() > 1e-3


def test_state_is_the_detached_end_of_the_input() -> None:
    net = layer(memory_length=5)
    x = tokens(4).requires_grad_()
    first = net(x).state
    assert torch.equal(first, x.detach())
    second = net(x, memory=first).state
    assert torch.equal(second, torch.cat([x, x], 1)[:, -5:].detach())
    assert not second.requires_grad
    assert layer()(x).state is None


def test_tables_shift_with_both_ends() -> None:
    net = layer()
    x = tokens(9)
    with torch.no_grad():
        for branch in (net.query, net.key, net.value):
            branch[1].conv.weight[:, :, :2] = 0
    # Only differences of positions matter without a border for the convolutions.
    valid = torch.arange(9).expand(2, -1) >= 3
    found = net(x, mask=KeyPadding(valid)).y[:, 3:]
    torch.testing.assert_close(found, net(x[:, 3:]).y)


@pytest.mark.parametrize("where", ["left", "right"])
def test_padded_tokens_change_nothing_also_through_the_convolution(where: str) -> None:
    net = layer()
    x, padding = tokens(), 9 * tokens(3, seed=5)
    real = torch.ones(2, 7, dtype=torch.bool)
    pairs = [(padding, ~real[:, :3]), (x, real)]
    if where == "right":
        pairs.reverse()
    padded, valid = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
    expected = net(x).y
    for mask in (KeyPadding(valid), Dense(valid[:, None, None])):
        found = net(padded, mask=mask).y[valid].unflatten(0, (2, 7))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found = net(padded, mask=KeyPadding(valid) & Causal()).y[valid].unflatten(0, (2, 7))
    torch.testing.assert_close(found, net(x, mask=Causal()).y, rtol=0, atol=1e-6)


def test_padding_in_memory_changes_nothing() -> None:
    net = layer()
    x, memory = tokens(), tokens(4, seed=2)
    valid = torch.arange(11).expand(2, -1) >= 2
    found = net(x, mask=KeyPadding(valid) & Causal(), memory=memory).y
    expected = net(x, mask=Causal(), memory=memory[:, 2:]).y
    torch.testing.assert_close(found, expected)


def test_token_that_no_query_sees_still_asks_for_itself() -> None:
    net = layer()
    x = tokens()
    found = net(x, mask=Prefix(3)).y
    other = x.clone()
    other[:, 5] += 1.0
    change = (net(other, mask=Prefix(3)).y - found).abs().amax((0, 2))
    assert change[5] > 1e-3
    assert change[[0, 1, 2, 3, 4, 6]].max() == 0


def test_fully_masked_row_gives_the_bias_alone_and_no_gradient() -> None:
    net = layer()
    x = tokens().requires_grad_()
    found = net(x, mask=Dense(torch.zeros(2, 1, 1, 7, dtype=torch.bool))).y
    torch.testing.assert_close(found, net.output.bias.expand(2, 7, -1))
    found.square().sum().backward()
    assert not x.grad.any()
    row = torch.ones(7, 7, dtype=torch.bool)
    row[3] = False
    found = net(tokens(), mask=Dense(row)).y
    torch.testing.assert_close(found[:, 3], net.output.bias.expand(2, -1))


def test_gradients_match_finite_differences() -> None:
    net = layer(6, 2, max_distance=6)
    names = [name for name, _ in net.named_parameters()]
    memory = tokens(2, 6, seed=2)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        options = {"memory": memory, "mask": Causal()}
        return torch.func.functional_call(net, state, (x,), options).y

    inputs = (tokens(3, 6)[:, :3], *net.parameters())
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_distances_beyond_the_tables_are_refused_or_share_the_last_entry() -> None:
    x, memory = tokens(5), tokens(4, seed=2)
    with pytest.raises(ConfigError, match="max_distance: 7 is short of 8 for 5 tokens and 4"):
        layer(max_distance=7)(x, memory=memory)
    with pytest.raises(ConfigError, match="max_distance: 4 is short of 5"):
        layer(max_distance=4)(x)
    near, far = layer(max_distance=3, clamp=True), layer(max_distance=8)
    state = near.state_dict()
    entries = torch.arange(-8, 8).clamp(-3, 2) + 3
    for name in ("key_pos_embeddings", "key_pos_bias"):
        state[name] = state[name][entries]
    far.load_state_dict(state)
    torch.testing.assert_close(near(x, memory=memory).y, far(x, memory=memory).y)


def test_exact_reach_of_the_tables_is_enough() -> None:
    x, memory = tokens(5), tokens(3, seed=2)
    net = layer(max_distance=7)
    torch.testing.assert_close(net(x, memory=memory).y, formula(net, x, memory, causal=False))


def test_maps_sum_to_one_over_memory_and_segment() -> None:
    net = layer()
    found = net(tokens(), memory=tokens(2, seed=2), mask=Causal(), maps=MapRequest()).maps
    assert found.shape == (2, 3, 7, 9)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 7))
    assert not found[..., 0, 3:].any()


def test_keys_of_the_state_are_those_of_public_checkpoints() -> None:
    net = RelativeConvAttention(12, 3, max_distance=5)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    expected = {"value.0.linear.bias": (12,), "output.weight": (12, 12), "output.bias": (12,)}
    for name in ("query", "key", "value"):
        expected[f"{name}.0.linear.weight"] = (12, 12)
        expected[f"{name}.1.conv.weight"] = (4, 1, 3)
        expected[f"{name}.1.conv.bias"] = (4,)
    expected["key_pos_embeddings"] = (10, 3, 4)
    expected["key_pos_bias"] = (10, 3)
    expected["query_pos_bias"] = (3, 4)
    assert shapes == expected


def test_mask_has_to_cover_the_memory() -> None:
    with pytest.raises(ConfigError, match="covers 7 keys of 9"):
        layer()(tokens(), memory=tokens(2), mask=KeyPadding(torch.ones(2, 7, dtype=torch.bool)))


def test_cross_attention_is_refused() -> None:
    with pytest.raises(UnsupportedPattern, match="rcmha: does not support non-causal cross"):
        layer()(tokens(), tokens())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "dim: 12"),
        ({"memory_length": -1}, "memory_length"),
        ({"max_distance": 0}, "max_distance"),
        ({"kernel_size": 0}, "kernel_size"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RelativeConvAttention(12, **{"num_heads": 3, **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    net = layer(memory_length=4).float()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for count in (5, 8):
        x, memory = tokens(count).float(), tokens(4, seed=2).float()
        found = compiled(x, mask=Causal(), memory=memory)
        expected = net(x, mask=Causal(), memory=memory)
        torch.testing.assert_close(found.y, expected.y)
        torch.testing.assert_close(found.state, expected.state)
