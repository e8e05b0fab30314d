import pytest
import torch
from torch import nn

from manyhead_core.attention import MapRequest, attend
from manyhead_core.attention.biases import Dense
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer, UnsupportedPattern
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.registry import MIXERS, available, build, mixer_class
from manyhead_core.attention.rotary import rotate
from manyhead_core.errors import ConfigError, UserError, WeightsError


def layer(**options: object) -> Attention:
    torch.manual_seed(0)
    return Attention(16, 4, **options).eval().requires_grad_(False)


@pytest.mark.parametrize("cross", [False, True])
def test_equals_the_layer_of_torch_with_its_weights(cross: bool) -> None:
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    nn.init.normal_(theirs.in_proj_bias)
    ours = layer()
    ours.load_foreign(theirs.state_dict(), "multihead_attention")
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16) if cross else None
    source = x if context is None else context
    expected, weights = theirs(x, source, source, average_attn_weights=False)
    found = ours(x, context, maps=MapRequest())
    torch.testing.assert_close(found.y, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.maps, weights, rtol=1e-5, atol=1e-6)
    with pytest.raises(WeightsError, match=r"do not fit: proj\.weight, projection"):
        ours.load_foreign({"qkv.weight": x, "qkv.bias": x, "proj.bias": x, "projection": x}, "timm")


def test_split_projections_are_the_fused_ones_cut_in_two() -> None:
    fused, split = layer(num_key_heads=2), layer(num_key_heads=2, fused_qkv=False)
    assert set(split.state_dict()) == {
        f"{name}.{kind}" for name in ("q", "kv", "proj") for kind in ("weight", "bias")
    }
    split.load_foreign(fused.state_dict(), "timm")
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    for source in (None, context):
        torch.testing.assert_close(split(x, source).y, fused(x, source).y)


def test_foreign_weights_of_another_size_are_named() -> None:
    state = layer(head_dim=8).state_dict()
    with pytest.raises(WeightsError, match=r"qkv.weight is \(96, 16\) there, \(48, 16\) here"):
        layer().load_foreign(state, "timm")


@pytest.mark.parametrize("fused", [True, False])
def test_rotary_scores_depend_on_distance_only(fused: bool) -> None:
    ours = layer(rotary=True, fused_qkv=fused)
    token, rest = torch.randn(2, 1, 16), torch.randn(2, 9, 16)
    weights = []
    for place in (0, 4):
        x = torch.cat([rest[:, :place], token, token * 2, token * 3, rest[:, place:]], 1)
        query, key, _ = ours.project(x, x)
        weights.append((query @ key.mT)[:, :, place : place + 3, place : place + 3])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    plain, x = layer(fused_qkv=fused), torch.randn(2, 5, 16)
    query, key, value = plain.project(x, x)
    expected = attend(rotate(query), rotate(key), value).out.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours(x).y, plain.proj(expected))
    assert not torch.allclose(ours(x).y, plain(x).y)


def test_rotary_refuses_what_has_no_common_positions() -> None:
    with pytest.raises(ConfigError, match=r"softmax: rotary=True is for self-attention"):
        layer(rotary=True)(torch.ones(1, 2, 16), torch.ones(1, 3, 16))
    with pytest.raises(ConfigError, match="even head_dim, got 3"):
        layer(rotary=True, head_dim=3)


class Table(nn.Module):
    """A table that learns, as a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 5, 5))

    def forward(self) -> Dense:
        return Dense(self.table[None])


def test_bias_is_added_to_the_scores_and_learns_with_the_layer() -> None:
    ours = layer(bias=Table()).requires_grad_(True)
    plain, x = layer(), torch.randn(2, 5, 16)
    plain.load_state_dict({n: w for n, w in ours.state_dict().items() if "bias.table" not in n})
    bias = ours.bias.table
    query, key, value = plain.project(x, x)
    heads = ((query @ key.mT / 2) + bias).softmax(-1) @ value
    found = ours(x, maps=MapRequest())
    torch.testing.assert_close(found.y, plain.proj(heads.transpose(1, 2).flatten(2)))
    found.y.square().sum().backward()
    assert bias.grad.abs().max() > 0
    fixed = layer(bias=Dense(bias.detach()[None]))
    fixed.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fixed(x).y, found.y)
    state = layer().state_dict()
    ours.load_foreign(state, "timm")
    assert torch.equal(ours.bias.table, bias)
    assert torch.equal(ours.qkv.weight, state["qkv.weight"])


def test_order_of_tokens_does_not_matter_without_a_mask() -> None:
    x = torch.randn(2, 6, 16)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(layer()(x[:, order]).y, layer()(x).y[:, order])


def test_a_causal_layer_does_not_look_ahead() -> None:
    x = torch.randn(2, 6, 16)
    whole = layer()(x, mask=Causal()).y
    torch.testing.assert_close(layer()(x[:, :4], mask=Causal()).y, whole[:, :4])


def test_masked_keys_change_nothing() -> None:
    x, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    longer = torch.cat([context, torch.full((2, 2, 16), 9.0)], 1)
    found = layer()(x, longer, mask=KeyPadding(torch.tensor([5, 5]))).y
    torch.testing.assert_close(found, layer()(x, context).y)


def test_grouped_heads_share_keys() -> None:
    grouped = layer(num_key_heads=2)
    whole = layer()
    query, key, value = grouped.qkv.weight.split([16, 8, 8])
    repeated = [w.view(2, 4, 16).repeat_interleave(2, 0).flatten(0, 1) for w in (key, value)]
    whole.qkv.weight.copy_(torch.cat([query, *repeated]))
    whole.proj.load_state_dict(grouped.proj.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(grouped(x).y, whole(x).y)


def test_registry_builds_by_name_and_names_mistakes() -> None:
    assert isinstance(build("softmax", dim=8, num_heads=2), Attention)
    assert build({"name": "softmax", "qk_norm": True}, dim=8, num_heads=2).q_norm.bias is not None
    with pytest.raises(UserError, match="unknown mixer 'softmex'; did you mean softmax"):
        build("softmex", dim=8, num_heads=2)
    with pytest.raises(
        ConfigError, match="softmax: unknown option 'topk'; it accepts dim, num_heads"
    ):
        build("softmax", dim=8, num_heads=2, topk=3)
    with pytest.raises(ConfigError, match="8 is no multiple of num_heads=3"):
        build("softmax", dim=8, num_heads=3)


@pytest.mark.parametrize("name", MIXERS)
def test_every_row_of_the_registry_is_a_mixer(name: str) -> None:
    kind = mixer_class(name)
    assert issubclass(kind, TokenMixer)
    assert kind.name == name
    assert kind.capabilities.patterns
    assert name in available(layout=next(iter(kind.capabilities.layouts)))


class Nothing(TokenMixer):
    name = "nothing"
    capabilities = Capabilities(patterns=frozenset({"NS"}), layouts=frozenset({"2d"}))

    def mix(self, x: torch.Tensor, *_: object, **__: object) -> MixerOutput:
        return MixerOutput(x, {})


def test_undeclared_uses_are_refused_with_alternatives() -> None:
    x, mixer = torch.randn(1, 6, 4), Nothing()
    assert torch.equal(mixer(x, grid=(2, 3)).y, x)
    for words, message in [
        ({"context": x}, "does not support non-causal cross-attention; .*softmax"),
        ({"mask": Causal()}, "does not support causal self-attention; .*softmax"),
        ({"mask": KeyPadding(torch.tensor([3]))}, "does not support masks"),
        ({"maps": MapRequest()}, "does not support attention maps"),
        ({"memory": x}, "does not support memory"),
    ]:
        with pytest.raises(UnsupportedPattern, match=message):
            mixer(x, grid=(2, 3), **words)
    with pytest.raises(ConfigError, match=r"pass grid=\(height, width\)"):
        mixer(x)
    with pytest.raises(ConfigError, match=r"grid \(2, 2\) does not hold 6 tokens"):
        mixer(x, grid=(2, 2))
