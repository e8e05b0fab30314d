"""Relevance: conservation on nets without biases, the rules by hand, and salient maps."""

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.analysis.relevance import chosen_logit, propagating, relevance
from manyhead_core.analysis.salient_map import distinctness, near_foci, salient_relevance
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
    return model.double().eval()


def images(batch: int = 3, channels: int = 2, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, channels, side, side, generator=generator, dtype=torch.float64)


def convolutional() -> nn.Module:
    return seeded(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 5, 3, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 7, bias=False),
            nn.ReLU(),
            nn.Linear(7, 3, bias=False),
        )
    )


def test_relevance_on_a_net_without_biases_sums_to_the_logit() -> None:
    model, x = convolutional(), images()
    target = torch.tensor([0, 1, 2])
    logit = model(x).gather(1, target[:, None])[:, 0]
    found = relevance(model, model, x, target)
    assert found.shape == x.shape
    torch.testing.assert_close(found.flatten(1).sum(1), logit.detach(), rtol=1e-6, atol=1e-8)


def test_relevance_of_a_convolutional_net_is_gradient_times_input() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3)))
    x = images().requires_grad_()

    def forward(inputs: Tensor) -> Tensor:
        return model(inputs).flatten(1)

    logit = forward(x).amax(1).sum()
    (gradient,) = torch.autograd.grad(logit, x)
    expected = (x * gradient).detach()
    torch.testing.assert_close(relevance(model, forward, x), expected, rtol=1e-6, atol=1e-9)


def test_relevance_of_linear_layers_follows_the_positive_contributions() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [2.0, 1.0, -1.0]]))
        model[0].bias.copy_(torch.tensor([5.0, 0.0]))
        model[1].weight.copy_(torch.tensor([[1.0, 2.0]]))
        model[1].bias.zero_()
    x = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    # Hidden: 1 - 4 - 3 + 5 = -1 and 2 + 2 + 1 = 5; logit -1 + 10 = 9. The positive contributions
    # are 10 of the second unit in the last layer, and 2, 2, 1 of its 5 in the first.
    expected = torch.tensor([[9 * 2 / 5, 9 * 2 / 5, 9 * 1 / 5]], dtype=torch.float64)
    torch.testing.assert_close(relevance(model, lambda z: model(z)[:, 0], x), expected)


class Mixed(nn.Module):
    """Patches, attention, linear layer; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 2, stride=2, bias=False)
        self.attention = Attention(8, 2, qkv_bias=False)
        self.head = nn.Linear(8, 3, bias=False)
        self.attention.proj.bias = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2).relu()
        return self.head((tokens + self.attention(tokens).y).mean(1))


def test_relevance_treats_attention_as_fixed_mixing_and_is_conserved() -> None:
    model = seeded(Mixed())
    with torch.no_grad():
        # Dense tokens: a unit with negative contributions only would keep its relevance.
        model.patches.weight.abs_()
    x, target = images(), torch.tensor([2, 1, 0])
    logit = model(x).gather(1, target[:, None])[:, 0].detach()
    found = relevance(model, model, x, target)
    torch.testing.assert_close(found.flatten(1).sum(1), logit, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6)])
def test_relevance_rules_leave_outputs_and_module_as_they_were(norm: nn.Module) -> None:
    parts = (nn.Linear(5, 6), norm, nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.ReLU(inplace=True))
    model = seeded(nn.Sequential(*parts, nn.Linear(6, 2)))
    x = images().flatten(1)[:, :5]
    before = model(x)
    with propagating(model):
        torch.testing.assert_close(model(x), before)
    assert relevance(model, model, x).isfinite().all()
    assert not any(module._forward_hooks for module in model.modules())
    assert parts[-1].inplace


def test_relevance_passes_smooth_activations_unchanged() -> None:
    model = seeded(nn.Sequential(nn.Conv1d(1, 4, 3, bias=False), nn.GELU(), nn.Flatten()))
    x = images()[:, :1, 0, :5]
    weight = torch.tensor([1.0, -1.0, 2.0, 0.5] * 3, dtype=torch.float64)

    def forward(inputs: Tensor) -> Tensor:
        return model(inputs) @ weight

    found = relevance(model, forward, x)
    torch.testing.assert_close(found.flatten(1).sum(1), forward(x).detach(), rtol=1e-6, atol=1e-8)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv1d(2, 3, 1, bias=False)
        self.gate = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) * self.gate(x)).sum((1, 2))


def test_relevance_of_a_product_is_conserved_with_one_stream_fixed() -> None:
    model, x = seeded(Gated()), images()[:, :, 0]
    logit = model(x).detach()
    fixed = relevance(model, model, x, fixed=["gate"])
    torch.testing.assert_close(fixed.flatten(1).sum(1), logit, rtol=1e-6, atol=1e-9)
    free = relevance(model, model, x)
    assert not torch.allclose(free.flatten(1).sum(1), logit, rtol=1e-2)
    with pytest.raises(ConfigError, match="no module 'gates'"):
        relevance(model, model, x, fixed=["gates"])


def test_chosen_logit_reads_predicted_and_given_class() -> None:
    logits = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    assert chosen_logit(logits, None).tolist() == [3.0, 5.0]
    assert chosen_logit(logits, torch.tensor([0, 1])).tolist() == [1.0, 2.0]
    with pytest.raises(ConfigError, match="forward: logits of shape"):
        chosen_logit(logits[None], None)


def spot(side: int = 24, place: tuple[int, int] = (6, 15)) -> Tensor:
    image = torch.zeros(1, side, side)
    row, column = place
    image[:, row - 1 : row + 2, column - 1 : column + 2] = 2.5
    return image


def test_salient_map_finds_the_spot_that_stands_out() -> None:
    found = salient_relevance(spot())
    assert found.shape == (1, 24, 24)
    assert ((found >= 0) & (found <= 1)).all()
    row, column = divmod(int(found[0].argmax()), 24)
    assert abs(row - 6) <= 2
    assert abs(column - 15) <= 2
    assert found[0, 18:, :6].max() < 0.05


def test_salient_map_of_a_constant_is_zero() -> None:
    for value in (0.0, 3.0):
        assert salient_relevance(torch.full((2, 9, 12), value)).abs().max() < 1e-6


def test_salient_map_ignores_scale_and_negative_relevance() -> None:
    image = spot()
    torch.testing.assert_close(
        salient_relevance(image * 40 - (image == 0) * 3), salient_relevance(image)
    )


def test_distinctness_is_the_formula() -> None:
    image = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    padded = nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0, 0]
    places = [(i, j) for i in range(4) for j in range(5)]
    expected = []
    for i, j in places:
        distances = []
        for k, m in places:
            if (i, j) == (k, m):
                continue
            value = (padded[i : i + 3, j : j + 3] - padded[k : k + 3, m : m + 3]).norm()
            apart = ((i - k) ** 2 + (j - m) ** 2) ** 0.5 / 5
            distances.append(float(value / (1 + 3 * apart)))
        mean = sum(sorted(distances)[:6]) / 6
        expected.append(1 - torch.exp(torch.tensor(-mean, dtype=torch.float64)))
    found = distinctness(image, patch=3, nearest=6)
    torch.testing.assert_close(found.flatten(), torch.stack(expected))


def test_foci_dim_what_is_far_from_them() -> None:
    salience = torch.full((2, 1, 5), 0.5)
    salience[0, 0, 0] = 0.9
    found = near_foci(salience)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.9, 0.4, 0.3, 0.2, 0.1]))
    torch.testing.assert_close(found[1], salience[1])


def test_salient_map_refuses_an_even_patch() -> None:
    with pytest.raises(ConfigError, match="patch: 6 is even"):
        salient_relevance(spot(), patch=6)
