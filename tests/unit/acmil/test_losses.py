"""Losses against plain formulas, bag by bag."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from manyhead.acmil.losses import (
    cox_loss,
    diversity_loss,
    negative_entropy,
    ordinal_loss,
    target_loss,
)
from manyhead_core.errors import ConfigError


def test_diversity_is_the_mean_cosine_of_all_pairs_of_maps() -> None:
    attention = torch.randn(9, 3, 2)
    bounds = torch.tensor([0, 4, 9])
    expected = []
    for start, end in itertools.pairwise(bounds.tolist()):
        for head in range(2):
            maps = attention[start:end, :, head].softmax(0).T
            pairs = itertools.combinations(maps, 2)
            expected.append(torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in pairs]))
    found = diversity_loss(attention, cu_seqlens=bounds)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_equal_maps_have_diversity_one_and_a_single_branch_none() -> None:
    same = torch.randn(6, 1, 1).expand(6, 4, 1)
    torch.testing.assert_close(
        diversity_loss(same, cu_seqlens=torch.tensor([0, 6])), torch.tensor(1.0)
    )
    assert diversity_loss(same[:, :1], cu_seqlens=torch.tensor([0, 6])) == 0


def test_masked_scores_give_finite_gradients() -> None:
    attention = torch.randn(6, 2, 1)
    attention[:3, 0] = float("-inf")
    attention.requires_grad_()
    bounds = torch.tensor([0, 6])
    total = diversity_loss(attention, cu_seqlens=bounds)
    total = total + negative_entropy(attention, cu_seqlens=bounds)
    total.backward()
    assert torch.isfinite(attention.grad).all()


def test_entropy_of_even_weights_is_the_logarithm_of_the_patches() -> None:
    found = negative_entropy(torch.zeros(8, 2, 1), cu_seqlens=torch.tensor([0, 8]))
    assert found.item() == pytest.approx(-math.log(8), rel=1e-6)


def test_class_weights_multiply_each_bag() -> None:
    logits, label = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    weights = torch.tensor([0.5, 1.0, 2.0])
    each = F.cross_entropy(logits, label, reduction="none") * weights[label]
    torch.testing.assert_close(target_loss(logits, label, class_weights=weights), each.mean())


def test_ordinal_loss_asks_one_question_per_threshold() -> None:
    logits = torch.tensor([[4.0, 4.0], [-4.0, -4.0]])
    right, wrong = torch.tensor([2, 0]), torch.tensor([0, 2])
    assert ordinal_loss(logits, right) < 0.02
    assert ordinal_loss(logits, wrong) > 3.9


def test_cox_loss_is_the_partial_likelihood() -> None:
    risk = torch.tensor([0.3, -0.2, 0.9, 0.1])
    time = torch.tensor([5.0, 3.0, 8.0, 3.0])
    event = torch.tensor([True, True, False, False])
    expected = 0.0
    for i in (0, 1):
        at_risk = risk[time >= time[i]].exp().sum().log()
        expected += (at_risk - risk[i]).item()
    assert cox_loss(risk, time, event).item() == pytest.approx(expected / 2, rel=1e-6)
    assert cox_loss(risk, time, torch.zeros(4, dtype=torch.bool)) == 0


def test_survival_without_events_is_refused() -> None:
    with pytest.raises(ConfigError, match="event column"):
        target_loss(torch.randn(2, 1), torch.ones(2), "survival")
