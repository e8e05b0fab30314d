"""Mixture-of-head attention: gates, routing, balance, and what reduces to the plain layer."""

import shutil

import pytest
import torch
from torch import Tensor

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, Dense, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.moh import MixtureOfHeads, load_balance
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError, WeightsError


def layer(dim: int = 12, num_heads: int = 6, *, seed: int = 0, **options) -> MixtureOfHeads:
    """A layer in float64 with weights large enough for clear choices."""
    torch.manual_seed(seed)
    net = MixtureOfHeads(dim, num_heads, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.5)
    return net.eval()


def tokens(batch: int = 2, count: int = 7, dim: int = 12, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)


def plain(net: MixtureOfHeads) -> Attention:
    """The layer without its router."""
    found = Attention(net.proj.out_features, net.sizes[0]).double().eval()
    found.load_state_dict({n: w for n, w in net.state_dict().items() if n[:2] != "wg"})
    return found


@pytest.mark.parametrize("shared", [0, 1, 2, 6])
def test_zero_routers_with_all_heads_active_are_the_plain_layer(shared: int) -> None:
    net = layer(shared_heads=shared, routed_heads=6 - shared)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.startswith("wg"):
                weight.zero_()
    torch.testing.assert_close(net(tokens()).y, plain(net)(tokens()).y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shared", "routed"), [(0, 1), (0, 3), (1, 2), (2, 2), (2, 4), (6, 0)])
def test_gates_sum_to_the_weighted_numbers_of_heads(shared: int, routed: int) -> None:
    net = layer(shared_heads=shared, routed_heads=routed)
    x = tokens()
    routing = net.route(x, net.project(x, x)[0])
    balance = torch.ones(2, 7, 2, dtype=x.dtype)
    if shared and routed:
        balance = 2 * (x @ net.get_parameter("wg_0.weight").T).softmax(-1)
    expected = balance[..., 0] * shared + balance[..., 1] * routed
    torch.testing.assert_close(routing.gates.sum(-1), expected)
    assert ((routing.gates[..., shared:] > 0).sum(-1) == routed).all()


def test_output_is_the_gated_sum_of_heads() -> None:
    net = layer(shared_heads=2, routed_heads=2)
    x = tokens()
    query, key, value = net.project(x, x)
    heads = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
    p = (x @ net.get_parameter("wg.weight").T).softmax(-1).detach()
    gate = torch.zeros(2, 7, 6, dtype=x.dtype)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        b, t = index
        alpha = 2 * (net.get_parameter("wg_0.weight") @ x[b, t]).softmax(0)
        gate[b, t, :2] = alpha[0] * 2 * (net.get_parameter("wg_1.weight") @ x[b, t]).softmax(0)
        best = sorted(range(4), key=lambda r: -float(p[b, t, r]))[:2]
        for r in best:
            gate[b, t, 2 + r] = alpha[1] * 2 * p[b, t, r] / p[b, t, best].sum()
    expected = net.proj((heads.transpose(1, 2) * gate[..., None]).flatten(2))
    torch.testing.assert_close(net(x).y, expected)


def test_permuting_routed_heads_with_their_weights_changes_nothing() -> None:
    net, other = (layer(shared_heads=2, routed_heads=2) for _ in range(2))
    order = torch.tensor([0, 1, 5, 2, 4, 3])
    state = net.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        split = state[name].unflatten(0, (3, 6, 2))
        state[name] = split[:, order].flatten(0, 2)
    state["proj.weight"] = state["proj.weight"].unflatten(1, (6, 2))[:, order].flatten(1)
    state["wg.weight"] = state["wg.weight"][order[2:] - 2]
    other.load_state_dict(state)
    torch.testing.assert_close(other(tokens()).y, net(tokens()).y)


def test_balance_loss_is_that_of_the_paper() -> None:
    net = layer(shared_heads=2, routed_heads=2).train()
    x = tokens()
    p = (x @ net.get_parameter("wg.weight").T).softmax(-1).flatten(0, 1)
    load = torch.zeros(4, dtype=x.dtype)
    for row in p:
        load[row.topk(2).indices] += 1 / len(p)
    expected = 4 * (load * p.mean(0)).sum()
    torch.testing.assert_close(net(x).aux["balance"], expected)


def test_balance_loss_exists_in_training_only_and_only_with_routed_heads() -> None:
    assert layer().eval()(tokens()).aux == {}
    assert layer(shared_heads=6, routed_heads=0).train()(tokens()).aux == {}


def test_balance_loss_has_no_gradient_through_the_choice() -> None:
    net = layer(shared_heads=2, routed_heads=2)
    x = tokens()
    routing = net.route(x, net.project(x, x)[0])
    assert not routing.active.requires_grad
    assert load_balance(routing, None).requires_grad


@pytest.mark.parametrize("router", ["linear", "qnorm"])
def test_padding_is_left_out_of_the_balance_loss(router: str) -> None:
    net = layer(shared_heads=2, routed_heads=2, router=router).train()
    x = tokens()
    padded = torch.cat([x, 9 * tokens(count=3, seed=5)], 1)
    mask = KeyPadding(torch.tensor([7, 7]))
    expected = net(x).aux["balance"]
    torch.testing.assert_close(net(padded, mask=mask).aux["balance"], expected)
    causal = net(padded, mask=mask & Causal()).aux["balance"]
    torch.testing.assert_close(causal, expected)


def test_balance_loss_of_padding_alone_is_zero() -> None:
    net = layer(shared_heads=2, routed_heads=2).train()
    mask = KeyPadding(torch.zeros(2, dtype=torch.long))
    assert net(tokens(), mask=mask).aux["balance"] == 0


def test_cross_attention_counts_every_query_that_sees_a_key() -> None:
    net = layer(shared_heads=2, routed_heads=2).train()
    x, context = tokens(), tokens(count=4, seed=3)
    valid = torch.tensor([[True] * 4, [False] * 4])
    expected = net(x[:1], context[:1]).aux["balance"]
    found = net(x, context, mask=KeyPadding(valid)).aux["balance"]
    torch.testing.assert_close(found, expected)


def test_padded_keys_change_no_output() -> None:
    net = layer(shared_heads=2, routed_heads=2)
    x = tokens()
    padded = torch.cat([x, 9 * tokens(count=2, seed=5)], 1)
    found = net(padded, mask=KeyPadding(torch.tensor([7, 7]))).y[:, :7]
    torch.testing.assert_close(found, net(x).y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("router", ["linear", "qnorm"])
def test_fully_masked_row_gives_the_bias_alone_and_no_gradient(router: str) -> None:
    net = layer(shared_heads=2, routed_heads=2, router=router).train()
    x = tokens().requires_grad_()
    context = tokens(count=5, seed=3)
    allowed = torch.ones(1, 1, 7, 5, dtype=torch.bool)
    allowed[:, :, 3] = False
    found = net(x, context, mask=Dense(allowed))
    torch.testing.assert_close(found.y[:, 3], net.proj.bias.expand(2, -1))
    (found.y.square().sum() + found.aux["balance"]).backward()
    assert torch.equal(x.grad[:, 3], torch.zeros(2, 12, dtype=x.dtype))
    assert x.grad[:, 2].abs().min() > 0


def test_causal_outputs_do_not_depend_on_later_tokens() -> None:
    net = layer(shared_heads=2, routed_heads=2)
    x = tokens()
    whole = net(x, mask=Causal()).y
    torch.testing.assert_close(net(x[:, :4], mask=Causal()).y, whole[:, :4])


def test_causal_cross_attention_and_one_token_work() -> None:
    net = layer(shared_heads=1, routed_heads=2)
    assert net(tokens(), tokens(count=9), mask=Causal()).y.shape == (2, 7, 12)
    assert net(tokens(count=1)).y.shape == (2, 1, 12)


def test_query_norm_router_switches_heads_on_and_off() -> None:
    net = layer(shared_heads=2, routed_heads=2, router="qnorm")
    x = tokens()
    query = net.project(x, x)[0]
    norms = query[:, 2:].square().sum(-1).sqrt().transpose(1, 2)
    routing = net.route(x, query)
    second = norms.sort(-1, descending=True).values[..., 1:2]
    assert torch.equal(routing.gates[..., 2:], (norms >= second).double())
    assert torch.equal(routing.gates[..., :2], torch.ones(2, 7, 2, dtype=x.dtype))
    expected = (norms / norms.std(-1, keepdim=True)).softmax(-1)
    torch.testing.assert_close(routing.probabilities, expected)


def test_query_norm_router_has_no_parameters_and_is_the_plain_layer_with_all_heads() -> None:
    net = layer(shared_heads=2, routed_heads=4, router="qnorm")
    assert net.state_dict().keys() == plain(net).state_dict().keys()
    torch.testing.assert_close(net(tokens()).y, plain(net)(tokens()).y)


def test_query_norm_router_passes_gradients_straight_through() -> None:
    net = layer(shared_heads=2, routed_heads=2, router="qnorm")
    x = tokens()
    expected = net(x).y
    query = net.project(x, x)[0].detach().requires_grad_()
    routing = net.train().route(x, query)
    torch.testing.assert_close(net(x).y, expected)
    weights = tokens(dim=4)
    found = torch.autograd.grad((routing.gates[..., 2:] * weights).sum(), query)[0]
    routing = net.route(x, query)
    wanted = torch.autograd.grad((routing.probabilities * weights).sum(), query)[0]
    torch.testing.assert_close(found, wanted)


def test_routing_is_the_same_under_autocast() -> None:
    for router in ("linear", "qnorm"):
        net = layer(dim=48, shared_heads=2, routed_heads=2, router=router).float()
        x = tokens(4, 50, 48).float()
        with torch.no_grad():
            net.qkv.weight.mul_(0.2)
        precise = net.route(x, net.project(x, x)[0])
        with torch.autocast("cpu", torch.bfloat16):
            found = net.route(x, net.project(x, x)[0])
            y = net(x).y
        assert torch.equal(found.active, precise.active)
        assert y.dtype == torch.bfloat16
        expected = net(x).y
        assert (y.float() - expected).norm() < 0.02 * expected.norm()


def test_gradients_match_finite_differences() -> None:
    net = layer(8, 4, shared_heads=1, routed_heads=2).train()

    def both(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(names, weights, strict=True))
        found = torch.func.functional_call(net, state, (x,))
        return found.y, found.aux["balance"]

    names = [name for name, _ in net.named_parameters()]
    inputs = (tokens(1, 3, 8), *net.parameters())
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(both, inputs)


def test_gradients_are_finite_at_extreme_inputs() -> None:
    for router in ("linear", "qnorm"):
        net = layer(shared_heads=2, routed_heads=2, router=router).float().train()
        for factor in (0.0, 1e3):
            x = (factor * tokens().float()).requires_grad_()
            found = net(x)
            (found.y.mean() + found.aux["balance"]).backward()
            assert torch.isfinite(x.grad).all()
            assert all(torch.isfinite(w.grad).all() for w in net.parameters())


def test_maps_are_those_of_the_plain_layer() -> None:
    net = layer(shared_heads=2, routed_heads=2)
    found = net(tokens(), maps=MapRequest()).maps
    torch.testing.assert_close(found, plain(net)(tokens(), maps=MapRequest()).maps)


def test_number_of_active_heads_may_change_between_steps() -> None:
    net = layer(shared_heads=2, routed_heads=4)
    x = tokens()
    for routed in (4, 3, 1):
        net.routed_heads = routed
        gates = net.route(x, net.project(x, x)[0]).gates
        assert ((gates[..., 2:] > 0).sum(-1) == routed).all()


def test_continues_a_plain_layer() -> None:
    torch.manual_seed(0)
    start = torch.nn.MultiheadAttention(12, 6, batch_first=True).double().eval()
    net = layer(shared_heads=2, routed_heads=4, qk_norm=False)
    net.load_foreign(start.state_dict(), "multihead_attention")
    x = tokens()
    torch.testing.assert_close(net(x).y, start(x, x, x)[0], rtol=0, atol=0.02)
    with pytest.raises(WeightsError, match=r"do not fit: .*qkv\.bias"):
        net.load_foreign({"qkv.weight": torch.zeros(36, 12)}, "timm")


def test_keys_of_the_state_are_those_of_public_checkpoints() -> None:
    net = MixtureOfHeads(12, 6, shared_heads=2, routed_heads=2, qk_norm=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == {
        "qkv.weight": (36, 12),
        "qkv.bias": (36,),
        "q_norm.weight": (2,),
        "q_norm.bias": (2,),
        "k_norm.weight": (2,),
        "k_norm.bias": (2,),
        "proj.weight": (12, 12),
        "proj.bias": (12,),
        "wg.weight": (4, 12),
        "wg_0.weight": (2, 12),
        "wg_1.weight": (2, 12),
    }


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8])
def test_defaults_fit_any_number_of_heads(num_heads: int) -> None:
    net = MixtureOfHeads(24, num_heads)
    assert net(torch.ones(1, 3, 24)).y.shape == (1, 3, 24)


def test_grouped_keys_work() -> None:
    net = layer(shared_heads=2, routed_heads=2, num_key_heads=3)
    assert net(tokens()).y.shape == (2, 7, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_heads": 7}, "shared_heads: 7"),
        ({"shared_heads": 2, "routed_heads": 5}, "routed_heads: 5 of 4"),
        ({"shared_heads": 2, "routed_heads": 0}, "routed_heads: 0 of 4"),
        ({"router": "norm"}, "router: 'norm'"),
        ({"router": "qnorm", "qk_norm": True}, "qk_norm=False"),
        ({"router": "qnorm", "shared_heads": 5}, "two or more routed heads"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureOfHeads(12, 6, **options)


def test_memory_is_refused() -> None:
    with pytest.raises(UnsupportedPattern, match="moh: does not support memory"):
        layer()(tokens(), memory=tokens())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize(("router", "backend"), [("linear", "inductor"), ("qnorm", "aot_eager")])
@pytest.mark.slow
def test_compiles_without_graph_breaks(router: str, backend: str) -> None:
    net = layer(shared_heads=2, routed_heads=2, router=router).float().train()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    for count in (5, 8):
        x = tokens(count=count).float()
        for mask in (None, Causal()):
            found, expected = compiled(x, mask=mask), net(x, mask=mask)
            torch.testing.assert_close(found.y, expected.y)
            torch.testing.assert_close(found.aux, expected.aux)
