"""Capturing, gating and editing heads from outside: what changes, and what must not."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.attention import Attend, MapRequest
from manyhead_core.attention.capture import (
    attention_sites,
    capture,
    edit_weights,
    gate_heads,
)
from manyhead_core.attention.layer import HeadOutputs
from manyhead_core.attention.masks import Causal
from manyhead_core.attention.mixer import TokenMixer
from manyhead_core.attention.registry import MIXERS, build, mixer_class
from manyhead_core.errors import ConfigError

# What some mixers need beside their width.
OPTIONS = {
    "spectral": {"size": (4, 4)},
    "aggregated": {"size": (4, 4), "sr_ratio": 2},
    "aggregated_full": {"size": (4, 4)},
    "sparsifiner": {"num_tokens": 16},
    "position_qk": {"num_tokens": 16},
    "inline": {"local": "none"},
}


class Stack(nn.Module):
    """Layers with residual connections."""

    def __init__(self, *mixers: TokenMixer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mixers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).y
        return x


def stack(*names: str, **options: object) -> Stack:
    torch.manual_seed(0)
    model = Stack(*(build(name, dim=16, num_heads=4, **options) for name in names))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(name: str) -> tuple[TokenMixer, dict]:
    """A mixer with the words of a call that suits it."""
    torch.manual_seed(0)
    kind = mixer_class(name)
    options = {} if name == "shsa" else {"num_heads": 4}
    mixer = kind(16, **options, **OPTIONS.get(name, {})).eval()
    able = kind.capabilities
    words: dict = {"grid": (4, 4)} if "2d" in able.layouts else {}
    if not {"NS", "CS"} & able.patterns:
        words["context"] = draw(2, 16, 16, seed=2)
    return mixer, words


WITH_MAPS = [name for name in MIXERS if mixer_class(name).capabilities.maps]
# Without a request for maps they skip keys, and outputs are equal up to rounding.
OWN_KERNEL = {"dynamic_mask"}


def test_sites_have_dotted_names_in_module_order() -> None:
    model = stack("softmax", "linear", "moh")
    found = attention_sites(model)
    assert list(found) == ["layers.0.attend", "layers.1.heads", "layers.2.attend"]
    assert isinstance(found["layers.0.attend"], Attend)
    assert isinstance(found["layers.1.heads"], HeadOutputs)
    assert list(attention_sites(stack("routing"))) == ["layers.0.heads"]


@pytest.mark.parametrize("name", WITH_MAPS)
def test_maps_are_those_of_the_mixer_and_outputs_stay(name: str) -> None:
    mixer, words = made(name)
    x = draw(2, 16, 16)
    plain, asked = mixer(x, **words), mixer(x, **words, maps=MapRequest())
    with capture(mixer, head_outputs=True) as captured:
        found = mixer(x, **words)
    if name in OWN_KERNEL:
        torch.testing.assert_close(found.y, plain.y, rtol=0, atol=1e-6)
    else:
        assert torch.equal(found.y, plain.y)
    assert found.maps is None
    ((maps,),) = captured.maps.values()
    ((outputs,),) = captured.head_outputs.values()
    torch.testing.assert_close(maps, asked.maps)
    assert outputs.shape[:3] == maps.shape[:3]


@pytest.mark.parametrize("request_maps", [MapRequest(), None])
def test_training_draws_the_same_dropout_as_without(request_maps: MapRequest | None) -> None:
    model = stack("softmax", "softmax", attention_dropout=0.3, dropout=0.3).train()
    x = draw(2, 5, 16)
    torch.manual_seed(3)
    plain = model(x)
    torch.manual_seed(3)
    with capture(model, None, request_maps), capture(model, None, MapRequest(queries="first")):
        found = model(x)
    assert torch.equal(found, plain)


def test_requests_and_layers_choose_what_is_kept() -> None:
    model, x = stack("softmax", "linear"), draw(2, 5, 16)
    with capture(model, ["layers.1.heads"], MapRequest(reduce="received")) as captured:
        model(x)
        model(x)
    assert captured.head_outputs == {}
    assert [m.shape for m in captured.maps["layers.1.heads"]] == [(2, 4, 5)] * 2
    captured.clear()
    assert captured.maps == {"layers.1.heads": []}
    with capture(model, request=None, head_outputs=True) as captured:
        model(x)
    assert captured.maps == {}
    assert {n: len(kept) for n, kept in captured.head_outputs.items()} == {
        "layers.0.attend": 1,
        "layers.1.heads": 1,
    }


def test_head_outputs_keep_their_graph() -> None:
    model, x = stack("softmax"), draw(2, 5, 16)
    with capture(model, head_outputs=True) as captured:
        model(x).square().sum().backward()
    outputs = captured.head_outputs["layers.0.attend"][0]
    y = model.layers[0].proj(outputs.transpose(1, 2).flatten(2))
    torch.testing.assert_close(x + y, model(x))
    assert outputs.requires_grad
    assert not captured.maps["layers.0.attend"][0].requires_grad
    with capture(model, request=MapRequest(detach=False)) as captured:
        model(x)
    assert captured.maps["layers.0.attend"][0].requires_grad


def test_nothing_stays_after_an_exception() -> None:
    model, x = stack("softmax"), draw(2, 5, 16)
    before, expected = {n: set(vars(m)) for n, m in model.named_modules()}, model(x)
    tools = [capture(model), gate_heads(model, {"layers.0.attend": torch.zeros(4)})]
    for tool in tools:
        with pytest.raises(RuntimeError), tool:
            model(torch.randn(2, 5, 7))
    assert torch.equal(model(x), expected)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_other_threads_see_nothing() -> None:
    model, x = stack("softmax", "linear"), draw(2, 5, 16)
    expected = model(x)
    gates = {name: torch.zeros(4) for name in attention_sites(model)}
    with ThreadPoolExecutor(1) as pool, capture(model) as captured, gate_heads(model, gates):
        assert torch.equal(pool.submit(model, x).result(), expected)
        assert captured.maps == {"layers.0.attend": [], "layers.1.heads": []}
        assert not torch.equal(model(x), expected)


def test_threads_capture_side_by_side() -> None:
    model = stack("softmax")
    together = threading.Barrier(4, timeout=30)

    def run(seed: int) -> tuple[list[Tensor], Tensor]:
        x = draw(2, 5, 16, seed=seed)
        with capture(model) as captured:
            for _ in range(5):
                together.wait()
                model(x)
        return captured.maps["layers.0.attend"], x

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    for maps, x in found:
        expected = model.layers[0](x, maps=MapRequest()).maps
        assert len(maps) == 5
        assert all(torch.equal(kept, expected) for kept in maps)


def test_nested_captures_each_get_their_own() -> None:
    model, x = stack("softmax"), draw(2, 5, 16)
    with capture(model) as outer:
        with capture(model, request=MapRequest(reduce="entropy")) as inner:
            model(x)
        model(x)
    assert [m.shape for m in outer.maps["layers.0.attend"]] == [(2, 4, 5, 5)] * 2
    assert [m.shape for m in inner.maps["layers.0.attend"]] == [(2, 4, 5)]
    asked = MapRequest(queries="first")
    with capture(model) as captured:
        found = model.layers[0](x, maps=asked).maps
    assert found.shape == (2, 4, 1, 5)
    assert captured.maps["layers.0.attend"][0].shape == (2, 4, 5, 5)


def test_an_outer_capture_sees_gates_and_edits() -> None:
    model, x = stack("softmax"), draw(2, 5, 16)
    site = "layers.0.attend"
    gate = torch.tensor([1.0, 0.0, 2.0, 1.0])
    with capture(model, head_outputs=True) as captured:
        model(x)
        with edit_weights(model, {site: lambda p: p.flip(-1)}), gate_heads(model, {site: gate}):
            model(x)
    plain, edited = captured.maps[site]
    torch.testing.assert_close(edited, plain.flip(-1))
    outputs = captured.head_outputs[site][1]
    value = model.layers[0].project(x, x)[2]
    torch.testing.assert_close(outputs, gate[:, None, None] * (plain.flip(-1) @ value))


@pytest.mark.parametrize("name", ["softmax", "moh", "linear", "inline", "routing"])
def test_zero_gate_removes_a_head_as_zero_columns_of_the_projection_do(name: str) -> None:
    options = {"local": "none"} if name == "inline" else {}
    model, x = stack(name, **options), draw(2, 5, 16)
    (site,) = attention_sites(model)
    gate = torch.tensor([1.0, 1.0, 0.0, 1.0])
    model(x)  # routing starts its means
    with gate_heads(model, {site: gate}):
        found = model(x)
    through_forward = x + model.layers[0](x, head_gate=gate).y
    with torch.no_grad():
        model.layers[0].proj.weight[:, 8:12] = 0
    torch.testing.assert_close(found, model(x), rtol=0, atol=1e-6)
    assert torch.equal(through_forward, found)


def test_gates_of_a_batch_and_products_of_nested_gates() -> None:
    model, x = stack("softmax", "moh"), draw(2, 5, 16)
    gates = {name: draw(2, 4) for name in attention_sites(model)}
    with gate_heads(model, gates):
        found = model(x)
    for sample in range(2):
        own = {name: gate[sample] for name, gate in gates.items()}
        with gate_heads(model, own):
            torch.testing.assert_close(found[sample], model(x[sample : sample + 1])[0])
    with gate_heads(model, gates), gate_heads(model, gates):
        twice = model(x)
    with gate_heads(model, {name: gate**2 for name, gate in gates.items()}):
        torch.testing.assert_close(twice, model(x))


def test_gates_of_samples_hold_in_their_windows() -> None:
    torch.manual_seed(0)
    mixer, x = build("lsda", dim=64, num_heads=4, group_size=2).eval(), draw(2, 16, 64)
    gate = draw(2, 4)
    with gate_heads(mixer, {"attend": gate}):
        found = mixer(x, grid=(4, 4)).y
    with gate_heads(mixer, {"attend": gate[1]}):
        torch.testing.assert_close(found[1:], mixer(x[1:], grid=(4, 4)).y)


@pytest.mark.parametrize("name", ["softmax", "linear"])
def test_gradients_of_gates_are_those_of_differences(name: str) -> None:
    model, x = stack(name).double(), draw(2, 5, 16).double()
    (site,) = attention_sites(model)

    def loss(gate: Tensor) -> Tensor:
        with gate_heads(model, {site: gate}):
            return model(x).square().sum()

    assert torch.autograd.gradcheck(loss, torch.ones(4).double().requires_grad_())
    assert torch.autograd.gradcheck(loss, draw(2, 4).double().requires_grad_())


def test_gate_that_does_not_fit_is_named() -> None:
    model, x = stack("softmax"), draw(2, 5, 16)
    for shape in [(3,), (3, 4), (1, 1, 4), (), (1,)]:
        with (
            gate_heads(model, {"layers.0.attend": torch.ones(shape)}),
            pytest.raises(ConfigError, match=r"does not fit 4 heads and a batch of 2"),
        ):
            model(x)


@pytest.mark.parametrize("options", [{}, {"num_key_heads": 2}, {"attention_dropout": 0.5}])
def test_edit_that_changes_nothing_leaves_the_output(options: dict) -> None:
    model, x = stack("softmax", "moh", **options), draw(2, 5, 16)
    edits = {name: lambda p: p for name in attention_sites(model)}
    expected = model(x)
    with edit_weights(model, edits):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
        causal = model.layers[0](x, mask=Causal()).y
    torch.testing.assert_close(causal, model.layers[0](x, mask=Causal()).y, rtol=0, atol=1e-6)


def test_edits_follow_one_another_and_keep_gradients() -> None:
    model, x = stack("softmax"), draw(2, 5, 16)
    share = torch.tensor(0.5, requires_grad=True)
    layer, site = model.layers[0], "layers.0.attend"
    with (
        edit_weights(model, {site: lambda p: p.transpose(-1, -2)}),
        edit_weights(model, {site: lambda p: (1 - share) * p + share * torch.eye(5)}),
    ):
        found = model(x)
    query, key, value = layer.project(x, x)
    weights = (query @ key.mT / 2).softmax(-1)
    heads = (0.5 * weights.mT + 0.5 * torch.eye(5)) @ value
    torch.testing.assert_close(found, x + layer.proj(heads.transpose(1, 2).flatten(2)))
    found.square().sum().backward()
    assert share.grad.abs() > 0
    assert layer.qkv.weight.grad[:16].abs().max() > 0


def test_edited_weights_are_in_float32_under_autocast() -> None:
    model, x, seen = stack("softmax"), draw(2, 5, 16), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        edit_weights(model, {"layers.0.attend": lambda p: seen.append(p.dtype) or p}),
    ):
        found, expected = model.layers[0](x).y, None
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.layers[0](x).y
    assert seen == [torch.float32]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_mistakes_are_named_on_entry() -> None:
    model = stack("softmax", "linear")
    with (
        pytest.raises(ConfigError, match=r"layers: no attention site 'layers.0.atend'; closest"),
        capture(model, ["layers.0.atend"]),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"gates: no attention site 'x'; .*layers.1.heads"),
        gate_heads(model, {"x": torch.ones(4)}),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"edits: 'layers\.1\.heads' has no softmax weights"),
        edit_weights(model, {"layers.1.heads": lambda p: p}),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="the model has none"),
        gate_heads(nn.Linear(2, 2), {"x": torch.ones(4)}),
    ):
        pass
    with (
        edit_weights(model, {"layers.0.attend": lambda p: p[..., :2]}),
        pytest.raises(ConfigError, match=r"made weights \(2, 4, 5, 2\) of \(2, 4, 5, 5\)"),
    ):
        model(draw(2, 5, 16))


compiles = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler"),
]


def compiled_stack(*names: str) -> tuple[Stack, nn.Module]:
    torch.compiler.reset()
    model = stack(*names)
    return model, torch.compile(model, fullgraph=True)


class TestCompiled:
    """What holds for compiled models."""

    pytestmark = compiles

    def test_compiled_models_are_captured_gated_and_edited(self) -> None:
        model, fast = compiled_stack("softmax", "linear")
        x = draw(2, 5, 16)
        expected = fast(x)
        torch.testing.assert_close(expected, model(x))
        assert attention_sites(fast).keys() == attention_sites(model).keys()
        with capture(fast, head_outputs=True) as captured:
            torch.testing.assert_close(fast(x), expected)
        assert captured.maps["layers.0.attend"][0].shape == (2, 4, 5, 5)
        gates = {"layers.1.heads": torch.tensor([0.0, 1, 1, 1], requires_grad=True)}
        with gate_heads(fast, gates):
            found = fast(x)
        with gate_heads(model, gates):
            torch.testing.assert_close(found, model(x))
        found.sum().backward()
        assert gates["layers.1.heads"].grad.abs().min() > 0
        with edit_weights(fast, {"layers.0.attend": torch.zeros_like}):
            assert not torch.allclose(fast(x), expected)
        assert torch.equal(fast(x), expected)

    def test_compiled_code_is_in_use_again_after_threads_left_in_any_order(self) -> None:
        model, runs, x = stack("softmax"), [], draw(2, 5, 16)

        def counted(graph: nn.Module, _: object) -> object:
            return lambda *inputs: runs.append(1) or graph(*inputs)

        torch.compiler.reset()
        fast = torch.compile(model, backend=counted)
        fast(x)
        other = capture(model)
        with ThreadPoolExecutor(1) as pool:
            with capture(model):
                pool.submit(other.__enter__).result()
            with capture(fast) as captured:
                fast(x)
            assert len(captured.maps["layers.0.attend"]) == 1
            assert len(runs) == 1
            pool.submit(other.__exit__, None, None, None).result()
        fast(x)
        assert len(runs) == 2

    def test_first_call_inside_does_not_spoil_the_compiled_model(self) -> None:
        model, fast = compiled_stack("moh")
        x = draw(2, 5, 16)
        with capture(fast) as captured:
            fast(x)
        assert len(captured.maps["layers.0.attend"]) == 1
        torch.testing.assert_close(fast(x), model(x))
        assert len(captured.maps["layers.0.attend"]) == 1

    def test_gates_through_forward_compile_without_breaks(self) -> None:
        model, _ = compiled_stack("softmax", "moh", "linear")
        x, gate = draw(2, 5, 16), draw(4)
        for layer in model.layers:
            fast = torch.compile(layer, fullgraph=True)
            found = fast(x, head_gate=gate).y
            torch.testing.assert_close(found, layer(x, head_gate=gate).y, rtol=1e-4, atol=1e-5)
