"""`rollout` and its gradient variant."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention.rollout import gradient_rollout, rollout
from manyhead_core.errors import ConfigError


def maps(layers: int = 3, batch: int = 2, heads: int = 2, tokens: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (layers, batch, heads, tokens, tokens)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1))


def test_rollout_rows_sum_to_one() -> None:
    reached = rollout(maps())
    torch.testing.assert_close(reached.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert (reached >= 0).all()


def test_rollout_is_the_product_with_later_layers_left() -> None:
    first, second, third = (layer.mean(1) for layer in maps())
    own = torch.eye(5, dtype=torch.float64)
    expected = (third + own) @ (second + own) @ (first + own) / 8
    torch.testing.assert_close(rollout(maps()), expected)
    assert not torch.allclose(rollout(maps()[::-1]), expected)


def test_rollout_takes_maps_averaged_over_heads() -> None:
    torch.testing.assert_close(rollout([layer.mean(1) for layer in maps()]), rollout(maps()))


def test_rollout_of_no_mixing_is_the_identity() -> None:
    own = torch.eye(4).expand(2, 3, 4, 4)
    torch.testing.assert_close(rollout([own, own]), torch.eye(4).expand(2, 4, 4))


def test_rollout_of_a_blind_row_keeps_its_token() -> None:
    layers = maps()
    for layer in layers:
        layer[:, :, 2] = 0
    reached = rollout(layers)
    torch.testing.assert_close(reached[:, 2], torch.eye(5).double()[2].expand(2, 5))
    torch.testing.assert_close(reached.sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_rollout_of_half_precision_maps_is_float32() -> None:
    reached = rollout([layer.bfloat16() for layer in maps()])
    assert reached.dtype == torch.float32
    torch.testing.assert_close(reached.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(reached.double(), rollout(maps()), atol=1e-2, rtol=0)


def test_rollout_of_one_token() -> None:
    assert rollout(maps(tokens=1)).tolist() == [[[1.0]], [[1.0]]]


def test_gradient_rollout_keeps_what_speaks_for_the_output() -> None:
    layers = [layer.requires_grad_() for layer in maps()]
    values = torch.randn(2, 1, 5, 3, generator=torch.Generator().manual_seed(1)).double()
    for layer in layers:
        values = (layer @ values).tanh() + values
    gradients = torch.autograd.grad(values[:, :, 0].sum(), layers)
    reached = gradient_rollout([layer.detach() for layer in layers], gradients)
    torch.testing.assert_close(reached.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    expected = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    for layer, gradient in zip(layers, gradients, strict=True):
        kept = (layer.detach() * gradient).clamp(min=0).mean(1)
        step = torch.eye(5, dtype=torch.float64).repeat(2, 1, 1)
        for b in range(2):
            for i in range(5):
                if kept[b, i].sum() > 0:
                    step[b, i] = (step[b, i] + kept[b, i] / kept[b, i].sum()) / 2
        expected = step @ expected
    torch.testing.assert_close(reached, expected)


def test_gradient_rollout_does_not_depend_on_the_scale_of_the_output() -> None:
    gradients = [layer - 0.2 for layer in maps()]
    scaled = [1e-6 * gradient for gradient in gradients]
    torch.testing.assert_close(
        gradient_rollout(maps(), scaled), gradient_rollout(maps(), gradients)
    )


def test_gradient_rollout_against_the_output_is_the_identity() -> None:
    against = [-torch.ones_like(layer) for layer in maps()]
    assert torch.equal(gradient_rollout(maps(), against), torch.eye(5).double().expand(2, 5, 5))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="there are none"):
        rollout([])
    with pytest.raises(ConfigError, match="square and equal"):
        rollout([torch.ones(1, 2, 3)])
    with pytest.raises(ConfigError, match="square and equal"):
        rollout([torch.ones(1, 2, 2), torch.ones(1, 3, 3)])
    with pytest.raises(ConfigError, match="gradients"):
        gradient_rollout(maps(), maps()[:2])
