"""The convention of all mixers: gates, losses, leaks and what follows an optimiser step."""

import copy
from inspect import signature
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.attention.capture import capture
from manyhead_core.attention.masks import Causal
from manyhead_core.attention.mixer import (
    Capabilities,
    MixerOutput,
    TokenMixer,
    UnsupportedPattern,
    after_step,
    weighted_aux,
)
from manyhead_core.attention.mixers.routing import RoutingAttention, update_means
from manyhead_core.attention.registry import MIXERS, available, build, mixer_class, supporting


class Lossy(TokenMixer):
    """Gives whatever losses it is told to."""

    name = "lossy"
    capabilities = Capabilities(
        patterns=frozenset({"NS"}), layouts=frozenset({"set"}), mask="any", leaky=frozenset({"CS"})
    )
    aux_weights: ClassVar[dict[str, float]] = {"balance": 0.01}

    def __init__(self, **aux: float) -> None:
        super().__init__()
        self.aux = {name: torch.tensor(value, requires_grad=True) for name, value in aux.items()}
        self.steps = 0

    def mix(self, x: Tensor, *_: object, **__: object) -> MixerOutput:
        return MixerOutput(x, self.aux)

    def after_step(self) -> None:
        self.steps += 1


def test_losses_are_averaged_over_layers_then_weighted_then_added() -> None:
    mixers = [Lossy(balance=2.0), Lossy(balance=4.0, commitment=5.0), Lossy()]
    outputs = [(mixer, mixer(torch.ones(1, 2, 3))) for mixer in mixers]
    total = weighted_aux(iter(outputs))
    torch.testing.assert_close(total, torch.tensor(0.01 * 3 + 5))
    total.backward()
    assert mixers[0].aux["balance"].grad == pytest.approx(0.005)
    assert weighted_aux(outputs[2:]) == 0
    assert weighted_aux([]) == 0


def test_losses_of_real_mixers_carry_the_weights_of_their_papers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    layers = [build(name, dim=16, num_heads=4).train() for name in ("moh", "moh", "routing")]
    outputs = [(layer, layer(x)) for layer in layers]
    balances = [output.aux["balance"] for _, output in outputs[:2]]
    expected = 0.01 * (balances[0] + balances[1]) / 2 + outputs[2][1].aux["commitment"]
    torch.testing.assert_close(weighted_aux(outputs), expected)


def test_after_step_reaches_every_mixer_of_a_model_once() -> None:
    mixers = [Lossy(), Lossy()]
    model = nn.Sequential(mixers[0], nn.Sequential(mixers[1], mixers[0]), nn.Linear(2, 2))
    after_step(model)
    assert [mixer.steps for mixer in mixers] == [1, 1]
    update_means(model)
    assert [mixer.steps for mixer in mixers] == [2, 2]


def test_after_step_moves_the_means_of_routing_once() -> None:
    torch.manual_seed(0)
    mixer = RoutingAttention(16, 4, num_clusters=3, window_size=4, decay=0.5).train()
    x = torch.randn(2, 7, 16)
    mixer(x)
    after_step(mixer)
    before = mixer.kmeans.means.clone()
    mixer(x)
    assert torch.equal(mixer.kmeans.means, before)
    after_step(mixer)
    moved = mixer.kmeans.means.clone()
    after_step(mixer)
    # Without a forward pass in between there is nothing to learn from.
    torch.testing.assert_close(mixer.kmeans.means, moved)
    assert not torch.equal(moved, before)


def test_means_follow_the_tokens_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = RoutingAttention(16, 4, num_clusters=3, window_size=4).train()
    whole(torch.randn(2, 7, 16))
    halves = [copy.deepcopy(whole) for _ in range(2)]
    for mixer in (whole, *halves):
        mixer.kmeans.sums.zero_()
    x = torch.randn(2, 7, 16)
    whole(x)
    halves[0](x[:1])
    halves[1](x[1:])
    other = halves[1].kmeans.sums
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.add_(other))
    after_step(halves[0])
    monkeypatch.undo()
    after_step(whole)
    torch.testing.assert_close(halves[0].kmeans.means, whole.kmeans.means)


def test_leaky_patterns_are_accepted_but_never_offered() -> None:
    x = torch.ones(1, 4, 16)
    assert torch.equal(Lossy()(x, mask=Causal()).y, x)
    with pytest.raises(UnsupportedPattern, match="causal cross-attention"):
        Lossy()(x, x, mask=Causal())
    assert "CS" in mixer_class("routing").capabilities.leaky
    assert "routing" not in available(pattern="CS")
    assert "routing" not in supporting("pattern='CS'")


def test_causal_mask_on_routing_holds_inside_a_fixed_cluster() -> None:
    torch.manual_seed(0)
    mixer = RoutingAttention(16, 4, num_clusters=1, window_size=8).eval()
    x = torch.randn(2, 8, 16)
    whole = mixer(x, mask=Causal()).y
    torch.testing.assert_close(mixer(x[:, :5], mask=Causal()).y, whole[:, :5])
    assert torch.isfinite(whole).all()


def test_routing_with_a_causal_mask_looks_ahead_by_membership() -> None:
    torch.manual_seed(0)
    mixer = RoutingAttention(16, 4, num_clusters=4, window_size=2).eval()
    x = torch.randn(2, 16, 16)
    whole = mixer(x, mask=Causal()).y
    assert not torch.allclose(mixer(x[:, :8], mask=Causal()).y, whole[:, :8])


def test_gates_are_refused_by_mixers_without_heads() -> None:
    with pytest.raises(UnsupportedPattern, match=r"spectral: does not support head gates; .*moh"):
        build("spectral", dim=8, size=(2, 2))(
            torch.ones(1, 4, 8), grid=(2, 2), head_gate=torch.ones(2)
        )


@pytest.mark.parametrize("name", [n for n in MIXERS if mixer_class(n).capabilities.heads])
def test_mixers_with_heads_take_gates_and_have_a_site(name: str) -> None:
    torch.manual_seed(0)
    kind = mixer_class(name)
    accepted = signature(kind).parameters
    known = {"num_heads": 4, "num_tokens": 64, "size": (8, 8)}
    mixer = kind(64, **{n: value for n, value in known.items() if n in accepted}).eval()
    for weight in mixer.parameters():
        nn.init.normal_(weight, std=0.2)
    words: dict = {"grid": (8, 8)} if "2d" in kind.capabilities.layouts else {}
    if not {"NS", "CS"} & kind.capabilities.patterns:
        words["context"] = torch.randn(2, 64, 64)
    x = torch.randn(2, 64, 64)
    with capture(mixer, request=None, head_outputs=True) as captured:
        plain = mixer(x, **words).y
    heads = {outputs[0].shape[1] for outputs in captured.head_outputs.values()}
    assert len(heads) == 1
    ones = torch.ones(heads.pop(), requires_grad=True)
    found = mixer(x, **words, head_gate=ones).y
    torch.testing.assert_close(found, plain)
    found.square().sum().backward()
    assert ones.grad.abs().min() > 0
    assert not torch.allclose(mixer(x, **words, head_gate=0 * ones).y, plain)
