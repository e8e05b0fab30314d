"""Selective heads: what they select, what packing changes (nothing), and what stays hidden."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyhead_core.attention.attend import attend
from manyhead_core.attention.capture import capture, gate_heads
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, Dense, KeyPadding, Mask, Shape, SlidingWindow
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.smha import SelectiveAttention, pack
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.rotary import rotate
from manyhead_core.errors import ConfigError

DIM, HEADS = 12, 4
ROOMY = 99
WHOLE = MapRequest(dtype=torch.float64)


def layer(**options) -> SelectiveAttention:
    """A layer in float64 with weights large enough for clear choices."""
    torch.manual_seed(0)
    options = {"head_dim": 4} | options
    net = SelectiveAttention(DIM, HEADS, **options).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5)
    return net


def tokens(count: int = 9, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(batch, count, DIM, generator=generator, dtype=torch.float64)


def by_hand(net: SelectiveAttention, x: Tensor, causal: bool = False) -> Tensor:
    """Head by head on a list of its own tokens; only the capacity limits it."""
    share = (x @ net.gate.weight.T).softmax(-1)
    top = share.topk(net.active_heads, -1)
    query, key, value = net.project(x, x)
    out = torch.zeros(len(x), x.shape[1], HEADS, net.head_dim, dtype=x.dtype)
    for sample in range(len(x)):
        for head in range(HEADS):
            mine = (top.indices[sample] == head).any(-1).nonzero()[:, 0][: net.capacity]
            q, k, v = (part[sample, head, mine] for part in (query, key, value))
            if net.rope_theta is not None:
                q, k = rotate(q, theta=net.rope_theta), rotate(k, theta=net.rope_theta)
            scores = q @ k.T * net.head_dim**-0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, float("-inf"))
            gate = share[sample, mine, head] / top.values[sample, mine].sum(-1)
            gate = gate if net.gate_output else torch.ones_like(gate)
            out[sample, mine, head] = gate[:, None] * (scores.softmax(-1) @ v)
    return net.proj(out.flatten(2))


@pytest.mark.parametrize("capacity", [None, ROOMY])
@pytest.mark.parametrize("mask", [None, Causal(), KeyPadding(torch.tensor([9, 4]))])
def test_smha_with_all_heads_and_no_gates_is_plain_attention(
    capacity: int | None, mask: Mask | None
) -> None:
    net = layer(active_heads=HEADS, gate_output=False, capacity=capacity)
    plain = Attention(DIM, HEADS, head_dim=4).double().eval()
    plain.load_state_dict({n: w for n, w in net.state_dict().items() if n != "gate.weight"})
    x = tokens()
    found, expected = net(x, mask=mask).y, plain(x, mask=mask).y
    torch.testing.assert_close(found[0], expected[0])
    real = 4 if isinstance(mask, KeyPadding) else 9
    torch.testing.assert_close(found[1, :real], expected[1, :real])


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(1, 9),
    active=st.integers(1, HEADS),
    capacity=st.sampled_from([None, 1, 3, ROOMY]),
    theta=st.sampled_from([None, 100.0]),
    gates=st.booleans(),
    causal=st.booleans(),
)
def test_smha_is_attention_of_each_head_among_its_own_tokens(
    count: int,
    active: int,
    capacity: int | None,
    theta: float | None,
    gates: bool,
    causal: bool,
) -> None:
    net = layer(active_heads=active, gate_output=gates, capacity=capacity, rope_theta=theta)
    x = tokens(count)
    found = net(x, mask=Causal() if causal else None).y
    torch.testing.assert_close(found, by_hand(net, x, causal))


def test_smha_takes_each_token_to_k_heads_with_gates_that_sum_to_one() -> None:
    gates, own = layer(active_heads=3).select(tokens())
    assert (own.sum(1) == 3).all()
    assert ((gates > 0) == own).all()
    torch.testing.assert_close(gates.sum(1), torch.ones(2, 9, dtype=torch.float64))
    assert layer().active_heads == 2


@pytest.mark.parametrize(
    "mask",
    [
        None,
        KeyPadding(torch.tensor([7, 3])),
        Causal() & KeyPadding(torch.tensor([7, 3])),
        SlidingWindow(2, 1),
        Causal() & Dense(torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) > 0.4),
    ],
)
def test_smha_packing_changes_no_result(mask: Mask | None) -> None:
    x = tokens()
    net = layer()
    query, key, value = net.project(x, x)
    gates, own = net.select(x, mask)
    allowed = own[..., :, None] & own[..., None, :]
    if mask is not None:
        allowed = allowed & mask.dense(Shape.of(query, key))
    expected = attend(query, key, value, mask=allowed, maps=WHOLE)
    y = net.proj((expected.out * gates[..., None]).transpose(1, 2).flatten(2))
    for capacity in (None, 8, ROOMY):
        found = layer(capacity=capacity)(x, mask=mask, maps=WHOLE)
        torch.testing.assert_close(found.y, y)
        torch.testing.assert_close(found.maps, expected.maps)


@pytest.mark.parametrize("options", [{}, {"capacity": 3}, {"rope_theta": 100.0}])
def test_smha_causal_output_depends_on_the_prefix_only(options: dict) -> None:
    net = layer(**options)
    x = tokens(11)
    whole = net(x, mask=Causal()).y
    for end in range(1, 12):
        prefix = net(x[:, :end], mask=Causal()).y
        torch.testing.assert_close(prefix, whole[:, :end])


@pytest.mark.parametrize("options", [{}, {"capacity": 6}, {"rope_theta": 100.0}])
@pytest.mark.parametrize("causal", [False, True])
def test_smha_padding_anywhere_changes_nothing(options: dict, causal: bool) -> None:
    net = layer(**options)
    x = tokens(6)
    where = torch.tensor([1, 2, 4, 5, 6, 8])
    padded = torch.full((2, 9, DIM), 3.0, dtype=x.dtype)
    padded[:, where] = x
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[:, where] = True
    mask = Causal() & KeyPadding(valid) if causal else KeyPadding(valid)
    found = net(padded, mask=mask).y
    torch.testing.assert_close(found[:, where], net(x, mask=Causal() if causal else None).y)
    # A token that no head takes gets the bias of the projection alone.
    torch.testing.assert_close(found[:, 0], net.proj.bias.expand(2, DIM))


@pytest.mark.parametrize("options", [{}, {"capacity": 4}])
def test_smha_without_a_real_token_has_finite_gradients(options: dict) -> None:
    net = layer(**options)
    x = tokens().requires_grad_()
    y = net(x, mask=KeyPadding(torch.tensor([9, 0]))).y
    torch.testing.assert_close(y[1], net.proj.bias.expand(9, DIM))
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().min() > 0
    assert (x.grad[1] == 0).all()


def test_smha_gates_learn_only_if_they_multiply_the_output() -> None:
    for learns in (True, False):
        net = layer(gate_output=learns)
        net(tokens()).y.square().sum().backward()
        assert (net.gate.weight.grad is not None) == learns
        assert net.qkv.weight.grad is not None
        assert net.qkv.weight.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"rope_theta": 100.0}])
def test_smha_gradients_are_those_of_finite_differences(options: dict) -> None:
    net = layer(**options)
    x = tokens(4, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net(x, mask=Causal()).y, (x,))


@pytest.mark.parametrize("options", [{}, {"capacity": ROOMY, "rope_theta": 100.0}])
def test_smha_maps_show_the_tokens_of_each_head(options: dict) -> None:
    net = layer(**options)
    x = tokens()
    maps = net(x, maps=WHOLE).maps
    _, own = net.select(x)
    torch.testing.assert_close(maps.sum(-1), own.double())
    assert ((maps > 0) == (own[..., None] & own[..., None, :])).all()
    with capture(net) as captured:
        net(x)
    (site,) = captured.maps.values()
    torch.testing.assert_close(site[0].double(), maps, rtol=0, atol=1e-6)


def test_smha_gate_switches_a_head_off() -> None:
    net, x = layer(), tokens()
    gate = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    with gate_heads(net, {"heads": gate}):
        found = [net(x).y]
    found.append(net.mix(x, None, mask=None, grid=None, memory=None, maps=None, head_gate=gate).y)
    with torch.no_grad():
        net.proj.weight[:, 4:8] = 0
    for y in found:
        torch.testing.assert_close(y, net(x).y)


def test_smha_a_head_of_a_full_house_drops_its_last_tokens() -> None:
    own = torch.tensor([[[True, False, True, True]]])
    place, filled, _ = pack(own, 2)
    assert place.tolist() == [[[0, 2]]]
    assert filled.all()
    place, filled, _ = pack(own, 4)
    assert place.tolist() == [[[0, 2, 3, 1]]]
    assert filled.tolist() == [[[True, True, True, False]]]


def test_smha_selects_in_float32_under_autocast() -> None:
    net = layer().float()
    x = tokens(64).float()
    expected = net.select(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.select(x)
        y = net(x).y
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_smha_continues_a_plain_layer() -> None:
    net = layer(active_heads=HEADS, gate_output=False)
    plain = Attention(DIM, HEADS, head_dim=4).double()
    gate = net.gate.weight.clone()
    net.load_foreign(plain.state_dict(), "timm")
    torch.testing.assert_close(net(tokens()).y, plain(tokens()).y)
    torch.testing.assert_close(net.gate.weight, gate)


def test_smha_has_one_weight_per_head_and_channel_more_than_plain_attention() -> None:
    sizes = [
        sum(w.numel() for w in made.parameters())
        for made in (SelectiveAttention(64, 4), Attention(64, 4))
    ]
    assert sizes[0] - sizes[1] == 4 * 64


def test_smha_refuses_a_context() -> None:
    net, x = layer(), tokens()
    for mask in (None, Causal()):
        with pytest.raises(UnsupportedPattern, match=r"smha: does not support .*cross"):
            net(x, x, mask=mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_heads": 0}, "active_heads: must be 1 to num_heads=4, got 0"),
        ({"active_heads": 5}, "active_heads: must be 1 to num_heads=4, got 5"),
        ({"capacity": 0}, "capacity: needs 1 slot or more, got 0"),
        ({"rope_theta": 10.0, "head_dim": 3}, "head_dim: rope_theta needs an even width, got 3"),
    ],
)
def test_smha_names_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectiveAttention(DIM, HEADS, **options)


@pytest.mark.parametrize("options", [{}, {"capacity": 4, "rope_theta": 100.0}])
def test_smha_exports_with_a_free_batch(options: dict) -> None:
    net = layer(**options)
    shapes = {"x": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(net, (tokens(),), dynamic_shapes=shapes)
    x = tokens(batch=5)
    torch.testing.assert_close(program.module()(x).y, net(x).y)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("backend", "options"),
    [("inductor", {}), ("aot_eager", {"capacity": 4, "rope_theta": 100.0})],
)
def test_smha_compiles_without_graph_breaks(backend: str, options: dict) -> None:
    net = layer(**options).float()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    for mask in (None, Causal()):
        for count in (6, 9):
            x = tokens(count).float()
            torch.testing.assert_close(compiled(x, mask=mask).y, net(x, mask=mask).y)
