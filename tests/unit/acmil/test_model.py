"""ACMIL: one packed batch is the same as its bags one by one, and patches have no order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyhead.acmil import ACMIL, ACMILConfig
from manyhead.acmil import model as module
from manyhead.acmil.bag_output import attention_weights, slide_map
from manyhead.acmil.baselines.attention_pooling import ABMIL
from manyhead_core.errors import ConfigError

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def build(**changes: object) -> ACMIL:
    torch.manual_seed(0)
    options = {"feature_dim": 6, "dim": 8, "hidden_dim": 4, "num_classes": 3, "num_branches": 3}
    net = ACMIL(ACMILConfig(**options | {"num_heads": 2, "dropout": 0.0} | changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def bags_of(sizes: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    return torch.randn(sum(sizes), 6, generator=generator), bounds


@pytest.mark.parametrize("attention", ["gated", "multihead"])
@settings(deadline=None, max_examples=15)
@given(sizes=SIZES)
def test_a_packed_batch_gives_what_each_bag_gives_alone(attention: str, sizes: list[int]) -> None:
    net = build(attention=attention).eval()
    features, bounds = bags_of(sizes)
    together = net(features, bounds)
    for number, bag in enumerate(features.split(sizes)):
        alone = net(bag)
        torch.testing.assert_close(together.logits[number], alone.logits[0])
        torch.testing.assert_close(together.branch_logits[number], alone.branch_logits[0])


@pytest.mark.parametrize("attention", ["gated", "multihead"])
def test_loss_and_gradients_are_the_mean_of_the_bags(attention: str) -> None:
    net = build(attention=attention, num_masked=0).train()
    features, bounds = bags_of([5, 1, 7])
    label = torch.tensor([0, 2, 1])
    together = net.losses(net(features, bounds), label, cu_seqlens=bounds)
    sum(together.values()).backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    alone = []
    for bag, y in zip(features.split([5, 1, 7]), label, strict=True):
        whole = torch.tensor([0, len(bag)])
        alone.append(net.losses(net(bag), y[None], cu_seqlens=whole))
        (sum(alone[-1].values()) / 3).backward()
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([terms[name] for terms in alone]).mean())
    for ours, parameter in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["gated", "multihead"])
def test_patches_have_no_order(attention: str) -> None:
    net = build(attention=attention).eval()
    features, _ = bags_of([9])
    torch.testing.assert_close(net(features).logits, net(features.flip(0)).logits)


@pytest.mark.parametrize("attention", ["gated", "multihead"])
def test_padded_and_packed_batches_agree(attention: str) -> None:
    net = build(attention=attention).eval()
    sizes = [4, 7, 2]
    features, bounds = bags_of(sizes)
    padded = torch.nn.utils.rnn.pad_sequence(features.split(sizes), batch_first=True)
    padded[0, 4:] = torch.nan  # padding may hold anything
    found = net(padded.nan_to_num(7.0), lengths=torch.tensor(sizes))
    torch.testing.assert_close(found.logits, net(features, bounds).logits)
    weights = attention_weights(found.attention, lengths=torch.tensor(sizes))
    assert not weights[0, 4:].any()


@pytest.mark.parametrize("attention", ["gated", "multihead"])
def test_chunks_of_patches_change_no_number(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build(attention=attention, num_masked=3).train()
    features, bounds = bags_of([11, 1, 8])
    label = torch.tensor([0, 1, 2])
    draws = torch.rand(3, 3 * (2 if attention == "multihead" else 1), 3)

    def run() -> tuple[Tensor, list[Tensor]]:
        net.zero_grad()
        output = net(features, bounds, mask_draws=draws)
        sum(net.losses(output, label, cu_seqlens=bounds).values()).backward()
        return output.logits, [parameter.grad.clone() for parameter in net.parameters()]

    whole = run()
    monkeypatch.setattr(module, "STREAM_FROM", 5)
    monkeypatch.setattr(module, "CHUNK", 4)
    chunked = run()
    torch.testing.assert_close(chunked[0], whole[0])
    for ours, reference in zip(chunked[1], whole[1], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_half_precision_features_are_cast() -> None:
    net = build().eval()
    features, bounds = bags_of([5, 3])
    half = net(features.half(), bounds).logits
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, net(features.half().float(), bounds).logits)


def test_one_branch_without_masking_is_abmil() -> None:
    net = build(num_branches=1, num_masked=0).eval()
    baseline = ABMIL(net.config).eval()
    state = net.state_dict()
    state |= {f"head.{part}": state.pop(f"slide_head.{part}") for part in ("weight", "bias")}
    baseline.load_state_dict({n: t for n, t in state.items() if not n.startswith("branch_heads")})
    features, bounds = bags_of([4, 6])
    torch.testing.assert_close(baseline(features, bounds).logits, net(features, bounds).logits)


def test_maps_of_a_slide_sum_to_one() -> None:
    net = build(attention="multihead").eval()
    features, bounds = bags_of([4, 6])
    found = slide_map(net(features, bounds).attention, cu_seqlens=bounds)
    torch.testing.assert_close(
        torch.stack([part.sum() for part in found.split([4, 6])]), torch.ones(2)
    )


def test_an_empty_bag_is_finite() -> None:
    net = build().eval()
    features, _ = bags_of([3])
    logits = net(features, torch.tensor([0, 0, 3])).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("feature_dim", "width"), [(384, 128), (1024, 512), (1536, 768), (32, 16), (100, 48), (3, 8)]
)
def test_width_follows_the_features(feature_dim: int, width: int) -> None:
    assert ACMILConfig(feature_dim=feature_dim).width == width


@pytest.mark.parametrize(
    ("attention", "feature_dim", "count"),
    [("gated", 384, 84_369), ("multihead", 384, 416_140), ("gated", 1024, 662_417)],
)
def test_parameters_are_as_many_as_published(attention: str, feature_dim: int, count: int) -> None:
    net = ACMIL(ACMILConfig(feature_dim=feature_dim, attention=attention))
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_branches": 0}, "num_branches must be at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"attention": "multihead", "dim": 9}, "use 8"),
        ({"mask_share": 1.5}, "mask_share must be in"),
        ({"num_masked": -1}, "num_masked"),
    ],
)
def test_impossible_sizes_are_named(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ACMILConfig(**changes)
