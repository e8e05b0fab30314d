"""Attention sums to one, evidence to the logits, and a network in training mode shows no masks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from manyhead.acmil import ACMIL, ACMILConfig
from manyhead.acmil import model as module
from manyhead.acmil.explain import evidence
from manyhead.acmil.explain.evidence import pooling_of, shares_of
from manyhead.acmil.explain.scores import Explainer, percentiles
from manyhead.acmil.networks import build_network
from manyhead_core.errors import ConfigError

NAMES = ("a", "b", "c")


def config(**changes: object) -> ACMILConfig:
    options = {"feature_dim": 6, "dim": 8, "hidden_dim": 4, "num_classes": 3, "num_branches": 3}
    return ACMILConfig(**options | {"num_heads": 2} | changes)


def network(name: str = "acmil", **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    net = build_network(name, config(**changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return net.eval()


def bag(patches: int = 20) -> Tensor:
    return torch.randn(patches, 6, generator=torch.Generator().manual_seed(patches))


@pytest.mark.parametrize(
    "net",
    [
        network(attention="gated"),
        network(attention="multihead"),
        network(attention="gated", target="ordinal"),
        network(attention="gated", target="survival"),
        network(attention="gated", num_residual=1),
        network("abmil"),
        network("mha"),
        network("clam_sb"),
        network("clam_mb"),
        network("mean"),
    ],
)
def test_evidence_and_constant_sum_to_the_logits_of_the_network(net: torch.nn.Module) -> None:
    features = bag()
    pooling = pooling_of(net)
    assert pooling is not None
    explainer = Explainer(net, NAMES)
    found = explainer(features)
    with torch.no_grad():
        logits = net(features, torch.tensor([0, len(features)])).logits[0]
    shares = shares_of(pooling, features, torch.tensor(found.weights).flatten(1).float())
    total = shares.patches.sum(0) + shares.constant
    torch.testing.assert_close(total, logits, rtol=1e-4, atol=1e-4)
    assert found.evidence is not None
    np.testing.assert_allclose(found.evidence.sum(0) + found.constant, found.logits, atol=1e-5)
    if net.config.target == "classes":
        wanted = (logits - logits.mean()).numpy()
        np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-4)


def test_gated_evidence_is_the_attention_times_the_classifier() -> None:
    net = network(attention="gated")
    assert isinstance(net, ACMIL)
    features = bag()
    found = Explainer(net, NAMES)(features)
    with torch.no_grad():
        x = net.reduction(features).double()
        weight = net.slide_head.weight.double()
        by_hand = torch.tensor(found.mean)[:, None] * (x @ weight.T)
    by_hand -= by_hand.mean(1, keepdim=True)
    assert found.evidence is not None
    np.testing.assert_allclose(found.evidence, by_hand.numpy(), atol=1e-6)
    bias = net.slide_head.bias.detach().double()
    np.testing.assert_allclose(found.constant, (bias - bias.mean()).numpy(), atol=1e-6)


def test_the_layer_norm_with_constant_deviation_gives_the_same_numbers() -> None:
    norm = torch.nn.LayerNorm(5, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(evidence.ConstantDeviation(norm)(x), norm(x))


def test_dsmil_explains_the_stream_of_the_bag() -> None:
    net = network("dsmil")
    features = bag()
    found = Explainer(net, NAMES)(features)
    with torch.no_grad():
        logits = net(features, torch.tensor([0, 20])).branch_logits[0, 1]
    np.testing.assert_allclose(found.logits, (logits - logits.mean()).numpy(), atol=1e-5)
    assert found.evidence is not None
    np.testing.assert_allclose(found.evidence.sum(0) + found.constant, found.logits, atol=1e-5)


@pytest.mark.parametrize("attention", ["gated", "multihead"])
def test_every_map_of_attention_sums_to_one(attention: str) -> None:
    found = Explainer(network(attention=attention), NAMES)(bag())
    heads = 2 if attention == "multihead" else 1
    assert found.weights.shape == (20, 3, heads)
    for name in ["mean", "branch:0", "branch:2", f"head:{heads - 1}"]:
        values, kind = found.map(name)
        assert kind == "attention"
        assert values.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.branches.mean(1), found.heads.mean(1))


def test_a_network_in_training_mode_is_explained_without_masks_and_dropout() -> None:
    net = network(attention="multihead", mask_share=1.0, num_masked=5, dropout=0.5)
    explainer = Explainer(net, NAMES)
    before = explainer(bag())
    net.train()
    after = explainer(bag())
    np.testing.assert_array_equal(before.weights, after.weights)
    assert (after.weights > 0).all()


def test_a_bag_in_chunks_has_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    net, features = network(attention="multihead"), bag(37)
    whole = Explainer(net, NAMES)(features)
    monkeypatch.setattr(module, "STREAM_FROM", 5)
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(evidence, "CHUNK", 4)
    parts = Explainer(net, NAMES)(features)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-6)
    assert parts.evidence is not None
    assert whole.evidence is not None
    np.testing.assert_allclose(parts.evidence, whole.evidence, atol=1e-5)


def test_half_precision_features_and_a_single_patch() -> None:
    found = Explainer(network(attention="gated"), NAMES)(bag(1).half())
    assert found.mean.tolist() == [1.0]
    assert np.isfinite(found.map("class:a")[0]).all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("branch:3", "3 branches"),
        ("head:1", "1 heads"),
        ("class:d", "known: a, b, c"),
        ("branches", "is unknown"),
        ("mean:1", "is unknown"),
        ("branch:-1", "no branch:-1"),
    ],
)
def test_a_map_that_is_not_there_is_named(name: str, says: str) -> None:
    found = Explainer(network(attention="gated"), NAMES)(bag())
    with pytest.raises(ConfigError, match=says):
        found.map(name)


@pytest.mark.parametrize("name", ["transmil", "max"])
def test_a_network_without_attention_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no attention"):
        Explainer(network(name), NAMES)(bag())


def test_percentiles_are_uniform_and_equal_values_share_one() -> None:
    found = percentiles(np.array([3.0, 1.0, 2.0, 4.0]))
    assert found.tolist() == [0.75, 0.25, 0.5, 1.0]
    assert percentiles(np.array([5.0, 5.0])).tolist() == [0.75, 0.75]
    many = percentiles(np.random.default_rng(0).random(1000))
    np.testing.assert_allclose(np.sort(many), np.arange(1, 1001) / 1000)
