"""Optimisers against the formulas, on small problems."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from manyhead_core.errors import ConfigError
from manyhead_core.training.clipping import clip_norm
from manyhead_core.training.optimiser import build_optimiser

NAMES = ("adam", "adam_tf", "lazy_adam", "adagrad", "sgd")
NONE = {"embedding": 0.0, "tower": 0.0}


class Net(nn.Module):
    def __init__(self, rows: int = 12, width: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.mix = nn.Linear(width, width)
        self.tower = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, ids):
        return self.tower(self.mix(self.embedding(ids))).squeeze(-1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


def batches(steps, rows=12, size=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, rows, (size,), generator=generator) for _ in range(steps)]


def train(net, optimiser, ids):
    for batch in ids:
        optimiser.zero_grad()
        (net(batch) - batch.double() / 10).square().mean().backward()
        optimiser.step()


def gradients(net, ids):
    """Gradients of the squared error, dense, by parameter name."""
    net = copy.deepcopy(net)
    net.embedding.sparse = False
    net.zero_grad()
    (net(ids) - ids.double() / 10).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters()}


def literal(net, ids, rule, decay=None):
    """Run `rule(weight, gradient, state, step)` over every parameter."""
    net = copy.deepcopy(net)
    states = {name: {} for name, _ in net.named_parameters()}
    for step, batch in enumerate(ids, start=1):
        found = gradients(net, batch)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                gradient = found[name] + (decay or {}).get(name, 0.0) * parameter
                parameter.copy_(rule(parameter, gradient, states[name], step))
    return dict(net.named_parameters())


def adam(weight, gradient, state, step, tensorflow=False, lr=0.01, b1=0.9, b2=0.999, eps=1e-8):
    m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * gradient
    v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * gradient**2
    if tensorflow:
        return weight - lr * math.sqrt(1 - b2**step) / (1 - b1**step) * m / (v.sqrt() + eps)
    return weight - lr * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)


def adam_tf(weight, gradient, state, step):
    return adam(weight, gradient, state, step, tensorflow=True)


def adagrad(weight, gradient, state, step):
    s = state["s"] = state.get("s", torch.full_like(weight, 1e-8)) + gradient**2
    return weight - 0.01 * gradient / s.sqrt()


def momentum(weight, gradient, state, step):
    m = state["m"] = 0.95 * state.get("m", 0) + gradient
    return weight - 0.01 * m


RULES = {"adam": adam, "adam_tf": adam_tf, "adagrad": adagrad, "sgd": momentum}


def close(net, expected, tolerance=1e-12):
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", RULES)
def test_steps_follow_the_formula(net, name):
    ids = batches(7)
    expected = literal(net, ids, RULES[name])
    train(net, build_optimiser(name, net, 0.01, NONE), ids)
    close(net, expected)


def test_epsilon_is_where_the_two_adams_differ():
    """With a gradient of the size of epsilon, TensorFlow's first step is a fraction of torch's."""
    steps = {}
    for name in ("adam", "adam_tf"):
        weight = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        before = weight.weight.item()
        optimiser = build_optimiser(name, weight, 0.01, NONE)
        weight.weight.grad = torch.full_like(weight.weight, 1e-8)
        optimiser.step()
        steps[name] = before - weight.weight.item()
    assert steps["adam"] == pytest.approx(0.01 / 2, rel=1e-6)
    root = math.sqrt(1 - 0.999)
    assert steps["adam_tf"] == pytest.approx(0.01 * root / (root + 1), rel=1e-6)


def test_adam_tf_keeps_its_epsilon(net):
    optimiser = build_optimiser("adam_tf", net, 0.01, NONE)
    train(net, optimiser, batches(3))
    assert {group["eps"] for group in optimiser.param_groups} == {1e-8}


@pytest.mark.parametrize("name", RULES)
def test_decay_by_role_is_coupled(net, name):
    ids = batches(4)
    decay = {
        "embedding.weight": 0.3,
        "tower.0.weight": 0.05,
        "tower.2.weight": 0.05,
    }
    expected = literal(net, ids, RULES[name], decay)
    train(net, build_optimiser(name, net, 0.01, {"embedding": 0.3, "tower": 0.05}), ids)
    close(net, expected)


def test_parameters_called_embedding_are_tables():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding_table = nn.Parameter(torch.ones(4, 2))
            self.bias = nn.Parameter(torch.ones(2))

    groups = build_optimiser("sgd", Bare(), 0.1, {"embedding": 0.5}).param_groups
    assert [(g["name"], g["weight_decay"], g["params"][0].shape) for g in groups] == [
        ("embedding", 0.5, (4, 2)),
        ("rest", 0.0, (2,)),
    ]


def test_frozen_parameters_are_left_out(net):
    net.mix.requires_grad_(False)
    optimiser = build_optimiser("adam", net, 0.1, NONE)
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize("sparse", [True, False])
def test_lazy_adam_moves_only_the_rows_of_the_batch(net, sparse):
    optimiser = build_optimiser("lazy_adam", net, 0.01, NONE, sparse=sparse)
    train(net, optimiser, [torch.tensor([1, 2, 5])])
    before = net.embedding.weight.detach().clone()
    train(net, optimiser, [torch.tensor([2, 7, 7])])
    moved = (net.embedding.weight != before).any(1).nonzero().squeeze(1)
    assert moved.tolist() == [2, 7]
    assert net.embedding.weight.grad.is_sparse == sparse


def test_lazy_adam_is_adam_over_the_steps_of_a_row(net):
    """Each row by the formula with its own step count; everything else as dense Adam."""
    ids = batches(9)
    expected = copy.deepcopy(net)
    rows = [{} for _ in range(12)]
    counts = [0] * 12
    others = {name: {} for name, _ in net.named_parameters()}
    for step, batch in enumerate(ids, start=1):
        found = gradients(expected, batch)
        with torch.no_grad():
            for row in sorted(set(batch.tolist())):
                counts[row] += 1
                weight = expected.embedding.weight[row]
                gradient = found["embedding.weight"][row] + 0.3 * weight
                new = adam(weight, gradient, rows[row], counts[row])
                expected.embedding.weight[row] = new
            for name, parameter in expected.named_parameters():
                if name != "embedding.weight":
                    parameter.copy_(adam(parameter, found[name], others[name], step))
    for sparse in (True, False):
        ours = copy.deepcopy(net)
        train(
            ours, build_optimiser("lazy_adam", ours, 0.01, {"embedding": 0.3}, sparse=sparse), ids
        )
        close(ours, dict(expected.named_parameters()))


def test_lazy_adam_equals_adam_when_every_row_is_in_every_batch(net):
    ids = [torch.arange(12)] * 5
    lazy, dense = copy.deepcopy(net), net
    train(lazy, build_optimiser("lazy_adam", lazy, 0.01, NONE), ids)
    train(dense, build_optimiser("adam", dense, 0.01, NONE), ids)
    close(lazy, dict(dense.named_parameters()))


def test_a_step_without_rows_changes_no_row(net):
    optimiser = build_optimiser("lazy_adam", net, 0.01, NONE)
    before = net.embedding.weight.detach().clone()
    optimiser.zero_grad()
    net.mix(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
    optimiser.step()
    assert torch.equal(net.embedding.weight, before)


@pytest.mark.parametrize("name", NAMES)
def test_resume_from_a_state_dict(net, name, tmp_path):
    net = net.float()
    ids = batches(8)
    whole, cut = copy.deepcopy(net), net

    def run(model, optimiser, part):
        for batch in part:
            optimiser.zero_grad()
            (model(batch) - batch / 10).square().mean().backward()
            optimiser.step()

    decay = {"embedding": 0.01, "tower": 0.0}
    run(whole, build_optimiser(name, whole, 0.01, decay), ids)
    optimiser = build_optimiser(name, cut, 0.01, decay)
    run(cut, optimiser, ids[:5])
    torch.save(optimiser.state_dict(), tmp_path / "state")
    again = build_optimiser(name, cut, 0.5, decay)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    run(cut, again, ids[5:])
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_closure_is_run_and_its_loss_returned(net, name):
    optimiser = build_optimiser(name, net, 0.01, NONE)
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def closure():
        optimiser.zero_grad()
        loss = net(torch.arange(12)).square().mean()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() > 0
    after = net.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_gradients_stay_for_whoever_reads_them_after_the_step(net):
    optimiser = build_optimiser("lazy_adam", net, 0.01, NONE)
    train(net, optimiser, [torch.tensor([3])])
    assert net.embedding.weight.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_gradient_scalers_unscale_before_the_step(net, name):
    """A fused kernel that unscales by itself would forbid clipping in Lightning."""
    optimiser = build_optimiser(name, net, 0.01, NONE)
    assert not getattr(optimiser, "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_sparse_gradients_are_clipped_like_dense_ones(net, limit):
    ids = torch.tensor([1, 1, 4])
    dense = copy.deepcopy(net)
    net.embedding.sparse = True
    for model in (net, dense):
        model(ids).square().sum().backward()
    before = torch.nn.utils.clip_grad_norm_(dense.parameters(), limit)
    torch.testing.assert_close(clip_norm(net.parameters(), limit), before)
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


@pytest.mark.parametrize("lr", [0, -1, math.nan, math.inf])
def test_senseless_learning_rates(net, lr):
    with pytest.raises(ConfigError, match="lr must be a positive number"):
        build_optimiser("adam", net, lr, NONE)


def test_senseless_decays(net):
    with pytest.raises(ConfigError, match="tower_l2 must be zero or a positive number, got -1"):
        build_optimiser("adam", net, 0.1, {"tower": -1})
    with pytest.raises(ConfigError, match="unknown role 'towr'; known: embedding, tower"):
        build_optimiser("adam", net, 0.1, {"towr": 1})


def test_unknown_names(net):
    with pytest.raises(ConfigError, match="known: adam, adam_tf, lazy_adam, adagrad, sgd"):
        build_optimiser("adamw", net, 0.1, NONE)
