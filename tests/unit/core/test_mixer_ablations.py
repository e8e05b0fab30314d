"""Ablation mixers: where their weights come from, masks, gates, and what they cannot see."""

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.attention.capture import attention_sites, capture
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, Dense, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.ablations import (
    Ablation,
    Identity,
    LinearQueryKey,
    PositionQueryKey,
    RandomQueryKey,
    StaticQueryKey,
    Uniform,
    link_static,
)
from manyhead_core.errors import ConfigError

KINDS = [Identity, Uniform, StaticQueryKey, PositionQueryKey, RandomQueryKey, LinearQueryKey]


def mixer(kind: type[Ablation], dim: int = 8, heads: int = 2, **options) -> Ablation:
    torch.manual_seed(0)
    if kind is PositionQueryKey:
        options = {"num_tokens": 9, **options}
    net = kind(dim, heads, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.6)
    return net.eval()


def tokens(count: int = 6, dim: int = 8, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)


def maps_of(net: Ablation, x: Tensor, **words) -> Tensor:
    found = net(x, maps=MapRequest(dtype=torch.float64), **words).maps
    assert found is not None
    return found


def from_maps(net: Ablation, x: Tensor, maps: Tensor) -> Tensor:
    """The output that weights give."""
    value = net.v(x).unflatten(-1, (net.num_heads, -1)).transpose(1, 2)
    return net.proj((maps @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, Causal(), KeyPadding(torch.tensor([4, 6]))])
def test_ablation_output_is_its_maps_times_the_values(kind: type[Ablation], mask: object) -> None:
    net, x = mixer(kind), tokens()
    torch.testing.assert_close(net(x, mask=mask).y, from_maps(net, x, maps_of(net, x, mask=mask)))


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_hidden_keys_change_nothing(kind: type[Ablation]) -> None:
    net, x = mixer(kind), tokens()
    changed = x.clone()
    changed[:, 4:] = 9.0
    mask = KeyPadding(torch.tensor([4, 4]))
    torch.testing.assert_close(net(x, mask=mask).y[:, :4], net(changed, mask=mask).y[:, :4])


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_causal_prefix_equals_the_whole(kind: type[Ablation]) -> None:
    net, x = mixer(kind), tokens()
    whole = net(x, mask=Causal()).y
    torch.testing.assert_close(net(x[:, :4], mask=Causal()).y, whole[:, :4])


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_fully_masked_rows_give_zeros_and_finite_gradients(kind: type[Ablation]) -> None:
    net, x = mixer(kind), tokens().requires_grad_()
    y = net(x, mask=Dense(torch.zeros(6, 6, dtype=torch.bool))).y
    torch.testing.assert_close(y, net.proj.bias.expand_as(y))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_heads_are_gated_and_captured(kind: type[Ablation]) -> None:
    net, x = mixer(kind), tokens()
    (site,) = attention_sites(net)
    with capture(net, request=MapRequest(dtype=torch.float64), head_outputs=True) as found:
        y = net(x).y
    (heads,) = found.head_outputs[site]
    torch.testing.assert_close(y, net.proj(heads.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(found.maps[site][0], maps_of(net, x))
    gate = torch.tensor([0.0, 2.0], dtype=torch.float64)
    gated = net.mix(x, None, mask=None, grid=None, memory=None, maps=None, head_gate=gate).y
    expected = net.proj((heads * gate[:, None, None]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(gated, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_gradients_reach_every_parameter(kind: type[Ablation]) -> None:
    net = mixer(kind)
    net(tokens()).y.square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        if not (kind is not LinearQueryKey and name == "qk.bias"):
            assert weight.grad.abs().max() > 0, name


def test_identity_does_not_mix() -> None:
    net, x = mixer(Identity), tokens()
    torch.testing.assert_close(net(x).y, net.proj(net.v(x)))
    assert torch.equal(maps_of(net, x)[0, 0], torch.eye(6, dtype=torch.float64))
    hidden = Dense(~torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(net(x, mask=hidden).y, net.proj.bias.expand(2, 6, 8))


def test_uniform_is_the_mean_over_visible_keys() -> None:
    net, x, context = mixer(Uniform), tokens(), tokens(4, seed=2)
    mean = net.proj(net.v(context).mean(1, keepdim=True)).expand(2, 6, 8)
    torch.testing.assert_close(net(x, context).y, mean)
    seen = net.v(x).cumsum(1) / torch.arange(1, 7)[:, None]
    torch.testing.assert_close(net(x, mask=Causal()).y, net.proj(seen))


def test_static_qk_weights_come_from_the_memory_only() -> None:
    net, first, later = mixer(StaticQueryKey), tokens(), tokens(seed=3)
    torch.testing.assert_close(maps_of(net, later, memory=first), maps_of(net, first))
    found = net(later, memory=first)
    assert found.state is first
    torch.testing.assert_close(found.y, from_maps(net, later, maps_of(net, first)))
    with pytest.raises(ConfigError, match=r"memory of shape .* does not fit"):
        net(later, memory=first[:, :3])


class Stack(nn.Module):
    """Layers of a host that passes no memory on."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mixer(StaticQueryKey) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).y
        return x


def threaded(host: Stack, x: Tensor) -> Tensor:
    state = None
    for layer in host.layers:
        found = layer(x, memory=state)
        x, state = x + found.y, found.state
    return x


def test_static_qk_link_equals_passing_the_memory_on() -> None:
    host, x = Stack(), tokens()
    expected, unlinked = threaded(host, x), host(x)
    assert not torch.allclose(expected, unlinked)
    handles = link_static(host)
    torch.testing.assert_close(host(x), expected)
    other = tokens(seed=5)
    torch.testing.assert_close(host(other), threaded(copy.deepcopy(host), other))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(host(x), unlinked)


def test_static_qk_links_of_a_copy_are_its_own() -> None:
    host = Stack()
    link_static(host)
    twin, x = copy.deepcopy(host), tokens()
    expected = host(x)
    torch.testing.assert_close(twin(x), expected)
    other = tokens(seed=7)
    host.layers[0](other)
    torch.testing.assert_close(twin.layers[1](x, memory=None).y, twin.layers[1](x, memory=x).y)


def test_static_qk_link_needs_a_layer_and_a_first_run() -> None:
    host = Stack()
    link_static(host)
    with pytest.raises(ConfigError, match="a linked layer has no embeddings yet"):
        host.layers[1](tokens())
    with pytest.raises(ConfigError, match="link_static: the model has no static_qk"):
        link_static(nn.Linear(2, 2))


def test_position_qk_weights_ignore_the_tokens() -> None:
    net = mixer(PositionQueryKey)
    logits = net.get_parameter("logits")
    torch.testing.assert_close(maps_of(net, tokens()), maps_of(net, tokens(seed=4)))
    torch.testing.assert_close(maps_of(net, tokens())[0], logits[:, :6, :6].softmax(-1))
    with pytest.raises(ConfigError, match="10 tokens exceed num_tokens=9"):
        net(tokens(10))


def test_random_qk_weights_ignore_the_tokens_and_embeddings_are_fixed() -> None:
    net = mixer(RandomQueryKey, num_embeddings=9)
    torch.testing.assert_close(maps_of(net, tokens()), maps_of(net, tokens(seed=4)))
    assert "embedding" in net.state_dict()
    assert "embedding" not in dict(net.named_parameters())
    again = RandomQueryKey(8, 2, num_embeddings=9)
    assert torch.equal(again.embedding.double(), net.get_buffer("embedding"))
    assert not torch.equal(
        RandomQueryKey(8, 2, num_embeddings=9, seed=1).embedding, again.embedding
    )
    with pytest.raises(ConfigError, match="10 tokens exceed num_embeddings=9"):
        net(tokens(10))


def test_random_qk_with_ids_follows_the_ids() -> None:
    net, x = mixer(RandomQueryKey, num_embeddings=20), tokens()
    ids = torch.tensor([[3, 3, 7, 1, 0, 19], [5, 4, 3, 2, 1, 0]])
    maps = maps_of(net, x, memory=ids)
    torch.testing.assert_close(maps[0, :, :, 0], maps[0, :, :, 1])
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    permuted = maps_of(net, x, memory=ids[:, order])
    torch.testing.assert_close(permuted, maps[:, :, order][..., order])


def test_linear_qk_weights_are_scaled_products() -> None:
    net, x, context = mixer(LinearQueryKey), tokens(), tokens(4, seed=2)
    weight, bias = net.qk.weight.chunk(2), net.qk.bias.chunk(2)
    query = (x @ weight[0].T + bias[0]).unflatten(-1, (2, 4)).transpose(1, 2)
    key = (context @ weight[1].T + bias[1]).unflatten(-1, (2, 4)).transpose(1, 2)
    expected = torch.einsum("bhid,bhjd->bhij", query, key) / 2
    found = net(x, context, maps=MapRequest(dtype=torch.float64))
    torch.testing.assert_close(found.maps, expected.detach())
    torch.testing.assert_close(found.y, from_maps(net, context, expected))
    assert (expected < 0).any()


def test_self_only_ablations_refuse_a_context() -> None:
    for kind in (Identity, StaticQueryKey, PositionQueryKey, RandomQueryKey):
        with pytest.raises(UnsupportedPattern, match="cross-attention"):
            mixer(kind)(tokens(), tokens())
    with pytest.raises(ConfigError, match="8 is no multiple of num_heads=3"):
        Uniform(8, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_is_finite_and_close_in_bfloat16(kind: type[Ablation]) -> None:
    net, x = mixer(kind).float(), tokens().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(x, mask=Causal()).y.float()
    expected = net(x, mask=Causal()).y
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


class Plain(nn.Module):
    def __init__(self, net: Ablation) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).y


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_ablation_exports_with_free_batch_and_length(kind: type[Ablation]) -> None:
    net = mixer(kind)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=2, max=8)}
    graph = torch.export.export(Plain(net), (tokens(),), dynamic_shapes=(free,))
    other = tokens(8, batch=5)
    torch.testing.assert_close(graph.module()(other), net(other).y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_ablation_compiles_without_graph_breaks(kind: type[Ablation]) -> None:
    net = mixer(kind).float()
    torch.compiler.reset()
    # Generating code takes most of the time, and does not differ between those on `Attend`.
    backend = "inductor" if kind is LinearQueryKey else "aot_eager"
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    for count in (5, 8):
        x = tokens(count).float()
        for mask in (None, Causal()):
            torch.testing.assert_close(compiled(x, mask=mask).y, net(x, mask=mask).y)
