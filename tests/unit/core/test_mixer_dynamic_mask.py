"""Dynamic-mask attention: which keys are kept, and what the layer is with all of them."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manyhead_core.attention.capture import capture
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal, Dense, KeyPadding, SlidingWindow
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers import kept_keys
from manyhead_core.attention.mixers.dynamic_mask import DynamicMaskAttention
from manyhead_core.attention.mixers.kept_keys import Keys, leaving
from manyhead_core.attention.rotary import rotate
from manyhead_core.errors import ConfigError


@pytest.fixture(autouse=True, scope="module")
def short_chunks() -> Iterator[None]:
    """Several chunks of queries also in short sequences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_keys, "FEWEST_QUERIES", 1)
        yield


def layer(dim: int = 16, num_heads: int = 4, *, keep_window: int = 3, **options):
    """A layer in float64 with importances far apart."""
    torch.manual_seed(0)
    net = DynamicMaskAttention(dim, num_heads, keep_window=keep_window, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.4)
    return net.eval()


def tokens(count: int = 9, dim: int = 16, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, dim, generator=generator, dtype=torch.float64)


class Causally(torch.nn.Module):
    """A mixer with tensors alone as arguments."""

    def __init__(self, net: DynamicMaskAttention) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, mask=Causal()).y


def formula(net: DynamicMaskAttention, x: Tensor, *, causal: bool) -> Tensor:
    """Query by query, in plain loops."""
    count, heads = x.shape[1], net.A.shape[0]
    query, key, value = (
        proj(x).unflatten(-1, (-1, net.head_dim)).transpose(1, 2)
        for proj in (net.q_proj, net.k_proj, net.v_proj)
    )
    query, key = rotate(query), rotate(key)
    delta = (net.A * F.softplus(net.dt_proj(net.v_proj(x)))).exp()
    groups = heads // key.shape[1]
    out = torch.zeros_like(query)
    for b in range(2):
        for a in range(heads):
            for i in range(count):
                seen = list(range(i + 1 if causal else count))
                seen.sort(key=lambda j: -float(delta[b, j, a].detach()))
                seen = seen[: net.keep_window]
                scores = key[b, a // groups, seen] @ query[b, a, i] * net.head_dim**-0.5
                weights = (scores + delta[b, seen, a]).softmax(0)
                out[b, a, i] = weights @ value[b, a // groups, seen]
    return net.o_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_layer_is_the_formula(causal: bool, key_heads: int) -> None:
    net = layer(num_key_heads=key_heads)
    found = net(tokens(), mask=Causal() if causal else None).y
    torch.testing.assert_close(found, formula(net, tokens(), causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_wide_window_without_importance_is_plain_rotary_attention(causal: bool) -> None:
    net = layer(keep_window=9)
    with torch.no_grad():
        net.A.zero_()
    x = tokens()
    heads = (p(x).unflatten(-1, (4, 4)).transpose(1, 2) for p in (net.q_proj, net.k_proj))
    query, key = (rotate(h) for h in heads)
    value = net.v_proj(x).unflatten(-1, (4, 4)).transpose(1, 2)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    expected = net.o_proj(expected.transpose(1, 2).flatten(2))
    found = net(x, mask=Causal() if causal else None).y
    torch.testing.assert_close(found, expected)


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 12),
    window=st.integers(1, 12),
    block=st.sampled_from([None, 1, 3, 4]),
    levels=st.sampled_from([2, 1000]),
    seed=st.integers(0, 99),
)
def test_larger_window_never_removes_a_kept_key(
    count: int, window: int, block: int | None, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Two levels make ties, which are decided as well.
    delta = torch.randint(levels, (2, 3, count), generator=generator).double()
    allowed = torch.rand(2, 1, count, count, generator=generator) > 0.3
    small = DynamicMaskAttention(12, 3, keep_window=window, block_size=block)
    large = DynamicMaskAttention(12, 3, keep_window=window + 1, block_size=block)
    kept, more = (net.visible(delta, allowed) for net in (small, large))
    assert not (kept & ~more).any()
    assert not (kept & ~allowed).any()
    if block is None:
        shape = (2, 3, count, count)
        expected = allowed.expand(shape).sum(-1).clamp_max(window)
        assert torch.equal(kept.expand(shape).sum(-1), expected)


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(2, 14),
    window=st.integers(1, 6),
    key_heads=st.sampled_from([2, 4]),
    kind=st.sampled_from(["none", "padding", "causal"]),
    levels=st.sampled_from([1, 2, 1000]),
    seed=st.integers(0, 99),
)
def test_attending_to_kept_keys_is_attending_to_all_and_hiding_the_others(
    count: int, window: int, key_heads: int, kind: str, levels: int, seed: int
) -> None:
    net = layer(keep_window=window, num_key_heads=key_heads)
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "none": None,
        "causal": Causal(),
        "padding": KeyPadding(torch.rand(2, count, generator=generator) > 0.4),
    }
    query, key, value = (
        torch.randn(2, heads, count, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, key_heads, key_heads)
    )
    # Few levels make ties.
    delta = torch.randint(levels, (2, 4, count), generator=generator).double() / levels
    inputs = (query, key, value, delta.requires_grad_())
    factor = torch.randn(2, 4, count, 4, generator=generator, dtype=torch.float64)
    outs = (
        net._head_outputs(query, Keys(*inputs[1:]), masks[kind]),
        net._attend_pairs(query, Keys(*inputs[1:]), masks[kind], None)[0],
    )
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad((o * factor).sum(), inputs) for o in outs))


@pytest.mark.parametrize("causal", [False, True])
def test_maps_change_no_output(causal: bool) -> None:
    mask = Causal() if causal else None
    expected = layer()(tokens(), mask=mask).y
    found = layer()(tokens(), mask=mask, maps=MapRequest(queries="first")).y
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("maps", [None, MapRequest()])
def test_head_gate_multiplies_head_outputs(maps: MapRequest | None) -> None:
    net, gate = layer(), torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    found = net(tokens(), maps=maps, head_gate=gate).y
    with torch.no_grad():
        net.o_proj.weight.mul_(gate.repeat_interleave(4))
    torch.testing.assert_close(found, net(tokens(), maps=maps).y)


def test_captured_maps_have_a_weight_for_every_key() -> None:
    net = layer()
    with capture(net) as captured:
        net(tokens())
    (maps,) = captured.maps["attend"]
    assert maps.shape == (2, 4, 9, 9)
    assert torch.equal((maps > 0).sum(-1), torch.full((2, 4, 9), 3))


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_a_key_leaves_when_enough_later_ones_are_more_important(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    delta = torch.randint(4, (2, 3, 9), generator=generator).double()
    net = DynamicMaskAttention(12, 3, keep_window=window)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    visible = causal.expand(2, 3, 9, 9) if window == 9 else net.visible(delta, causal)
    rows = torch.arange(9)[:, None]
    assert torch.equal(visible, causal & (rows < leaving(delta, window)[:, :, None]))


def test_equal_importance_keeps_the_latest_keys() -> None:
    net = DynamicMaskAttention(16, 4, keep_window=3)
    delta = torch.ones(2, 4, 9)
    allowed = torch.ones(9, 9, dtype=torch.bool).tril()
    expected = allowed & ~torch.ones(9, 9, dtype=torch.bool).tril(-3)
    assert torch.equal(net.visible(delta, allowed), expected.expand(2, 4, 9, 9))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("block", [None, 2])
def test_causal_outputs_do_not_depend_on_later_tokens(fresh: bool, block: int | None) -> None:
    net = layer(block_size=block)
    if fresh:
        with torch.no_grad():
            net.A.zero_()
    x = tokens()
    whole = net(x, mask=Causal()).y
    for count in (1, 4, 7):
        torch.testing.assert_close(net(x[:, :count], mask=Causal()).y, whole[:, :count])


def test_blocks_are_kept_by_the_majority_of_their_allowed_keys() -> None:
    net = DynamicMaskAttention(12, 3, keep_window=4, block_size=3)
    delta = torch.tensor([9.0, 8, 0, 7, 1, 2, 3, 6]).expand(1, 1, 8)
    # Kept are keys 0, 1, 3, 7: two of three, one of three, and one of two, which is not more
    # than half.
    expected = torch.tensor([True, True, True, False, False, False, False, False])
    assert torch.equal(net.visible(delta, None), expected.expand(1, 1, 1, 8))
    allowed = torch.ones(8, dtype=torch.bool)
    allowed[6] = False
    expected = expected | (torch.arange(8) == 7)
    found = net.visible(delta, allowed[None, None, None])
    assert torch.equal(found, expected.expand(1, 1, 1, 8))


def test_blocks_of_one_key_change_nothing() -> None:
    x = tokens()
    expected = layer()(x, mask=Causal()).y
    torch.testing.assert_close(layer(block_size=1)(x, mask=Causal()).y, expected)


def test_padded_keys_change_nothing() -> None:
    net = layer()
    x = tokens()
    padded = torch.cat([x, 9 * tokens(4, seed=5)], 1)
    for mask in (KeyPadding(torch.tensor([9, 9])), SlidingWindow(13, 13)):
        mask = mask & KeyPadding(torch.tensor([9, 9]))
        found = net(padded, mask=mask).y[:, :9]
        torch.testing.assert_close(found, net(x).y, rtol=0, atol=1e-6)
    context = net(x, x).y
    found = net(x, padded, mask=KeyPadding(torch.tensor([9, 9]))).y
    torch.testing.assert_close(found, context, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [3, 20])
def test_fully_masked_row_gives_zeros_and_no_gradient(window: int) -> None:
    net = layer(keep_window=window)
    x = tokens().requires_grad_()
    allowed = torch.ones(9, 9, dtype=torch.bool)
    allowed[4] = False
    found = net(x, tokens(seed=3), mask=Dense(allowed)).y
    assert not found[:, 4].any()
    found.square().sum().backward()
    assert not x.grad[:, 4].any()
    assert x.grad[:, 5].abs().min() > 0
    assert all(torch.isfinite(w.grad).all() for w in net.parameters())


def test_importance_has_a_gradient_and_the_choice_none() -> None:
    net = layer()
    net(tokens(), mask=Causal()).y.square().sum().backward()
    assert net.A.grad.abs().min() > 0
    assert net.dt_proj.weight.grad.abs().max() > 0


def test_gradients_match_finite_differences() -> None:
    net = layer(8, 2, num_key_heads=1)
    names = [name for name, _ in net.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(net, state, (x,), {"mask": Causal()}).y

    inputs = (tokens(5, 8), *net.parameters())
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("steps", [(4, 5), (1,) * 9])
def test_decoding_with_the_state_is_the_whole_sequence(steps: tuple[int, ...]) -> None:
    net = layer(num_key_heads=2)
    x = tokens()
    expected = net(x, mask=Causal()).y
    state, parts = None, []
    for part in x.split(steps, 1):
        found = net(part, mask=Causal(), memory=state)
        state = found.state
        parts.append(found.y)
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    assert state.key.shape == state.value.shape == (2, 2, 9, 4)
    assert state.delta.shape == (2, 4, 9)


def test_without_rotary_embedding_the_order_of_tokens_does_not_matter() -> None:
    net = layer(rope_theta=None)
    x = tokens()
    order = torch.tensor([3, 1, 0, 2, 8, 7, 6, 4, 5])
    torch.testing.assert_close(net(x[:, order]).y, net(x).y[:, order])


def test_rotation_is_half_split_and_depends_on_the_distance_only() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, dtype=torch.float64)
    angle = torch.arange(3, dtype=torch.float64)
    zero = torch.zeros_like(angle)
    expected = torch.stack([angle.cos(), zero, angle.sin(), zero], -1)
    torch.testing.assert_close(rotate(x), expected)
    second = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    slow = torch.tensor(5 * 100**-0.5, dtype=torch.float64)
    torch.testing.assert_close(rotate(second, start=5, theta=100.0)[0, 3], slow.sin())
    query, key = tokens(4, 8)[0], tokens(4, 8, seed=2)[0]
    near, far = (rotate(query, start=s) @ rotate(key, start=s).T for s in (0, 50))
    torch.testing.assert_close(near, far)


def test_selection_is_the_same_under_autocast() -> None:
    net = layer(64, 4, keep_window=16).float()
    with torch.no_grad():
        # Larger scores would round weights of kept keys to zero.
        net.q_proj.weight.mul_(0.05)
    x = tokens(64, 64).float()
    request = MapRequest()
    expected = net(x, mask=Causal(), maps=request)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, mask=Causal(), maps=request)
    torch.testing.assert_close(found.state.delta, expected.state.delta)
    assert torch.equal(found.maps > 0, expected.maps > 0)
    assert found.y.dtype == torch.bfloat16


def test_maps_show_at_most_the_window() -> None:
    found = layer()(tokens(), mask=Causal(), maps=MapRequest()).maps
    assert torch.equal((found > 0).sum(-1), torch.arange(1, 10).clamp_max(3).expand(2, 4, 9))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, 9))


def test_cross_attention_and_one_token_work() -> None:
    net = layer()
    assert net(tokens(5), tokens(7)).y.shape == (2, 5, 16)
    assert net(tokens(5), tokens(7)).state is None
    assert net(tokens(1)).y.shape == (2, 1, 16)


def test_keys_of_the_state_are_those_of_public_checkpoints() -> None:
    net = DynamicMaskAttention(16, 4, num_key_heads=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == {
        "A": (4,),
        "q_proj.weight": (16, 16),
        "k_proj.weight": (8, 16),
        "v_proj.weight": (8, 16),
        "o_proj.weight": (16, 16),
        "dt_proj.weight": (4, 8),
    }
    assert not net.A.any()


def test_causal_cross_attention_and_memory_with_context_are_refused() -> None:
    net = layer()
    with pytest.raises(UnsupportedPattern, match="dynamic_mask: does not support causal cross"):
        net(tokens(), tokens(), mask=Causal())
    with pytest.raises(ConfigError, match="pass no context"):
        net(tokens(), tokens(), memory=net(tokens()).state)


def test_exported_graph_decides_ties_in_the_same_way() -> None:
    for fresh in (False, True):
        net = layer(num_key_heads=2, block_size=2)
        if fresh:
            with torch.no_grad():
                net.A.zero_()
        shapes = ({0: torch.export.Dim("batch", min=2)},)
        program = torch.export.export(Causally(net), (tokens(),), dynamic_shapes=shapes)
        x = torch.cat([tokens(seed=3), tokens(seed=4)])
        torch.testing.assert_close(program.module()(x), net(x, mask=Causal()).y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "dim: 16"),
        ({"num_key_heads": 3}, "num_key_heads: 3"),
        ({"head_dim": 3}, "even head width"),
        ({"keep_window": 0}, "keep_window"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DynamicMaskAttention(16, **{"num_heads": 4, **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    net = layer(block_size=2, num_key_heads=2).float()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for count in (5, 8):
        x = tokens(count).float()
        found, expected = compiled(x, mask=Causal()), net(x, mask=Causal())
        torch.testing.assert_close(found.y, expected.y)
        torch.testing.assert_close(found.state, expected.state)
