"""Saliency where the truth is known: linear models, smooth models, planted tokens."""

import pytest
import torch
from torch import Tensor

from manyhead_core.analysis.saliency import (
    blank_patches,
    blank_tokens,
    input_gradient,
    integrated_gradients,
    occlusion,
    to_tokens,
)
from manyhead_core.errors import ConfigError


def inputs(batch: int = 3, count: int = 6, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)


WEIGHT = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.tensor([0, 1, 1])


def linear(x: Tensor) -> Tensor:
    return torch.einsum("btd,tdc->bc", x, WEIGHT) + 3


def smooth(x: Tensor) -> Tensor:
    return (
        torch.tanh(torch.einsum("btd,tdc->bc", x, WEIGHT) / 4) ** 3
        + x.square().sum((1, 2))[:, None]
    )


@pytest.mark.parametrize("method", [input_gradient, integrated_gradients])
def test_gradients_of_a_linear_model_are_its_terms(method) -> None:
    x = inputs()
    torch.testing.assert_close(method(linear, x, TARGET), x * WEIGHT[:, :, TARGET].movedim(2, 0))


@pytest.mark.parametrize("baseline", [0.0, 0.7, "tensor"])
def test_integrated_gradients_are_complete(baseline: object) -> None:
    x = inputs()
    start = (
        inputs(1) * 0.3 if baseline == "tensor" else torch.full((1, 6, 4), float(baseline)).double()
    )
    given = start if baseline == "tensor" else baseline
    found = integrated_gradients(smooth, x, TARGET, baseline=given)
    difference = smooth(x) - smooth(start.expand_as(x))
    chosen = difference.gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(found.flatten(1).sum(1), chosen, rtol=2e-3, atol=2e-3)
    finer = integrated_gradients(smooth, x, TARGET, baseline=given, steps=512)
    torch.testing.assert_close(finer.flatten(1).sum(1), chosen, rtol=1e-5, atol=1e-5)


def test_integrated_gradients_follow_the_class_predicted_for_the_input() -> None:
    x = inputs()
    expected = integrated_gradients(linear, x, linear(x).argmax(1))
    assert torch.equal(integrated_gradients(linear, x), expected)
    with pytest.raises(ConfigError, match="steps: 0 is no number"):
        integrated_gradients(linear, x, steps=0)


def test_saliency_of_one_logit_a_sample_needs_no_target() -> None:
    x = inputs()
    for method in (input_gradient, integrated_gradients):
        found = method(lambda z: linear(z)[:, 1], x)
        torch.testing.assert_close(found, x * WEIGHT[:, :, 1])


def test_saliency_leaves_no_gradients_behind() -> None:
    weight = torch.ones(6, 4, requires_grad=True)
    x = inputs().float()
    with torch.no_grad():
        input_gradient(lambda z: (z * weight).sum((1, 2)), x)
    assert weight.grad is None
    assert not x.requires_grad


def test_occlusion_of_a_linear_model_approaches_the_terms_of_its_tokens() -> None:
    x = inputs()
    terms = (x * WEIGHT[:, :, TARGET].movedim(2, 0)).sum(2)
    found = occlusion(linear, x, blank_tokens, 6, TARGET, masks=4000)
    assert (found - terms).abs().max() < 0.12 * terms.abs().max()
    # Enough masks of two tokens to hold every combination are exact up to their frequencies.
    again = occlusion(linear, x, blank_tokens, 6, TARGET, masks=50, seed=3)
    assert torch.equal(again, occlusion(linear, x, blank_tokens, 6, TARGET, masks=50, seed=3))


def test_occlusion_finds_the_planted_patch() -> None:
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))

    def forward(x: Tensor) -> Tensor:
        return x[:, 0, 4:6, 2:4].sum((1, 2))

    found = occlusion(forward, image, blank_patches((4, 4)), 16, masks=400)
    assert found.argmax(1).tolist() == [9, 9]
    torch.testing.assert_close(found[:, 9], forward(image))


def test_blanks_keep_what_is_kept() -> None:
    x, kept = inputs(), torch.tensor([[True, False, True, True, False, True]]).expand(3, -1)
    found = blank_tokens(x, kept, -1.0)
    assert torch.equal(found[:, kept[0]], x[:, kept[0]])
    assert (found[:, ~kept[0]] == -1).all()
    image = torch.ones(1, 2, 4, 6)
    blanked = blank_patches((2, 3))(image, torch.tensor([[True, False, True, False, True, True]]))
    assert torch.equal(blanked[0, 1, ::2, ::2], torch.tensor([[1.0, 0, 1], [0, 1, 1]]))


def test_pooling_to_tokens_adds_up() -> None:
    x = inputs()
    torch.testing.assert_close(to_tokens(x), x.sum(2).abs())
    image = torch.rand(2, 3, 4, 6)
    found = to_tokens(image, (2, 3))
    torch.testing.assert_close(found[0, 4], image[0, :, 2:4, 2:4].sum())
    torch.testing.assert_close(found.sum(1), image.sum((1, 2, 3)))
    with pytest.raises(ConfigError, match=r"grid: .* does not divide an image of 4 x 6"):
        to_tokens(image, (3, 3))
