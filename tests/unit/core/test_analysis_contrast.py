"""Contrast and shift maps by hand."""

import pytest
import torch

from manyhead_core.analysis.contrast import cohort_mean, contrast, shift, upsample
from manyhead_core.errors import ConfigError


def test_contrast_is_the_quotient_by_hand_and_sums_to_one() -> None:
    task = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    reference = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    steady = 0.05 / 3
    ratio = [0.5 / (0.2 + steady), 0.3 / (0.3 + steady), 0.2 / (0.5 + steady)]
    expected = torch.tensor([[part / sum(ratio) for part in ratio]], dtype=torch.float64)
    torch.testing.assert_close(contrast(task, reference), expected)


def test_contrast_with_itself_is_flat_where_attention_is_far_above_the_mean_share() -> None:
    task = (
        torch.rand(2, 4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    )
    found = contrast(task, task, share=0.0)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 50))


def test_contrast_of_zeros_is_zero_and_without_a_reference_is_the_task() -> None:
    zeros, task = torch.zeros(1, 3), torch.tensor([[0.2, 0.2, 0.6]])
    assert torch.equal(contrast(zeros, task), zeros)
    torch.testing.assert_close(contrast(task, zeros), task)


def test_contrast_takes_a_cohort_mean() -> None:
    parts = [torch.rand(3, 2, 5), torch.rand(1, 2, 5)]
    mean = cohort_mean(parts)
    torch.testing.assert_close(mean, torch.cat(parts).mean(0))
    assert contrast(parts[0], mean).shape == (3, 2, 5)
    with pytest.raises(ConfigError, match="maps: there is none"):
        cohort_mean([])


def test_shift_is_the_sum_of_the_gains() -> None:
    maps = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    torch.testing.assert_close(shift(maps), torch.tensor([0.4, 0.0, 0.3]))
    torch.testing.assert_close(shift(maps.T, axis=1), torch.tensor([0.4, 0.0, 0.3]))
    assert torch.equal(shift(maps[:1]), torch.zeros(3))


def test_upsample_keeps_constants_and_checks_the_grid() -> None:
    found = upsample(torch.full((2, 6), 0.25), (2, 3), (8, 12))
    torch.testing.assert_close(found, torch.full((2, 8, 12), 0.25))
    with pytest.raises(ConfigError, match="does not hold 6 tokens"):
        upsample(torch.zeros(2, 6), (2, 2), (4, 4))
